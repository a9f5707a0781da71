"""Result files: one JSON file per run, and beside it the ranks of its test users' targets."""

import json
from pathlib import Path

import numpy as np

from recbole_tiger.errors import TigerError
from recbole_tiger.files import read_arrays, whole_file, write_arrays

SCHEMA = 1
# Suffix of the fields of the test with the users' history left out of the lists; the other test has no suffix.
WITHOUT_HISTORY = "_without_history"
# The fields of every result file and their types.
FIELDS = {
    **dict.fromkeys(("schema", "seed", "epochs", "parameters"), int),
    **dict.fromkeys(("model", "label", "dataset", "data_hash"), str),
    **dict.fromkeys(("best_valid_score", "train_seconds", "eval_users_per_second"), int | float),
    **dict.fromkeys(("valid_score_bigger", "out_of_time", "still_improving"), bool),
    **dict.fromkeys(("best_valid_result", "test_result", "settings", "hardware"), dict),
    "epoch_log": list,
    "ranks": str | None,
}


def write_result(result, file, users=None, kept=None):
    """Write a result as JSON, whole or not at all, and arrays of its users to the file named by ``result["ranks"]``.

    Args:
        users: as in :func:`write_ranks`; kept: dict of the other arrays of :func:`write_ranks`, or None to write none.
    """
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if kept:
            write_ranks(users, file=Path(file).parent / result["ranks"], **kept)


def read_result(file):
    """Read one result file.

    Raises:
        TigerError: the file is cut short, lacks a field, has a field of a wrong type, or has another schema.
    """
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TigerError(
            f"result file {file} is cut short or not JSON ({error}); delete it and run again, or move it away if it is "
            f"another file"
        ) from error
    absent = [field for field in FIELDS if not isinstance(result, dict) or field not in result]
    if absent:
        raise TigerError(
            f"result file {file} lacks {', '.join(absent)}; delete it and run again, or move it away if it is another file"
        )
    if result["schema"] != SCHEMA:
        raise TigerError(f"result file {file} has schema {result['schema']}, but this version reads {SCHEMA}")
    wrong = [field for field, kind in FIELDS.items() if not isinstance(result[field], kind)]
    if wrong:
        raise TigerError(f"result file {file} has a wrong value of {', '.join(wrong)}; delete it and run again")
    return result


def read_results(folder):
    """Read all results of a folder, in the order of their file names."""
    return [read_result(file) for file in sorted(Path(folder).glob("*.json"))]


def write_ranks(users, ranks, file, **more):
    """Write the ranks of a run's targets.

    Args:
        users: tokens, an array [users] of strings.
        ranks: int32 array [users]; 1 is best, 0 is not among the first max(topk).
        file: path of an .npz file.
        more: if known, ``ranks_without_history``, of the same form, and ``later_day``, bool array [users], whether the
            target is of a later day than the user's history.
    """
    with whole_file(file) as temporary:
        write_arrays(temporary, compress=True, users=np.asarray(users, dtype=str), ranks=ranks, **more)


def read_ranks(file):
    """Read what :func:`write_ranks` wrote.

    Returns:
        dict: ``users`` (tokens, sorted), ``ranks`` and, if the file has them, the other arrays, in the order of the users.

    Raises:
        TigerError: the file is absent or damaged.
    """
    try:
        arrays = read_arrays(file)
        if not {"users", "ranks"} <= arrays.keys():
            raise TigerError(f"{file} lacks an array: it has to hold users and ranks")
    except TigerError as error:
        raise TigerError(f"ranks {file} are absent or damaged ({error}); delete its result file and run again") from error
    order = np.argsort(arrays["users"])
    return {name: array[order] for name, array in arrays.items()}
