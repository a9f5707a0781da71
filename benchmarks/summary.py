"""Draw the pictures and write the tables of the pages from the result files in ``benchmarks/results``; nothing is trained.

A table of a page is between ``<!-- table NAME -->`` and ``<!-- end -->``; the text between them is replaced.

python benchmarks/summary.py
"""

import argparse
import functools
import json
import re
from pathlib import Path

import numpy as np
import yaml
from tabulate import tabulate

from recbole_tiger.report.leaderboard import difference, leaderboard, published_rows, rows_of
from recbole_tiger.report.results import WITHOUT_HISTORY, read_results
from recbole_tiger.report.statistics import RANGES, interval, metric_per_user

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATASETS = {"amazon-beauty": "Beauty", "amazon-sports-outdoors": "Sports", "amazon-toys-games": "Toys"}
MAIN = ("recall@10", "ndcg@10")
PAPER = "TIGER, paper (published)"
CHART = [PAPER, "SASRec", "TIGER", "TIGER-trie", "TIGER-text", "VQRec-text"]
# Pairs for differences, first minus second.
PAIRS = [
    *((label, "SASRec") for label in ("VQRec-text", "VQRec-history", "TIGER-text", "TIGER-trie", "TIGER", "FDSA")),
    ("VQRec-text", "VQRec-history"),
    ("VQRec-history-transfer", "VQRec-text"),
    ("VQRec-text", "TIGER-text"),
    *((label, "TIGER") for label in ("TIGER-trie", "TIGER-rq-kmeans", "FDSA")),
    ("TIGER-text", "FDSA"),
    ("TIGER-trie", "FDSA"),
]
COLOURS = {
    PAPER: "white",
    "SASRec": "#7f8c9a",
    "TIGER": "#f0b45a",
    "TIGER-trie": "#e07b39",
    "TIGER-text": "#b03a2e",
    "VQRec-text": "#6a4c93",
    "FDSA": "#5b8fb9",
    "GRU4Rec": "#8fbf8f",
}
LATER = "#2b6cb0"
LATER_TARGETS = "left out, later day"
NO_HISTORY_BIAS = ", no `history_bias`"
# Columns of the tests with the history in the lists and left out, with their names in the rows of without_history.py.
LEFT_IN, LEFT_OUT = "in the lists", "left out"
HISTORY_KEYS = {LEFT_IN: "as it is", LEFT_OUT: "without history", LATER_TARGETS: "without history, later day"}
SHARES = ("history among the first", "history among the 10")


def read(name):
    """Read a JSON file of ``benchmarks/results``."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@functools.cache
def rows(dataset, folder="leaderboard", test=""):
    """Rows of the leaderboard by label: published numbers of the paper, and the runs of a folder, best first on validation.

    Args:
        test: as in :func:`rows_of`.
    """
    results = [result for result in read_results(RESULTS / folder) if result["dataset"] == dataset]
    found = {row.label: row for row in rows_of(results, RESULTS / folder, test)}
    paper = next(row for row in published_rows(dataset) if row.label == "TIGER" and "paper" in row.source)
    return {PAPER: paper, **found}


def number_text(value, digits=4):
    """Format a share without the zero before its point."""
    return f"{value:.{digits}f}".removeprefix("0") if value >= 0 else f"-{number_text(-value, digits)}"


def metrics_text(values):
    """Format Recall@10 / NDCG@10."""
    return " / ".join(map(number_text, values))


def means_text(row, kept):
    """Format Recall@10 / NDCG@10 of the users ``kept``."""
    return metrics_text([row.per_user(metric)[kept].mean() for metric in MAIN])


def differences_text(row, against, kept=slice(None)):
    """The differences of a row's metrics from another's with their p-values, for all or some of the users."""
    differences = [difference(row, against, metric, kept) for metric in MAIN]
    return " / ".join(
        f"{'+' if by >= 0 else ''}{number_text(by)} ({'p < .001' if p < 0.001 else f'p {number_text(p, 3)}'})"
        for by, p in differences
    )


def markdown(lines):
    """A table of dicts with formatted cells."""
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


# --- tables ---


def results_table():
    """The paper's numbers and three models on three datasets."""
    lines = []
    for dataset in DATASETS:
        of_dataset, line = rows(dataset), {"Recall@10 / NDCG@10": dataset}
        for label in (PAPER, "SASRec", "TIGER-text", "VQRec-text"):
            row = of_dataset[label]
            seeds = f" ({len(row.results)} seeds)" if len(row.results) > 1 else ""
            line[label] = metrics_text([row.mean(metric) for metric in MAIN]) + seeds
        lines.append(line)
    return markdown(lines)


