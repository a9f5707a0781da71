"""Result files, one JSON a run, and the tables made of them."""

import json
from pathlib import Path

from tabulate import tabulate

from recbole_tiger.errors import TigerError
from recbole_tiger.files import whole_file

SCHEMA = 1
REQUIRED = ("schema", "model", "label", "dataset", "seed", "best_valid_result", "test_result")


def write_result(result, file):
    """Write a result as JSON, whole or not at all."""
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read_result(file):
    """Read one result file.

    Raises:
        TigerError: it is cut short, lacks a field, or is of another schema.
    """
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TigerError(f"result file {file} is cut short or not JSON ({error}); delete it and run again") from error
    absent = [field for field in REQUIRED if not isinstance(result, dict) or field not in result]
    if absent:
        raise TigerError(f"result file {file} lacks {', '.join(absent)}; delete it and run again")
    if result["schema"] != SCHEMA:
        raise TigerError(f"result file {file} is of schema {result['schema']}, this version reads {SCHEMA}")
    return result


def read_results(folder):
    """All results of a folder, in the order of their file names."""
    return [read_result(file) for file in sorted(Path(folder).glob("*.json"))]


def leaderboard(results):
    """A table of results, one row each, best first by the validation metric.

    Args:
        results: dicts of one dataset, as in result files.

    Returns:
        str: test metrics, epochs (with * where the budget ended a model at its best epoch so far), seconds of training,
        users per second of evaluation, parameters.
    """
    metrics = [name for name in results[0]["test_result"] if name.startswith(("recall", "ndcg"))]
    rows = []
    for result in sorted(
        results, key=lambda result: -result["best_valid_score"] * (1 if result["valid_score_bigger"] else -1)
    ):
        test = result["test_result"]
        epochs = f"{result['epochs']}{'*' if result['still_improving'] else ''}"
        rows.append(
            [
                result["label"],
                *[test[name] for name in metrics],
                epochs,
                f"{result['train_seconds']:.0f}",
                f"{result['eval_users_per_second']:.0f}",
                f"{result['parameters']:,}",
            ]
        )
    headers = ["model", *metrics, "epochs", "train s", "users/s", "parameters"]
    table = tabulate(
        rows, headers, tablefmt="github", floatfmt=".4f", disable_numparse=[0, len(metrics) + 1], stralign="right"
    )
    if any(result["still_improving"] for result in results):
        table += "\n\n* the budget of epochs ended here, at the model's best epoch so far: it was still improving"
    return table
