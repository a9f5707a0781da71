"""Leaderboards, made from result files only."""

import csv
import io
import json
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from tabulate import tabulate

from recbole_tiger.errors import TigerError
from recbole_tiger.report.results import WITHOUT_HISTORY, read_ranks
from recbole_tiger.report.statistics import LEVEL, has_gain, interval, metric_per_user, paired_p
from recbole_tiger.settings.properties import ADDED_LATER, ADDED_LATER_TO_RUN_KEY, nearest, property_file, protocol

METRICS = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in (5, 10, 20)]
# The metric whose interval is in the tables; the CSV has the intervals of all metrics of the tables.
MAIN = "ndcg@10"
SIGNIFICANT = 0.05
# The metrics reported by the day of the target.
DAY_METRICS = ("recall@10", MAIN)
# Suffix of the titles of tests with the users' history left out of the lists.
HISTORY_LEFT_OUT = "history left out"

# Settings that filter interactions, or give files split beforehand.
FILTERS = ("benchmark_filename", "rm_dup_inter", "val_interval", "user_inter_num_interval", "item_inter_num_interval")
# Settings that decide which interactions count as positive, in the mode "labeled".
LABELS = ("LABEL_FIELD", "threshold")
# Settings that decide on which targets users are validated and tested, and so which results can be in one table.
PROTOCOL = ("eval_args", "repeatable", "exclude_history", *FILTERS, "filter_inter_by_user_or_item")
PROTOCOL += ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", *LABELS)

# What results of one table share besides the dataset: the hash of its files, the ranked items, and the protocol.
COMPARED = ("data_hash", "items", *PROTOCOL)

# What the marks of a row say, by the field of result files or the setting that is true for one of its runs.
MARKS = {
    "out_of_time": "T the limit of time (max_minutes) ended training",
    "still_improving": "* the budget of epochs or minutes ended here, at the model's best epoch so far: it was still "
    "improving",
    "enable_amp": "H in half precision (enable_amp), where the same minutes hold more epochs",
}


@dataclass(frozen=True)
class Row:
    """A row of a leaderboard: the runs of a model with one set of settings over seeds, or published values.

    Attributes:
        label: its name.
        results: dicts of result files.
        users, ranks: tokens [users] and int array [seeds, users], or None if the ranks of a run are missing.
        later_day: bool array [users], whether the target is of a later day than the user's history; or None.
        published: metric -> value, if there are no runs.
        source: the publication.
    """

    label: str
    results: tuple = ()
    users: np.ndarray | None = None
    ranks: np.ndarray | None = None
    later_day: np.ndarray | None = None
    published: dict = field(default_factory=dict)
    source: str = ""

    def values(self, metric):
        """The metric on the test set for each seed, without RecBole's rounding if ranks are known; [] if unknown."""
        found = [result["test_result"].get(metric) for result in self.results] or [self.published.get(metric)]
        if None in found:
            return []
        return metric_per_user(self.ranks, metric).mean(axis=1).tolist() if self.has_ranks(metric) else found

    def has_ranks(self, metric):
        """Whether the metric is known for each user."""
        return self.ranks is not None and has_gain(metric)

    def mean(self, metric):
        """Mean over seeds, or None."""
        found = self.values(metric)
        return float(np.mean(found)) if found else None

    def deviation(self, metric):
        """Standard deviation over seeds, or None with fewer than two seeds."""
        found = self.values(metric)
        return float(np.std(found, ddof=1)) if len(found) > 1 else None

    def per_user(self, metric):
        """The metric for each user, averaged over seeds: float array [users]."""
        return metric_per_user(self.ranks, metric).mean(axis=0)

    def interval(self, metric):
        """Bootstrap interval over users of the mean over seeds.

        Without ranks, the interval in the result file of a single run; None for several runs.
        """
        if not self.values(metric):
            return None
        if not self.has_ranks(metric):
            return self.results[0].get("intervals", {}).get(metric) if len(self.results) == 1 else None
        return interval(self.per_user(metric))

    def any(self, mark):
        """Whether the field or setting ``mark`` is true for any run."""
        return any(result.get(mark) or result["settings"].get(mark) for result in self.results)

    @property
    def marks(self):
        """The marks of its epochs, from MARKS: whether the time limit ended a run, and whether one was still improving."""
        return "T" * self.any("out_of_time") + "*" * self.any("still_improving")

    def average(self, name):
        """Mean over seeds of a field of the result files."""
        return float(np.mean([result[name] for result in self.results]))


