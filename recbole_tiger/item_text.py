"""Item features of a RecBole dataset -> one string per item."""

import csv
import io
import re
from logging import getLogger
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_tiger.errors import TigerError, named

# A value in double quotes, those within it doubled.
QUOTED = re.compile(r'"(?:[^"]|"")*"')
# Files that check_interactions has found in order, as they were then.
_checked = set()


def header(path, config):
    """Fields of an atomic file.

    Returns:
        dict of field name to its type (``token``, ``token_seq``, ``float``, ``float_seq``), in the file's order.
    """
    with open(path, encoding=config["encoding"] or "utf-8") as file:
        try:
            line = file.readline().rstrip("\n")
        except UnicodeDecodeError as error:
            raise _of_another_encoding(path, error) from error
    if line.startswith("\ufeff"):
        raise TigerError(f"{path} begins with a byte-order mark, which would be part of a name: give --encoding=utf-8-sig")
    fields = {}
    for column in line.split(config["field_separator"]):
        name, colon, kind = column.partition(":")
        if not colon:
            raise TigerError(f"{path}: the header's column {column!r} is not of the form name:type")
        fields[name] = kind
    return fields


def _of_another_encoding(path, error):
    return TigerError(f"{path} is not of the encoding utf-8 or that of the settings ({error}); name it by --encoding=...")


def read_columns(path, names, config):
    """Columns of an atomic file as strings, before RecBole fills, rescales or remaps anything.

    Raises:
        TigerError: the file is of another encoding, a row is longer than the header, or a quote is not closed.
    """
    fields = header(path, config)
    separator, encoding = config["field_separator"], config["encoding"] or "utf-8"
    try:
        # pandas and RecBole drop what is too much in a row, and its values may lie in the wrong columns. After a quote that
        # opens a value RecBole reads on to the next one, which may be rows away.
        with open(path, encoding=encoding, newline="\n") as file:
            for number, line in enumerate(file, start=1):
                values = line.rstrip("\r\n").split(separator) if '"' in line else []
                if any(value.startswith('"') and not QUOTED.fullmatch(value) for value in values):
                    raise TigerError(
                        f"{path}, line {number}: a value begins with a double quote that does not enclose it; leave that "
                        f"quote out, or enclose the value in quotes and double those within; if there is a separator or a "
                        f"line break within the quotes, replace it by a space"
                    )
                if line.count(separator) >= len(fields):
                    raise TigerError(
                        f"{path}, line {number}: {line.count(separator) + 1} values where the header has {len(fields)}; "
                        f"take the separator out of the values"
                    )
        frame = pd.read_csv(
            path,
            sep=separator,
            usecols=[f"{name}:{fields[name]}" for name in names],
            dtype=str,
            keep_default_na=False,
            encoding=encoding,
        )
    except UnicodeDecodeError as error:
        raise _of_another_encoding(path, error) from error
    frame.columns = [name.rpartition(":")[0] for name in frame.columns]
    return frame


def interaction_files(config):
    """Paths of the dataset's interaction files, whether they are there or not."""
    folder, dataset, split = Path(config["data_path"]), config["dataset"], config["benchmark_filename"]
    return [folder / f"{dataset}.{part}.inter" for part in split] if split else [folder / f"{dataset}.inter"]


def item_file(config):
    """Path of the dataset's item file.

    Raises:
        TigerError: there is none.
    """
    path = Path(config["data_path"]) / f"{config['dataset']}.item"
    if not path.is_file():
        raise TigerError(
            f"dataset {config['dataset']} has no item file: {path} does not exist; every model loads the columns that TIGER "
            f"reads (item_id:token title:token ...): add it, or, for other models alone, name columns by --load_col=..."
        )
    return path


def text_columns(config):
    """Those of ``text_fields`` that the item file has, in that order.

    Raises:
        TigerError: none of them is there.
    """
    path = item_file(config)
    fields = header(path, config)
    if config["ITEM_ID_FIELD"] not in fields:
        raise TigerError(f"{path} has no column {config['ITEM_ID_FIELD']}: it has {', '.join(fields)}")
    columns = [field for field in config["text_fields"] if field in fields]
    if not columns:
        raise TigerError(
            f"{path} has none of text_fields {', '.join(config['text_fields'])}: it has {', '.join(fields)}; "
            f"name the columns with text by --text_fields=[...]"
        )
    return columns


def read_item_text(config):
    """Read the text of every item of the item file.

    The raw columns are read, before RecBole fills, rescales or remaps anything: a title "None" stays a title, an absent
    price stays absent. Values are joined by ", ", absent ones are left out. Of several rows of an item the first counts.

    Returns:
        DataFrame indexed by item token with the columns ``text`` (all fields) and ``title`` (the first field present).
    """
    path = item_file(config)
    fields = header(path, config)
    columns = text_columns(config)
    item_id = config["ITEM_ID_FIELD"]
    frame = read_columns(path, [item_id, *columns], config)
    twice = frame.drop_duplicates()[item_id]
    twice = twice[twice.duplicated()].unique()
    if len(twice):
        getLogger().warning(
            f"{path}: {len(twice)} items have several rows of different text: {named(twice)}; the first counts"
        )
    frame = frame.drop_duplicates(item_id, keep="first").set_index(item_id)[columns]
    for column in columns:
        if fields[column].endswith("_seq"):
            frame[column] = frame[column].str.replace(config["seq_separator"], " ", regex=False)
        frame[column] = frame[column].str.strip()
    rows = [[value for value in row if value] for row in frame.itertuples(index=False, name=None)]
    return pd.DataFrame(
        {"text": [", ".join(row) for row in rows], "title": [row[0] if row else "" for row in rows]}, index=frame.index
    )


