"""Pictures of result files."""

from itertools import accumulate
from pathlib import Path

from recbole_tiger.files import make_folder, whole_file
from recbole_tiger.leaderboard import MAIN, by_data, rows_of


def plot(results, folder, output):
    """Draw, for every dataset, what training brings over time and what size brings.

    Args:
        results: dicts, as in result files. folder: where they are.
        output: folder for ``<dataset>-training.png`` (validation against seconds of training, a line a run) and
            ``<dataset>-parameters.png`` (test against parameters, with the interval over users).

    Returns:
        list of paths.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    make_folder(output)
    groups = by_data(results)
    names = [dataset for dataset, _ in groups]
    files = []
    for (dataset, data_hash), group in groups.items():
        name = f"{dataset}-{data_hash}" if names.count(dataset) > 1 else dataset
        rows = rows_of(group, folder)
        for kind, draw in (("training", _draw_training), ("parameters", _draw_parameters)):
            figure = Figure(figsize=(7, 4.5), layout="constrained")
            axes = figure.subplots()
            draw(axes, rows)
            axes.set_title(dataset)
            axes.grid(alpha=0.3)
            file = Path(output) / f"{name}-{kind}.png"
            with whole_file(file) as temporary:
                figure.savefig(temporary, format="png", dpi=150)
            files.append(file)
    return files


def _draw_training(axes, rows):
    for i, row in enumerate(rows):
        for number, result in enumerate(row.results):
            log = result["epoch_log"]
            seconds = list(accumulate(epoch["train_seconds"] for epoch in log))
            points = [
                (second, epoch["valid_result"][MAIN])
                for second, epoch in zip(seconds, log, strict=True)
                if MAIN in epoch.get("valid_result", {})
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=f"C{i}",
                    marker=".",
                    linewidth=1,
                    label=row.label if number == 0 else None,
                )
    axes.set_xscale("log")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel(f"{MAIN} on validation")
    axes.legend(fontsize="small")


def _draw_parameters(axes, rows):
    for i, row in enumerate(row for row in rows if row.values(MAIN)):
        size, value = row.average("parameters"), row.mean(MAIN)
        bounds = row.interval(MAIN)
        error = [[value - bounds[0]], [bounds[1] - value]] if bounds else None
        axes.errorbar(size, value, yerr=error, marker="o", color=f"C{i}", capsize=3)
        axes.annotate(row.label, (size, value), xytext=(6, 4), textcoords="offset points", fontsize="small")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("parameters")
    axes.set_ylabel(f"{MAIN} on test")