def validation_curve(result):
    """Pairs of seconds of training and MAIN on validation, one per evaluation."""
    log = result["epoch_log"]
    seconds = accumulate(epoch["train_seconds"] for epoch in log)
    return [
        (second, epoch["valid_result"][MAIN])
        for second, epoch in zip(seconds, log, strict=True)
        if MAIN in epoch.get("valid_result", {})
    ]


def published_rows(dataset):
    """Rows of published values on a dataset (``properties/published.yaml``)."""
    return [
        Row(
            entry["label"],
            source=entry["source"],
            published={metric: entry[metric] for metric in METRICS if metric in entry},
        )
        for entry in property_file("published").get(dataset, [])
    ]


def _published_beside(result):
    """The published rows of a result's dataset; [] if the result has another protocol than the published values."""
    wanted = protocol()["eval_args"]
    if not result["settings"].get("repeatable", True):  # RecBole leaves the history out
        return []
    found = {**wanted, **(result["settings"].get("eval_args") or {})}
    modes = found["mode"].values() if isinstance(found["mode"], dict) else [found["mode"]]
    same = set(modes) == {wanted["mode"]} and all(found[key] == wanted[key] for key in ("split", "order"))
    whole = all(result["settings"].get(key) in (None, "[0,inf)") for key in FILTERS)
    return published_rows(result["dataset"]) if same and whole else []


def rows_of(results, folder, test=""):
    """Make the rows of one dataset, best first by the validation metric.

    If the runs have different validation metrics, the order is by a metric that all of them have, or else by the labels.

    Args:
        results: dicts of one dataset, as in result files.
        folder: folder of the files with their ranks.
        test: WITHOUT_HISTORY for the test with the history left out, with the results that have it; "" for the other test.
    """
    if test:
        results = [
            {**result, "test_result": result[f"test_result{test}"], "intervals": result.get(f"intervals{test}", {})}
            for result in results
            if result.get(f"test_result{test}")
        ]
    groups = {}
    # Of two runs with equal settings and seed, that of the later version stays: it lists more settings.
    for result in sorted(results, key=lambda result: (result["seed"], len(result["settings"]))):
        settings = {key: value for key, value in settings_of(result).items() if key != "seed"}
        runs = groups.setdefault((result["label"], json.dumps(settings, sort_keys=True)), {})
        runs[result["seed"]] = result
    groups = {key: list(runs.values()) for key, runs in groups.items()}
    rows = [_row(_name(label, runs[0], groups), runs, folder, f"ranks{test}") for (label, _), runs in groups.items()]
    rows = _with_days(rows)
    chosen_by = {result["settings"].get("valid_metric") for result in results}
    shared = []
    if len(chosen_by) > 1:
        shared = [name for name in results[0]["best_valid_result"] if all(name in r["best_valid_result"] for r in results)]

    def order(row):
        if len(chosen_by) > 1 and not shared:
            return row.label
        if shared:
            name = MAIN if MAIN in shared else shared[0]
            return -np.mean([result["best_valid_result"][name] for result in row.results]), row.label
        return -row.average("best_valid_score") * (1 if row.results[0]["valid_score_bigger"] else -1), row.label

    return sorted(rows, key=order)


def settings_of(result):
    """The settings of a run, and hashes of the user's files that it read; they distinguish runs with the same label."""
    inputs = "/".join(digest[:8] for digest in result.get("inputs", []))
    later = ADDED_LATER_TO_RUN_KEY if "semantic_ids" in result["settings"] else ADDED_LATER
    return {**later, **result["settings"], **({"inputs": inputs} if inputs else {})}