def text_of_items(config, items):
    """Text of the given items.

    Args:
        items: item tokens.

    Returns:
        texts, titles: lists in the order of ``items``.

    Raises:
        TigerError: an item is not in the item file, or has no text.
    """
    table = read_item_text(config)
    path = item_file(config)
    missing = [item for item in items if item not in table.index]
    if missing:
        raise TigerError(f"{len(missing)} items are not in {path}: {named(missing)}; add a row for each")
    table = table.loc[items]
    empty = table.index[table["text"] == ""]
    if len(empty):
        raise TigerError(
            f"{len(empty)} items have no text in {path} (fields {', '.join(text_columns(config))}): {named(empty)}; "
            f"give them text or name more columns by --text_fields=[...]"
        )
    return table["text"].tolist(), table["title"].tolist()


def _refuse_absent(path, tokens):
    """Refuse tokens as NA and null, which pandas reads as absent, so that RecBole drops their rows."""
    tokens = pd.Series(tokens[tokens != ""].unique())
    written = tokens.to_csv(index=False, header=["token"], quoting=csv.QUOTE_ALL)
    absent = tokens[pd.read_csv(io.StringIO(written), dtype=str)["token"].isna()]
    if len(absent):
        raise TigerError(
            f"{path}: {', '.join(absent)} cannot be the token of an item or a user, for RecBole reads it as absent; "
            f"write it differently"
        )


def _refuse_other_ids(path, fields, names):
    """Refuse users and items of another type than token."""
    for name in names:
        if fields.get(name, "token") != "token":
            raise TigerError(f"{path}: {name} is of type {fields[name]}, and has to be a token: write {name}:token")


def _read_times(path, fields, table, time):
    """The times as numbers; refuses others: RecBole numbers tokens as they come, and gives an absent time the mean."""
    if fields[time] != "float":
        raise TigerError(
            f"{path}: {time} is of type {fields[time]}, and the order of interactions hangs on it: make it {time}:float, "
            f"as seconds since 1970"
        )
    times = pd.to_numeric(table[time], errors="coerce")
    wrong = table.index[~np.isfinite(times)]
    if len(wrong):
        raise TigerError(
            f"{path}: {len(wrong)} interactions have no number in {time}, first {table[time][wrong[0]]!r} in row "
            f"{wrong[0] + 1}: give it in seconds since 1970, or leave them out"
        )
    return times


def _tell_lost_times(path, users, times):
    """Say where RecBole loses the order of a user's interactions: it keeps times in float32, and ties as in the file."""
    seen = times.astype("float32")
    if (seen == times).all():
        return
    kept = pd.DataFrame({"user": users, "time": times, "seen": seen})
    kept = kept.sort_values(["user", "seen"], kind="stable")
    before = kept.shift()
    lost = (kept["user"] == before["user"]) & (kept["seen"] == before["seen"]) & (kept["time"] < before["time"])
    if lost.any():
        getLogger().warning(
            f"{path}: {lost.sum()} interactions of {kept.loc[lost, 'user'].nunique()} users keep the order of the file, "
            f"not that of {times.name}: RecBole reads times as float32, which for today's seconds is exact to a minute or "
            f"two; sort the file by {times.name}"
        )


def check_interactions(config):
    """Refuse interactions that RecBole would drop or misplace without a word.

    They are with items that the item file lacks, with absent tokens, or with times that are no numbers. Warns where it
    would lose their order. Files that this process has checked are not read again until they change.

    Raises:
        TigerError: with the first of them.
    """
    items, item_id = item_file(config), config["ITEM_ID_FIELD"]
    paths = [path for path in interaction_files(config) if path.is_file()]  # RecBole names those that are absent
    state = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in [items, *paths]]
    user, time = config["USER_ID_FIELD"], config["TIME_FIELD"]
    ordered = config["eval_args"]["order"] == "TO" and not config["benchmark_filename"]
    state = (*state, user, item_id, time, ordered, config["field_separator"], config["encoding"])
    if state in _checked:
        return
    _refuse_other_ids(items, header(items, config), [item_id])
    known = read_columns(items, [item_id], config)[item_id]
    _refuse_absent(items, known)
    for path in paths:
        fields = header(path, config)
        if item_id not in fields:
            raise TigerError(f"{path} has no column {item_id}: it has {', '.join(fields)}; name it by --ITEM_ID_FIELD=...")
        _refuse_other_ids(path, fields, (user, item_id))
        table = read_columns(path, [name for name in (user, item_id, time) if name in fields], config)
        for name in table.columns.intersection([user, item_id]):
            _refuse_absent(path, table[name])
        if ordered and {user, time} <= set(table):
            _tell_lost_times(path, table[user], _read_times(path, fields, table, time))
        used = table[item_id]
        lost = used[~used.isin(known) & (used != "")]
        if len(lost):
            raise TigerError(
                f"{len(lost)} interactions of {path} are with {lost.nunique()} items that {items} lacks: "
                f"{named(lost.unique())}; add their rows to the item file"
            )
    _checked.add(state)
