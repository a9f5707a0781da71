"""Pictures of leaderboards and sweeps, made from their files."""

import re
from pathlib import Path

import pandas as pd

from recbole_tiger.files import make_folder, whole_file
from recbole_tiger.report.leaderboard import MAIN, comparable, rows_of, validation_curve


def _figure(width, height):
    from matplotlib.figure import Figure  # importing it at the top would slow every command down by half a second

    return Figure(figsize=(width, height), layout="constrained")


def _plain(text):
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _save(figure, file):
    with whole_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def plot(results, folder, output):
    """Draw the metric over training time and over model size, for every dataset.

    Args:
        results: dicts, as in result files. folder: the folder of these files.
        output: folder for ``<title>-training.png`` (validation metric over seconds of training, one line per run) and
            ``<title>-parameters.png`` (test metric over parameters, with the interval over users; models without parameters
            are horizontal lines).

    Returns:
        list of paths.
    """
    make_folder(output)
    files = []
    for title, group in comparable(results).items():
        name = re.sub(r"[^\w.-]+", "-", title).strip("-")
        if any(file.name == f"{name}-training.png" for file in files):  # titles may differ only in brackets
            name += f"-{len(files)}"
        rows = rows_of(group, folder)
        for kind, draw in (("training", _draw_training), ("parameters", _draw_parameters)):
            figure = _figure(7, 4.5)
            axes = figure.subplots()
            draw(axes, rows)
            figure.legend(loc="outside right upper", fontsize="small")
            axes.set_title(_plain(title))
            axes.grid(alpha=0.3)
            file = Path(output) / f"{name}-{kind}.png"
            _save(figure, file)
            files.append(file)
    return files


def _marker(i):
    """The marker of a row; rows beyond the ten colours of matplotlib repeat a colour with another marker."""
    return "os^v"[i // 10 % 4]


def _draw_training(axes, rows):
    for i, row in enumerate(rows):
        for number, result in enumerate(row.results):
            if points := validation_curve(result):
                axes.plot(
                    *zip(*points, strict=True),
                    color=f"C{i}",
                    marker=_marker(i),
                    markersize=3,
                    linewidth=1,
                    label=_plain(row.label) if number == 0 else None,
                )
    axes.set_xscale("log")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel(f"{MAIN} on validation")


def _draw_parameters(axes, rows):
    for i, row in enumerate(rows):
        if not row.values(MAIN):
            continue
        size, value = row.average("parameters"), row.mean(MAIN)
        bounds = row.interval(MAIN)
        # RecBole's values are rounded, so they may lie outside an interval of width zero.
        error = [[max(0, value - bounds[0])], [max(0, bounds[1] - value)]] if bounds else None
        if size > 1:
            axes.errorbar(
                size, value, yerr=error, marker=_marker(i), color=f"C{i}", capsize=3, linestyle="", label=_plain(row.label)
            )
        else:  # RecBole gives models that learn nothing (Pop, ItemKNN) one parameter for the optimizer.
            axes.axhline(value, color=f"C{i}", linestyle="--", label=_plain(f"{row.label} (none)"))
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel(f"{MAIN} on test")


def codebook_heat_map(rows, metric, bigger, file):
    """Draw the best validation score at each size and depth of the codebooks.

    Args:
        rows: dicts with ``codebook_size``, ``codebook_depth`` and the metric.
        bigger: whether a higher metric is better.
    """
    frame = pd.DataFrame(rows)
    best = frame.groupby(["codebook_depth", "codebook_size"])[metric].agg("max" if bigger else "min").unstack()
    figure = _figure(1.6 + 1.1 * best.shape[1], 1.4 + 0.8 * best.shape[0])
    axes = figure.subplots()
    image = axes.imshow(best.to_numpy(), aspect="auto", origin="lower")
    axes.set_xticks(range(best.shape[1]), best.columns)
    axes.set_yticks(range(best.shape[0]), best.index)
    axes.set_xlabel("codes per level")
    axes.set_ylabel("levels")
    axes.set_title(f"validation {metric}")
    middle = (best.max().max() + best.min().min()) / 2
    for y, values in enumerate(best.to_numpy()):
        for x, value in enumerate(values):
            if pd.notna(value):
                colour = "white" if value < middle else "black"
                axes.text(x, y, f"{value:.4f}", ha="center", va="center", color=colour)
    figure.colorbar(image)
    _save(figure, file)


def collision_scatter(rows, metric, file):
    """Draw the validation score over the share of the items that share their codes; labels are codebook sizes.

    Args:
        rows: dicts with ``codebook_size``, ``codebook_depth``, ``collision_rate`` and the metric.
    """
    figure = _figure(6, 4)
    axes = figure.subplots()
    frame = pd.DataFrame(rows)
    for depth, group in frame.groupby("codebook_depth"):
        axes.scatter(group["collision_rate"], group[metric], label=f"{depth} levels")
        for size, *point in group[["codebook_size", "collision_rate", metric]].itertuples(index=False):
            axes.annotate(size, point, textcoords="offset points", xytext=(4, 4))
    axes.set_xlabel("collision rate")
    axes.set_ylabel(f"validation {metric}")
    axes.legend()
    _save(figure, file)