def _name(label, result, groups):
    """The label; if other rows have it too, followed by the settings in which the rows differ."""
    own, others = settings_of(result), [settings_of(runs[0]) for (other, _), runs in groups.items() if other == label]
    keys = sorted({key for settings in others for key in settings} - {"seed"})
    differ = [key for key in keys if any(settings.get(key) != others[0].get(key) for settings in others)]
    suffix = ", ".join(f"{key}={own.get(key)}" for key in differ)
    return f"{label} ({suffix})" if suffix else label


def _row(label, runs, folder, name):
    files = [Path(folder) / run["ranks"] for run in runs if run["ranks"]]
    kept = [read_ranks(file) for file in files if file.is_file()]
    users = kept[0]["users"] if kept else None
    if len(kept) < len(runs) or not all(name in arrays and np.array_equal(arrays["users"], users) for arrays in kept):
        return Row(label, tuple(runs))
    later_day = next((arrays["later_day"] for arrays in kept if "later_day" in arrays), None)
    return Row(label, tuple(runs), users, np.stack([arrays[name] for arrays in kept]), later_day)


def _with_days(rows):
    """Rows of one dataset; those without the days of their targets, from older versions, get them from another row."""
    known = next((row for row in rows if row.later_day is not None), None)
    if known is None:
        return rows
    return [replace(row, later_day=known.later_day) if _paired(row, known) else row for row in rows]


@dataclass(frozen=True)
class Ranking:
    """The best rows by one metric.

    Attributes:
        best, second: indices of rows, or None.
        p: p-value of the paired bootstrap of the best against the second row; None if unknown.
    """

    best: int | None
    second: int | None
    p: float | None

    @property
    def significant(self):
        """Whether the difference between the best and the second row is significant."""
        return self.p is not None and self.p < SIGNIFICANT


def ranking(rows, metric):
    """Rank the rows with runs by a metric."""
    known = [i for i, row in enumerate(rows) if row.results and row.values(metric)]
    order = sorted(known, key=lambda i: rows[i].mean(metric), reverse=True)
    best, second = [*order, None, None][:2]
    p = None
    if second is not None and rows[best].mean(metric) > rows[second].mean(metric):
        _, p = difference(rows[best], rows[second], metric)
    return Ranking(best, second, p)


def _paired(first, second):
    """Whether two rows have ranks of the same users."""
    return first.ranks is not None and second.ranks is not None and np.array_equal(first.users, second.users)


def difference(row, against, metric, kept=slice(None)):
    """The difference of a row's metric from another's, as means over seeds, and its p-value (paired bootstrap over users).

    Args:
        kept: bool array [users] of the users to compare; all by default.

    Returns:
        difference, p: floats; None, None if their users cannot be paired or the metric is unknown.
    """
    if not has_gain(metric) or not _paired(row, against) or not row.values(metric) or not against.values(metric):
        return None, None
    first, second = row.per_user(metric)[kept], against.per_user(metric)[kept]
    return float((first - second).mean()), paired_p(first, second)


@dataclass(frozen=True)
class Style:
    """A style of tables: tabulate's format, formats of titles and cells, and characters to escape."""

    tablefmt: str
    title: str
    best: str
    second: str
    dagger: str
    plus_minus: str
    escapes: dict = field(default_factory=dict)

    def text(self, text):
        """Escape special characters of the style."""
        return text.translate(str.maketrans(self.escapes))

    def table(self, cells, headers):
        """A table of formatted cells; a LaTeX table has the rules of booktabs."""
        headers = [self.text(header) for header in headers]
        table = tabulate(cells, headers, tablefmt=self.tablefmt, disable_numparse=True, stralign="right")
        # tabulate's own latex_booktabs would escape the cells again.
        for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
            table = table.replace("\\hline", rule, 1)
        return table