def runs_table():
    """Every run of the leaderboard: its scores, epochs and conditions."""
    folder, lines = RESULTS / "leaderboard", []
    conditions = yaml.safe_load((folder / "conditions.yaml").read_text(encoding="utf-8"))
    order = {label: i for i, label in enumerate(["TIGER-text", "TIGER-trie", "TIGER", "TIGER-rq-kmeans", "SASRec"])}
    for dataset, name in DATASETS.items():
        found = [row for row in rows(dataset).values() if row.results]
        for row in sorted(found, key=lambda row: order.get(row.label, len(order))):
            for result, ranks in zip(row.results, row.ranks, strict=True):
                low, high = interval(metric_per_user(ranks, "ndcg@10"))
                ran = result["prepare_seconds"] + result["train_seconds"] + result["eval_seconds"]
                ran += sum(epoch.get("eval_seconds", 0) for epoch in result["epoch_log"])
                machine, beside = conditions.get(dataset, {}).get(row.label, {}).get(result["seed"], ("", ""))
                mark = "T" * result["out_of_time"] + r"\*" * result["still_improving"]
                lines.append(
                    {
                        "dataset": name,
                        "model": row.label,
                        "seed": str(result["seed"]),
                        "test": metrics_text([result["test_result"][metric] for metric in MAIN]),
                        "95 % of NDCG@10": f"{number_text(low)} to {number_text(high)}",
                        "validation": metrics_text([result["best_valid_result"][metric] for metric in MAIN]),
                        "best epoch": f"{result['best_epoch'] + 1} of {result['epochs']}{mark}",
                        "minutes": f"{ran / 60:.0f}",
                        "threads": str(result["hardware"]["threads"]),
                        "precision": "bf16" if result["settings"].get("enable_amp") else "float32",
                        "machine": machine,
                        "beside it": beside,
                    }
                )
    return markdown(lines)


def differences_table():
    """Differences between models, with the p-value of a paired bootstrap over users."""
    lines = []
    for first, second in PAIRS:
        line = {"first minus second": f"{first} - {second}"}
        for dataset, name in DATASETS.items():
            of_dataset = rows(dataset)
            line[name] = differences_text(of_dataset[first], of_dataset[second])
        lines.append(line)
    return markdown(lines)


def protocols_table():
    """The recipes of VQRec minus SASRec: with and without the history, for all and later targets."""
    lines = []
    for label in ("VQRec-text", "VQRec-history", "VQRec-history-transfer"):
        for test, history in (("", "in the lists"), (WITHOUT_HISTORY, "left out")):
            for targets in ("all", "of a later day"):
                line = {"minus SASRec": label, "history": history, "targets": targets}
                for dataset, name in DATASETS.items():
                    of_dataset = rows(dataset, test=test)
                    row = of_dataset[label]
                    kept = slice(None) if targets == "all" else row.later_day
                    line[name] = differences_text(row, of_dataset["SASRec"], kept)
                lines.append(line)
    return markdown(lines)


def starts_table(label):
    """VQRec-history whose code embeddings start at random, and the row ``label`` with another start."""
    lines = []
    for dataset, name in DATASETS.items():
        of_dataset = rows(dataset)
        compared = random, other = of_dataset["VQRec-history"], of_dataset[label]
        for targets, kept in (("all", slice(None)), ("of a later day", other.later_day)):
            lines.append(
                {
                    "dataset": name,
                    "targets": targets,
                    **{row.label: means_text(row, kept) for row in compared},
                    "difference": differences_text(other, random, kept),
                }
            )
    return markdown(lines)


