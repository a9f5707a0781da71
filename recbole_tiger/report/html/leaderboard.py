"""The page of leaderboards: sortable tables, charts, settings, and differences between any two rows."""

import json
from itertools import combinations

import numpy as np

from recbole_tiger.report.html.page import number, write_page
from recbole_tiger.report.leaderboard import (
    MAIN,
    MARKS,
    comparison,
    difference,
    settings_of,
    tables_of,
    tested_metrics,
    validation_curve,
)
from recbole_tiger.report.statistics import LEVEL, RANGES, range_of

# Metrics whose differences are tested, or the last of a table without these; each p-value takes up to a second.
PAIRED = ("recall@10", MAIN)
# The metric of the chart by occurrences.
OCCURRENCES = "recall@10"


def write_leaderboard_page(file, results, folder, occurrences=None):
    """Write the page of result files.

    Args:
        file: path of the page.
        results: dicts, as in result files. folder: the folder of these files.
        occurrences: function that maps a result to the value of
            :func:`~recbole_tiger.runs.occurrences.target_occurrences`; None for no chart by occurrences.
    """
    found = {}

    def once(result):
        """The occurrences of a dataset's targets, for all of its tables."""
        key = comparison(result)
        if key not in found:
            found[key] = occurrences(result)
        return found[key]

    tables = [_table(title, rows, occurrences and once) for title, rows in tables_of(results, folder).items()]
    data = {"main": MAIN, "level": f"{LEVEL:.0%}", "tables": tables}
    write_page(file, "Leaderboard", "leaderboard.js", data)


def _table(title, rows, occurrences):
    metrics = tested_metrics(rows)
    run = [i for i, row in enumerate(rows) if row.results]
    pairs = {}
    paired = [metric for metric in PAIRED if metric in metrics] or metrics[-1:]
    for i, k in combinations(run, 2):
        found = {metric: difference(rows[i], rows[k], metric) for metric in paired}
        pairs[f"{i},{k}"] = {metric: [number(by), number(p)] for metric, (by, p) in found.items() if p is not None}
    return {
        "title": title,
        "metrics": metrics,
        "rows": [_row(row, metrics) for row in rows],
        "pairs": pairs,
        "notes": [note for mark, note in MARKS.items() if any(row.any(mark) for row in rows)],
        "occurrences": None if occurrences is None else _by_occurrences(rows, occurrences(rows[run[0]].results[0])),
    }


def _row(row, metrics):
    found = {"label": row.label, "source": row.source, "metrics": {}}
    for metric in metrics:
        if row.values(metric):
            low, high = row.interval(metric) or (None, None)
            values = row.mean(metric), row.deviation(metric), low, high
            found["metrics"][metric] = [number(value) for value in values]
    if not row.results:
        return found
    return {
        **found,
        "seeds": len(row.results),
        "epochs": number(row.average("epochs")),
        "marks": row.marks,
        "half": "H" * row.any("enable_amp"),
        "seconds": number(row.average("train_seconds")),
        "speed": number(row.average("eval_users_per_second")),
        "parameters": int(row.average("parameters")),
        "training": [[list(map(number, point)) for point in curve] for curve in map(validation_curve, row.results) if curve],
        "settings": {key: json.dumps(value) for key, value in sorted(settings_of(row.results[0]).items()) if key != "seed"},
    }


def _by_occurrences(rows, found):
    """The metric of the rows with ranks, by how often the target occurs in training, and the number of users by range."""
    if found is None:
        return None
    users, counts = found
    ranges = range_of(counts)
    curves = {}
    for i, row in enumerate(rows):
        if row.ranks is not None and row.values(OCCURRENCES) and np.array_equal(row.users, users):
            values = row.per_user(OCCURRENCES)
            curves[i] = [number(values[ranges == k].mean()) if (ranges == k).any() else None for k in range(len(RANGES))]
    if not curves:
        return None
    shares = np.bincount(ranges, minlength=len(RANGES)).tolist()
    return {"metric": OCCURRENCES, "ranges": list(RANGES.values()), "users": shares, "rows": curves}