LATEX_NAMES = {"\\": "backslash", "^": "asciicircum", "~": "asciitilde", "<": "less", ">": "greater"}
STYLES = {
    "plain": Style("github", "{}\n", "{}", "{}", "†", " ± "),
    "markdown": Style("github", "## {}\n", "**{}**", "<ins>{}</ins>", "†", " ± ", {"|": "\\|", "*": "\\*", "<": "&lt;"}),
    "latex": Style(
        "latex_raw",
        "% {}",
        "\\textbf{{{}}}",
        "\\underline{{{}}}",
        "$^\\dagger$",
        " $\\pm$ ",
        {
            **{character: f"\\{character}" for character in "%&_#${}"},
            **{character: f"\\text{name}{{}}" for character, name in LATEX_NAMES.items()},
        },
    ),
}


def tested_metrics(rows):
    """Names of the metrics of a table: recall and NDCG of any run, or all metrics if there are none of these."""
    names = list(dict.fromkeys(name for row in rows for result in row.results for name in result["test_result"]))
    return [name for name in names if name.startswith(("recall@", "ndcg@"))] or names


def leaderboard(rows, style="plain"):
    """A table of one dataset.

    Args:
        rows: from :func:`rows_of`, after any published rows.
        style: a key of STYLES.

    Returns:
        str: one row per model: test metrics (mean ± standard deviation over seeds), the interval of MAIN over users, seeds,
        epochs, seconds of training, users per second of evaluation, parameters. Notes explain the marks.
    """
    metrics, style = tested_metrics(rows), STYLES[style]
    rankings = {metric: ranking(rows, metric) for metric in metrics}
    intervals = [row.interval(MAIN) for row in rows] if MAIN in metrics else []
    with_interval = any(intervals)
    sources = list(dict.fromkeys(row.source for row in rows if row.source))
    cells = [_cells(row, i, rankings, style, [intervals[i]] if with_interval else [], sources) for i, row in enumerate(rows)]
    headers = ["model", *metrics, *([f"{LEVEL:.0%} of {MAIN}"] if with_interval else [])]
    headers += ["seeds", "epochs", "train s", "users/s", "parameters"]
    return "\n\n".join([style.table(cells, headers), *_notes(rows, rankings, sources, style)])


def _cells(row, i, rankings, style, intervals, sources):
    cells = [style.text(row.label)]
    if row.source:
        cells[0] += f" [{sources.index(row.source) + 1}]"
    for metric, found in rankings.items():
        mean, deviation = row.mean(metric), row.deviation(metric)
        cell = "" if mean is None else f"{mean:.4f}" + ("" if deviation is None else f"{style.plus_minus}{deviation:.4f}")
        if i == found.best:
            cell = style.best.format(cell) + (style.dagger if found.significant else "")
        elif i == found.second:
            cell = style.second.format(cell)
        cells.append(cell)
    cells += [f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else "" for bounds in intervals]
    if not row.results:
        return [*cells, "", "", "", "", ""]
    epochs = sorted({result["epochs"] for result in row.results})
    return [
        *cells,
        str(len(row.results)),
        f"{epochs[0]}{f'-{epochs[-1]}' if len(epochs) > 1 else ''}{style.text(row.marks)}",
        f"{row.average('train_seconds'):.0f}{'H' * row.any('enable_amp')}",
        f"{row.average('eval_users_per_second'):.0f}",
        f"{row.average('parameters'):,.0f}",
    ]


def _notes(rows, rankings, sources, style):
    notes = [f"[{number}] published, not run here: {source}" for number, source in enumerate(sources, start=1)]
    notes += [note for mark, note in MARKS.items() if any(row.any(mark) for row in rows)]
    bare = [row.label for row in rows if row.ranks is None and any(result["ranks"] for result in row.results)]
    if bare:
        notes.append(f"{', '.join(bare)}: not compared user by user, because not all runs have ranks of the same users here")
    notes = [style.text(note) for note in notes]
    if any(found.significant for found in rankings.values()):
        notes.append(
            f"{style.dagger} " + style.text(f"better than the second: p < {SIGNIFICANT}, paired bootstrap over users")
        )
    return notes