def beauty_table():
    """The whole leaderboard of amazon-beauty."""
    published = published_rows("amazon-beauty")
    return leaderboard([*published, *(row for row in rows("amazon-beauty").values() if row.results)], "markdown")


def ties():
    """Per model label, seed, metrics with the order of the file, and their means and deviations over drawn orders."""
    labels = ["VQRec-text", "SASRec", "TIGER-text", f"TIGER-text{NO_HISTORY_BIAS}"]
    for label in labels:
        found = read(f"amazon-beauty-{label.replace(NO_HISTORY_BIAS, '-no-history-bias')}-ties.json")
        first, *drawn = found["rows"]
        values = np.array([[row[metric] for metric in MAIN] for row in drawn])
        yield label, found["seed"], [first[metric] for metric in MAIN], values.mean(axis=0), values.std(axis=0, ddof=1)


def ties_table():
    """Metrics with the order of the file and with orders drawn anew."""
    return markdown(
        [
            {
                "Recall@10 / NDCG@10": label,
                "seed": str(seed),
                "as in the file": metrics_text(before),
                "drawn anew": metrics_text(mean),
                "standard deviation over 5 draws": metrics_text(deviation),
                "lost": " / ".join(f"{1 - after / old:.0%}" for old, after in zip(before, mean, strict=True)),
            }
            for label, seed, before, mean, deviation in ties()
        ]
    )


def days_table():
    """Metrics by whether the target is of the same day as the item before it."""
    lines = []
    for dataset, name in DATASETS.items():
        found = [row for row in rows(dataset).values() if row.later_day is not None]
        share = found[0].later_day.mean()
        line = {"dataset": name, "model": "share of the targets"}
        lines.append({**line, "later day": number_text(share, 3), "same day": number_text(1 - share, 3)})
        for row in found:
            line = {"dataset": name, "model": row.label}
            lines.append({**line, "later day": means_text(row, row.later_day), "same day": means_text(row, ~row.later_day)})
    return markdown(lines)


def histories():
    """Test metrics with the history in the lists and left out, one dict per row of the page.

    Models that ``run`` tested under both protocols have the numbers of their result files; others those of
    ``without_history.py``, as means over the seeds.
    """
    measured = measured_histories()
    found = []
    for dataset, name in DATASETS.items():
        labels = [label for model in rows(dataset) if model != PAPER for label in (model, model + NO_HISTORY_BIAS)]
        for label in labels:
            of_script = measured.get((dataset, label), {})
            left_out = rows(dataset, test=WITHOUT_HISTORY).get(label)
            line = {"dataset": name, "model": label}
            tested = [run["seed"] for run in left_out.results] if left_out else []
            if tested:
                shares = means_of([of_script.get(seed, {}) for seed in tested], SHARES)
                found.append({**line, "seeds": tested, "shares": shares, **tested_history(rows(dataset)[label], left_out)})
            if others := {seed: row for seed, row in of_script.items() if seed not in tested}:
                means = {
                    column: means_of(others.values(), [f"{metric} {key}" for metric in MAIN])
                    for column, key in HISTORY_KEYS.items()
                }
                found.append({**line, "seeds": list(others), "shares": means_of(others.values(), SHARES), **means})
    return found


def measured_histories():
    """Rows of ``without_history.py``: (dataset, label of the page) -> seed -> row."""
    files = [(f"{dataset}-without-history.json", "") for dataset in DATASETS]
    files.append(("TIGER-text-no-history-bias-without-history.json", NO_HISTORY_BIAS))
    found = {}
    for file, suffix in files:
        for row in read(file)["rows"]:
            found.setdefault((row["dataset"], row["model"] + suffix), {})[row["seed"]] = row
    return found


def tested_history(left_in, left_out):
    """Metrics of the runs of one row under both protocols."""
    seeds = [run["seed"] for run in left_out.results]
    kept = [i for i, run in enumerate(left_in.results) if run["seed"] in seeds]
    return {
        LEFT_IN: [np.take(left_in.values(metric), kept).mean() for metric in MAIN],
        LEFT_OUT: [left_out.mean(metric) for metric in MAIN],
        LATER_TARGETS: [left_out.per_user(metric)[left_out.later_day].mean() for metric in MAIN],
    }


def means_of(found, keys):
    """Mean over dicts of the value of each key; None if one of them lacks a key."""
    if any(key not in row for row in found for key in keys):
        return None
    return [np.mean([row[key] for row in found]) for key in keys]


def history_table():
    """Metrics with the items of the history in the lists and left out."""
    lines = []
    for row in histories():
        line = {"dataset": row["dataset"], "model": row["model"], "seed": ", ".join(map(str, row["seeds"]))}
        line.update((column, metrics_text(row[column]) if row[column] else "") for column in HISTORY_KEYS)
        shares = map(number_text, row["shares"], (3, 3)) if row["shares"] else ("", "")
        line.update(zip(("first places", "first ten"), shares, strict=True))
        lines.append(line)
    return markdown(lines)


def groups_table(kind, names):
    """Test Recall@10 of every model in the groups of targets of ``rare_items.py``."""
    lines = []
    for dataset, name in DATASETS.items():
        for row in read(f"{dataset}-rare-items.json")[kind]:
            line = {"dataset": name, "model": row["model"]}
            lines.append({**line, **{title: number_text(row[key], 3) for key, title in names.items()}})
    return markdown(lines)


def occurrences_table():
    """Recall@10 by how often the target occurs in training, as a table."""
    return groups_table("rows", {name: name for name in RANGES.values()})


def pairs_table():
    """Recall@10 by whether the target follows an item of the history in training."""
    return groups_table("pairs", {"in order": "after", "reversed": "only before", "in none": "never"})


IDENTIFIERS = {
    "TIGER": "RQ-VAE, 3 x 256",
    "TIGER-rq-kmeans": "residual k-means, 3 x 256",
    "TIGER-vq": "vq, 256 codes",
    "TIGER-opq": "opq, 3 x 256",
    "TIGER-hierarchical-kmeans": "hierarchical k-means, 10 branches",
    "TIGER-atomic": "atomic, one code per item",
    "TIGER-string": "string, digits of an arbitrary number",
    "TIGER-lsh": "hashes of the embedding, 3 x 256",
    "TIGER-random": "random, 3 x 256",
}


def identifiers_table():
    """TIGER with each kind of ID in the same budget, best first by the mean validation NDCG@10 over seeds."""
    found = {label: row for label, row in rows("amazon-beauty", "identifiers").items() if label != PAPER}
    lines = []
    for label, row in found.items():
        low, high = row.interval("ndcg@10")
        lines.append(
            {
                "IDs": IDENTIFIERS[label],
                "validation": number_text(row.average("best_valid_score")),
                "test": metrics_text([row.mean(metric) for metric in MAIN]),
                "95 % of NDCG@10": f"{number_text(low)} to {number_text(high)}",
                "each seed": ", ".join(map(number_text, row.values("ndcg@10"))),
                "later day": means_text(row, row.later_day),
                "parameters": f"{row.average('parameters') / 1e6:.2f} M",
                "training s": f"{row.average('train_seconds'):.0f}",
            }
        )
    return markdown(lines)


LIKELIHOODS = {
    "TIGER-text, amazon-beauty": "amazon-beauty-TIGER-text-likelihood.json",
    "TIGER, amazon-toys-games": "amazon-toys-games-TIGER-likelihood.json",
}
LEVELS = {"level 1": "level 1", "level 2": "level 2", "level 3": "level 3", "level 4": "collision level"}


def nats_table():
    """Negative log-likelihood of the targets, level by level."""
    lines = []
    for model, file in LIKELIHOODS.items():
        for row in read(file)["rows"]:
            levels = {title: f"{row[key]:.2f}" for key, title in LEVELS.items()}
            lines.append({"model": model, "targets of": row["targets of"], **levels, "item": f"{row['item']:.2f}"})
    return markdown(lines)