def differences(rows, style, against):
    """A table of the differences of each model of one dataset from one of them, with p-values of a paired bootstrap.

    Args:
        rows, style: as in :func:`leaderboard`. against: the label of a row that has runs.

    Returns:
        str; "" if the dataset has no such row, or no other.
    """
    metrics, style, reference = tested_metrics(rows), STYLES[style], _reference(rows, against)
    if reference is None:
        return ""
    cells = []
    for row in rows:
        if row.results and row is not reference:
            found = [difference(row, reference, metric) for metric in metrics]
            cells.append([style.text(row.label), *("" if p is None else f"{by:+.4f} (p {p:.4f})" for by, p in found)])
    return style.table(cells, [f"minus {against}", *metrics]) if cells else ""


def by_day(rows, style="plain"):
    """A table of DAY_METRICS for targets on the same day as the user's history, and for targets on later days.

    Args:
        rows, style: as in :func:`leaderboard`.

    Returns:
        str; "" if the days are unknown for all rows, or all targets are of one kind.
    """
    style = STYLES[style]
    dated = [row for row in rows if row.later_day is not None and 0 < row.later_day.mean() < 1]
    known = [row for row in dated if all(map(row.values, DAY_METRICS))]
    if not known:
        return ""
    days = {"same day": False, "later day": True}
    values = np.array(
        [
            [row.per_user(metric)[row.later_day == later].mean() for metric in DAY_METRICS for later in days.values()]
            for row in known
        ]
    )
    best = values.argmax(axis=0)
    cells = [
        [style.text(row.label)]
        + [style.best.format(f"{value:.4f}") if i == best[j] else f"{value:.4f}" for j, value in enumerate(values[i])]
        for i, row in enumerate(known)
    ]
    note = (
        f"{known[0].later_day.mean():.1%} of the targets are of a later day than the user's history; for the others, the "
        f"order of the file decides which item of the day is the target"
    )
    headers = ["model", *(f"{metric}, {day}" for metric in DAY_METRICS for day in days)]
    return "\n\n".join([style.table(cells, headers), style.text(note)])


def tables_of_runs(results, folder):
    """The tables of runs on one dataset: of the test, and of the test with the history left out of the lists."""
    tables = []
    for test in ("", WITHOUT_HISTORY):
        if rows := rows_of(results, folder, test):
            tables += [*([f"{HISTORY_LEFT_OUT}:"] if test else []), leaderboard(rows), by_day(rows)]
    return "\n\n".join(filter(None, tables))


def _reference(rows, against):
    """The row with this label and with runs, or None."""
    return next((row for row in rows if row.results and row.label == against), None)


def leaderboard_csv(tables, against=None):
    """All datasets in one CSV table, with the intervals of all metrics of the tables.

    Args:
        tables: dict of title to list of rows, one per dataset and test, as in :func:`leaderboard`.
        against: the label of a row, to add the differences from that row and their p-values.
    """
    stream = io.StringIO()
    metrics = tested_metrics([row for rows in tables.values() for row in rows])
    suffixes = ["", " std", " low", " high", " p"]
    if against is not None:
        suffixes += [f" minus {against}", f" minus {against} p"]
    statistics = [f"{metric}{suffix}" for metric in metrics for suffix in suffixes]
    names = ["dataset", *COMPARED, "history", "model", "source", *statistics, "seeds", "epochs", *MARKS]
    names += ["threads", "train_seconds", "eval_users_per_second", "parameters"]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for title, rows in tables.items():
        shared = dict(zip(("dataset", *COMPARED), comparison(rows[-1].results[0]), strict=True))
        rankings = {metric: ranking(rows, metric) for metric in metrics}
        reference = _reference(rows, against)
        for i, row in enumerate(rows):
            masked = title.endswith(HISTORY_LEFT_OUT) or shared["repeatable"] == "false"
            history = "left out" if masked else "left in"
            line = {**shared, "history": history, "model": row.label, "source": row.source}
            for metric in metrics:
                low, high = row.interval(metric) or (None, None)
                p = rankings[metric].p if i == rankings[metric].best else None
                values = [row.mean(metric), row.deviation(metric), low, high, p]
                if against is not None:
                    values += difference(row, reference, metric) if reference else (None, None)
                for suffix, value in zip(suffixes, values, strict=True):
                    line[metric + suffix] = None if value is None else f"{value:.6g}"
            if row.results:
                line["seeds"] = len(row.results)
                line["epochs"] = f"{row.average('epochs'):g}"
                line |= {mark: row.any(mark) for mark in MARKS}
                threads = sorted({result["hardware"].get("threads", 0) for result in row.results})
                line["threads"] = "/".join(map(str, threads))
                for name in ("train_seconds", "eval_users_per_second", "parameters"):
                    line[name] = f"{row.average(name):.10g}"
            writer.writerow(line)
    return stream.getvalue()