BEAMS = {
    "TIGER-text, amazon-beauty": "amazon-beauty-TIGER-text-beam-vs-exact.json",
    "TIGER of three epochs, amazon-beauty": "amazon-beauty-beam-vs-exact.json",
    "TIGER, amazon-toys-games": "amazon-toys-games-TIGER-beam-vs-exact.json",
}


def beam_table():
    """Beams of several widths and exact scores."""
    lines = []
    for model, file in BEAMS.items():
        found = read(file)
        for row in found["rows"]:
            share, speed = row["share of the exact top 10"], row["users/s"]
            lines.append(
                {
                    "model": model,
                    "users": str(found["users"]),
                    "scoring": row["scoring"],
                    "Recall@10": number_text(row["recall@10"], 3),
                    "share of the exact top 10": "1" if share == 1 else number_text(share, 3),
                    "users/s": f"{speed:.1f}" if speed < 10 else f"{speed:.0f}",
                }
            )
    return markdown(lines)


def scale_table():
    """Time and memory by the number of items."""
    lines = []
    for row in read("scale.json")["catalogues"]:
        trie = row["trie_s"]
        lines.append(
            {
                "items": f"{row['items']:,}",
                "interactions": f"{row['interactions']:,}",
                "encode text, hours": f"{row['items'] / texts_per_second() / 3600:.2f}",
                "tokenize s": f"{row['tokenize_s']:.1f}",
                "tokenize GB": f"{row['tokenize_peak_rss_bytes'] / 1e9:.2f}",
                "dataset s": f"{row['dataset_s']:.1f}",
                "trie s": f"{trie:.3f}" if trie < 0.01 else f"{trie:.2f}",
                "trie bytes/item": f"{row['trie_bytes_per_item']:.1f}",
                "targets/s": f"{row['targets_per_s']:.0f}",
                "epoch s": f"{row['epoch_s']:,.0f}",
                "users/s": f"{row['users_per_s']:.0f}",
                "peak GB": f"{row['peak_rss_bytes'] / 1e9:.2f}",
            }
        )
    return markdown(lines)


def texts_per_second():
    """Texts per second of the default encoder on two threads (``speed.py``)."""
    return read("speed.json")["preparation"]["encoding_items_per_second"]


TABLES = {
    "results": results_table,
    "runs": runs_table,
    "differences": differences_table,
    "protocols": protocols_table,
    "from-text": functools.partial(starts_table, "VQRec-text"),
    "pretraining": functools.partial(starts_table, "VQRec-history-transfer"),
    "amazon-beauty": beauty_table,
    "ties": ties_table,
    "days": days_table,
    "history": history_table,
    "occurrences": occurrences_table,
    "pairs": pairs_table,
    "nats": nats_table,
    "beam": beam_table,
    "identifiers": identifiers_table,
    "scale": scale_table,
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(\n<!-- end -->)", flags=re.DOTALL)


def with_tables(text):
    """The text of a page with its tables replaced."""
    return MARKED.sub(lambda found: f"{found.group(1)}\n{TABLES[found.group(2)]()}\n{found.group(3)}", text)


# --- pictures ---


def figure_of(width, height):
    """A figure without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def style_axes(axes, grid="y"):
    """Remove the upper and right lines of axes and add a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)


def draw_quality():
    """Bars of test NDCG@10 with intervals over users."""
    figure = figure_of(9, 4)
    axes = figure.subplots()
    width = 0.8 / len(CHART)
    for place, dataset in enumerate(DATASETS):
        of_dataset = rows(dataset)
        for i, label in enumerate(CHART):
            row = of_dataset[label]
            value, bounds = row.mean("ndcg@10"), row.interval("ndcg@10") if row.results else None
            x = place + (i - (len(CHART) - 1) / 2) * width
            published = {"hatch": "///"} if label == PAPER else {}
            axes.bar(
                x,
                value,
                width * 0.92,
                color=COLOURS[label],
                edgecolor="#555555",
                linewidth=0.6,
                label=label if place == 0 else None,
                **published,
            )
            if bounds:
                error = [[value - bounds[0]], [bounds[1] - value]]
                axes.errorbar(x, value, yerr=error, color="black", capsize=3, linewidth=1)
            axes.annotate(
                number_text(value),
                (x, bounds[1] if bounds else value),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
    axes.set_xticks(range(len(DATASETS)), DATASETS)
    axes.set_ylabel("NDCG@10 on test")
    axes.set_ylim(0, 0.072)
    style_axes(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(CHART), frameon=False)
    return figure


def dumbbells(axes, lines, names):
    """Draw two joined points per line.

    Args:
        lines: (label, first, second), the first on top. names: of the two points.
    """
    for y, (_, first, second) in enumerate(reversed(lines)):
        axes.plot([first, second], [y, y], color="#bbbbbb", linewidth=3, zorder=1)
        for x, colour, name in ((first, "#7f8c9a", names[0]), (second, LATER, names[1])):
            axes.scatter(x, y, s=55, color=colour, zorder=2, label=name if y == 0 else None)
            left = (name == names[0]) == (first <= second)
            axes.annotate(
                number_text(x),
                (x, y),
                xytext=(-7 if left else 7, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8,
            )
    axes.set_yticks(range(len(lines)), [label for label, *_ in reversed(lines)])
    axes.margins(x=0.28)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    style_axes(axes, "x")


def draw_ties():
    """Metrics as in the file and with the order within days drawn anew."""
    figure = figure_of(9, 2.6)
    for i, (axes, title) in enumerate(zip(figure.subplots(1, 2, sharey=True), ("Recall@10", "NDCG@10"), strict=True)):
        lines = [(label.replace("`", ""), before[i], after[i]) for label, _, before, after, _ in ties()]
        dumbbells(axes, lines, ("order of the file", "order within a day drawn anew"))
        axes.set_xlabel(f"{title}, amazon-beauty")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw_history():
    """Metrics with the items of the history in the lists and left out."""
    found = histories()
    labels = [f"{row['dataset']}: {row['model'].replace('`', '')}" for row in found]
    # A model that was tested in both ways has two rows, of different seeds.
    labels = [
        f"{label}, {'/'.join(map(str, row['seeds']))}" if labels.count(label) > 1 else label
        for label, row in zip(labels, found, strict=True)
    ]
    figure = figure_of(9, 0.22 * len(found))
    for i, (axes, title) in enumerate(zip(figure.subplots(1, 2, sharey=True), ("Recall@10", "NDCG@10"), strict=True)):
        lines = [(label, row[LEFT_IN][i], row[LEFT_OUT][i]) for label, row in zip(labels, found, strict=True)]
        dumbbells(axes, lines, (LEFT_IN, LEFT_OUT))
        axes.set_xlabel(f"{title} on test")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw_occurrences():
    """Recall@10 by how often the target occurs in training."""
    figure = figure_of(11, 3.8)
    for axes, dataset in zip(figure.subplots(1, len(DATASETS), sharey=True), DATASETS, strict=True):
        shares, *found = read(f"{dataset}-rare-items.json")["rows"]
        names = [name for name in shares if name != "model"]
        for row in found:
            if row["model"] in COLOURS:
                axes.plot(
                    names, [row[name] for name in names], "o-", markersize=4, color=COLOURS[row["model"]], label=row["model"]
                )
        axes.set_xticks(range(len(names)), [f"{name}\n({shares[name]:.0%})" for name in names], fontsize=8)
        axes.set_title(dataset, fontsize=10)
        axes.set_xlabel("occurrences in training (share of the targets)")
        style_axes(axes)
    figure.axes[0].set_ylabel("Recall@10 on test")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def draw_nats():
    """Nats of each level of an ID, on training, validation and test."""
    figure = figure_of(9, 3.2)
    colours = ("#1f4e79", "#4a86b8", "#9dc3e0", "#d9d9d9")
    for axes, (model, file) in zip(figure.subplots(1, 2, sharex=True), LIKELIHOODS.items(), strict=True):
        found = read(file)["rows"][::-1]
        left = np.zeros(len(found))
        for (key, title), colour in zip(LEVELS.items(), colours, strict=True):
            values = np.array([row[key] for row in found])
            axes.barh(range(len(found)), values, left=left, color=colour, label=title)
            for y, value in enumerate(values):
                if value > 0.4:
                    ink = "white" if colour in colours[:2] else "black"
                    axes.text(left[y] + value / 2, y, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
            left += values
        axes.set_yticks(range(len(found)), [row["targets of"] for row in found])
        axes.set_xlabel("nats of a target")
        axes.set_title(model, fontsize=10)
        style_axes(axes, "x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_way():
    """The steps from an item's text to a list; an illustration with made-up items."""
    figure = figure_of(11, 3.3)
    axes = figure.subplots()
    axes.set(xlim=(0, 110), ylim=(0, 33))
    axes.axis("off")
    codes = ("#b03a2e", "#e07b39", "#f0b45a")

    def box(x, y, text, colour="#f4f4f4", width=16.0, height=4.2, **options):
        from matplotlib.patches import FancyBboxPatch

        place, style = (x - width / 2, y - height / 2), "round,pad=0.1,rounding_size=0.8"
        axes.add_patch(FancyBboxPatch(place, width, height, boxstyle=style, facecolor=colour, edgecolor="#777777"))
        axes.text(x, y, text, ha="center", va="center", fontsize=8.5, **options)

    def arrow(x, end, y=15.0, text=""):
        axes.annotate("", (end, y), (x, y), arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.5})
        axes.text((x + end) / 2, y + 1.2, text, ha="center", va="bottom", fontsize=7.5, color="#444444")

    for x, title in ((9, "text"), (32, "embedding"), (51, "codes (semantic ID)"), (75, "trie"), (100, "list")):
        axes.text(x, 31, title, ha="center", fontsize=11, weight="bold")
    heights, names = (22, 15, 8), ("Rose hand cream", "Mint hand cream", "Nail scissors")
    ids = ((7, 3, 9), (7, 3, 4), (2, 5, 1))
    rng = np.random.default_rng(3)
    for y, name, own in zip(heights, names, ids, strict=True):
        box(9, y, name)
        values = rng.random(10)
        for i, value in enumerate(values):
            axes.add_patch(_cell(27 + i, y - 1.2, (value, 0.45, 1 - value)))
        for i, (code, colour) in enumerate(zip(own, codes, strict=True)):
            box(47 + i * 4, y, str(code), colour, width=3, height=3.4, color="white", weight="bold")
    arrow(18, 26, text="sentence\nencoder")
    arrow(38, 44.5, text="quantizer")
    arrow(58, 63.5)
    nodes = {(): (66, 15), (7,): (72, 19), (2,): (72, 8), (7, 3): (78, 19), (2, 5): (78, 8)}
    nodes |= {(7, 3, 9): (84, 22), (7, 3, 4): (84, 15), (2, 5, 1): (84, 8)}
    for node, (x, y) in nodes.items():
        if node:
            parent = nodes[node[:-1]]
            axes.plot([parent[0], x], [parent[1], y], color="#999999", linewidth=1.5, zorder=0)
            box(x, y, str(node[-1]), codes[len(node) - 1], width=3, height=3.4, color="white", weight="bold")
        else:
            axes.scatter(x, y, s=40, color="#444444")
    arrow(86.5, 91.5, text="beam\nsearch")
    for y, name, score in zip(heights, (names[1], names[0], names[2]), ("-2.1", "-2.8", "-6.4"), strict=True):
        box(100, y, f"{name}  {score}")
    note = "The Transformer reads the codes of a user's history and gives a probability to each next code.  (Illustration.)"
    axes.text(55, 1.5, note, ha="center", fontsize=9, color="#444444")
    return figure


def _cell(x, y, colour):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 2.4, facecolor=colour, edgecolor="white", linewidth=0.5)


PICTURES = {
    "way": draw_way,
    "quality": draw_quality,
    "ties": draw_ties,
    "history": draw_history,
    "occurrences": draw_occurrences,
    "nats": draw_nats,
}


def main(argv=None):
    """Replace the tables of the pages and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=RESULTS / "summary", type=Path, help="folder of the pictures")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().savefig(args.output / f"{name}.png", dpi=110)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := with_tables(text)) != text:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