def comparison(result):
    """What results have to share to be comparable: the dataset and the values of COMPARED, as text."""
    settings = {**ADDED_LATER, **result["settings"]}
    values = [json.dumps(settings.get(key), sort_keys=True).replace('"', "") for key in PROTOCOL]
    # If the item file is loaded, items without interactions are ranked too.
    from_file = "item" in (settings.get("load_col") or {})
    return result["dataset"], result["data_hash"], "of the item file" if from_file else "of the interactions", *values


def comparable(results):
    """Group results that are comparable: with the same dataset, files, filters, split and evaluation.

    Returns:
        dict of title to list of results; the title is the dataset's name, followed by the differences between the groups
        of the dataset if there are several.
    """
    groups = {}
    for result in results:
        groups.setdefault(comparison(result), []).append(result)
    titles = {}
    for dataset, *values in sorted(groups):
        others = [other[1:] for other in groups if other[0] == dataset]
        differing = [
            f", {name} {value}"
            for name, value, other_values in zip(("files", *COMPARED[1:]), values, zip(*others, strict=True), strict=True)
            if len(set(other_values)) > 1
        ]
        titles[dataset + "".join(differing)] = groups[(dataset, *values)]
    return titles


def tables_of(results, folder):
    """The rows of each table by its title: first published rows, then those of the results, best first.

    The table of a test is followed by that of the test with the history left out, if results have it.

    Args:
        results: dicts, as in result files. folder: the folder of these files.
    """
    tables = {}
    for title, group in comparable(results).items():
        tables[title] = [*_published_beside(group[0]), *rows_of(group, folder)]
        if rows := rows_of(group, folder, WITHOUT_HISTORY):
            tables[f"{title}, {HISTORY_LEFT_OUT}"] = rows
    return tables


def leaderboards(results, folder, style, against=None):
    """The tables of all datasets with their titles, or one CSV table.

    Args:
        results: dicts, as in result files. folder: the folder of these files.
        style: "markdown", "latex" or "csv".
        against: the label of a row, to add the differences of the other rows from it; or None.

    Raises:
        TigerError: no table has a row ``against``.
    """
    tables = tables_of(results, folder)
    if against is not None:
        labels = {row.label for rows in tables.values() for row in rows if row.results}
        if against not in labels:
            several = sorted(label for label in labels if label.startswith(f"{against} ("))
            known = f"; there are {' and '.join(map(repr, several))}" if several else nearest(against, sorted(labels))
            raise TigerError(f"no table has a row {against!r}{known}")
    if style == "csv":
        return leaderboard_csv(tables, against)
    untested = {
        f"{title}, {HISTORY_LEFT_OUT}": [result for result in group if not result.get(f"test_result{WITHOUT_HISTORY}")]
        for title, group in comparable(results).items()
    }
    parts = []
    for title, rows in tables.items():
        parts += [STYLES[style].title.format(title), leaderboard(rows, style) + "\n"]
        if against is not None and (table := differences(rows, style, against)):
            parts.append(table + "\n")
        if table := by_day(rows, style):
            parts.append(table + "\n")
        if untested.get(title):
            labels = {}
            for result in untested[title]:
                labels.setdefault(result["label"], set()).add(result["seed"])
            found = ", ".join(f"{label} (seed {' '.join(map(str, sorted(labels[label])))})" for label in sorted(labels))
            parts.append(f"not tested like this: {STYLES[style].text(found)}\n")
    return "\n".join(parts)
