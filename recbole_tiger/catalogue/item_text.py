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
# The types of columns.
KINDS = ("token", "token_seq", "float", "float_seq")
# What compressed files begin with.
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip"}
# What Python and pandas write for an absent value; a title may be one of them, but not that of several items.
WRITTEN_ABSENT = ("nan", "NaN", "None", "NaT", "<NA>")
# Files that check_interactions has found in order, as they were then.
_checked = set()
# What stands before the name of a field in a table that has other columns, too.
COLUMN = "column "


def _lines(path, config):
    """Lines of an atomic file without their ends, with their numbers.

    Raises:
        TigerError: the file is compressed or of another encoding, or a line has a character that some readers take for more
            than itself: pandas ends a row at a lone carriage return, and a value at a NUL.
    """
    with open(path, "rb") as file:
        begin = file.read(4)
    if kind := next((kind for magic, kind in COMPRESSED.items() if begin.startswith(magic)), None):
        raise TigerError(f"{path} is a {kind} file: unpack it")
    try:
        with open(path, encoding=config["encoding"] or "utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                line = line.removesuffix("\n").removesuffix("\r")
                for character, name in (("\r", "carriage return"), ("\0", "NUL character")):
                    if character in line:
                        raise TigerError(
                            f"{path}, line {number}: there is a {name} within it, where readers end a row or a value; "
                            f"replace it by a space"
                        )
                yield number, line
    except UnicodeError as error:
        raise TigerError(
            f"{path} is not of the encoding utf-8 or that of the settings ({error}); name it by --encoding=..."
        ) from error


def header(path, config):
    """Fields of an atomic file.

    Returns:
        dict of field name to its type (``token``, ``token_seq``, ``float``, ``float_seq``), in the file's order.

    Raises:
        TigerError: the first line is no header.
    """
    _, line = next(_lines(path, config), (1, ""))
    if not line.strip():
        raise TigerError(f"{path} has no header: its first line has to name the columns, as user_id:token")
    if line.startswith("\ufeff"):
        raise TigerError(f"{path} begins with a byte-order mark, which would be part of a name: give --encoding=utf-8-sig")
    fields = {}
    for column in line.split(config["field_separator"]):
        name, _, kind = column.partition(":")
        if not name or kind not in KINDS or '"' in name:
            raise TigerError(
                f"{path}: the header's column {column!r} is not of the form name:type, with a type of {', '.join(KINDS)} "
                f"and without quotes; if {config['field_separator']!r} does not separate the columns, give "
                f"--field_separator=..."
            )
        if name in fields:
            raise TigerError(f"{path}: the header has the column {name} twice; rename one of them or take it out")
        fields[name] = kind
    return fields


def _within_quotes(value, path, number):
    """A value without the quotes that enclose it, if they do."""
    if not value.startswith('"'):
        return value
    if not QUOTED.fullmatch(value):
        # RecBole reads on to the next quote, which may be rows away.
        raise TigerError(
            f"{path}, line {number}: a value begins with a double quote that does not enclose it; leave that quote out, or "
            f"enclose the value in quotes and double those within; if there is a separator or a line break within the "
            f"quotes, replace it by a space"
        )
    return value[1:-1].replace('""', '"')


def read_columns(path, names, config):
    """Columns of an atomic file as strings, before RecBole fills, rescales or remaps anything; what a row lacks is "".

    Raises:
        TigerError: the file is compressed or of another encoding, a row is longer than the header, a quote is not closed, or
            there are carriage returns or NUL characters within a row.
    """
    fields = header(path, config)
    separator = config["field_separator"]
    places = [list(fields).index(name) for name in names]
    columns = [[] for _ in names]
    lines = _lines(path, config)
    next(lines)
    for number, line in lines:
        values = line.split(separator)
        if len(values) > len(fields):
            raise TigerError(
                f"{path}, line {number}: {len(values)} values where the header has {len(fields)}; take the separator out of "
                f"the values"
            )
        if len(values) == 1 and not line.strip(" \t"):
            continue
        if '"' in line:
            values = [_within_quotes(value, path, number) for value in values]
        values += [""] * (len(fields) - len(values))
        for column, place in zip(columns, places, strict=True):
            column.append(values[place])
    return pd.DataFrame(dict(zip(names, columns, strict=True)), dtype=object)


def read_csv(path, engine, **settings):
    """What pandas reads for RecBole, which asks for the parser in Python: that in C does the same in a tenth of the time."""
    try:
        return pd.read_csv(path, engine="c", float_precision="round_trip", **settings)
    except ValueError:  # a separator that is a regular expression, or a bad value, whose column Python's parser names
        return pd.read_csv(path, engine=engine, **settings)


def _prove_read_alike(path, table, config):
    """Refuse a file of which pandas, by which RecBole reads, sees other rows than ``table``, of :func:`read_columns`."""
    fields = header(path, config)
    columns = [f"{name}:{fields[name]}" for name in table]
    separator, encoding = config["field_separator"], config["encoding"]
    try:
        theirs = read_csv(path, engine="python", delimiter=separator, usecols=columns, dtype=str, encoding=encoding)
    except (ValueError, re.error) as error:
        raise TigerError(
            f"{path}: pandas, by which RecBole reads, cannot read it with the separator {separator!r} ({error}); write the "
            f"file with another and give it as --field_separator=..."
        ) from error
    for name, column in zip(table, columns, strict=True):
        own, other = table[name].to_numpy(), theirs[column].fillna("").to_numpy()
        shared = min(len(own), len(other))
        differ = np.flatnonzero(own[:shared] != other[:shared])
        if len(differ) or len(own) != len(other):
            row = differ[0] if len(differ) else shared
            raise TigerError(
                f"{path}: RecBole reads {len(other)} rows where {len(own)} are written, and another {name} in row "
                f"{row + 1}; take quotes and control characters out of that row, or give another --field_separator"
            )


def interaction_files(config):
    """Paths of the dataset's interaction files, whether they are there or not."""
    folder, dataset, split = Path(config["data_path"]), config["dataset"], config["benchmark_filename"]
    return [folder / f"{dataset}.{part}.inter" for part in split] if split else [folder / f"{dataset}.inter"]


def history_field(config):
    """The column of histories, in RecBole's rows and in pre-split files."""
    return config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]


def item_file(config):
    """Path of the dataset's item file, whether it is there or not."""
    return Path(config["data_path"]) / f"{config['dataset']}.item"


def text_columns(config, needed=True):
    """Those of ``text_fields`` that the item file has, in that order.

    Args:
        needed: whether there has to be text.

    Raises:
        TigerError: the file has no items, or none of the columns though text is needed.
    """
    path = item_file(config)
    if not path.is_file():
        if not needed:
            return []
        raise TigerError(
            f"dataset {config['dataset']} has no item file: {path} does not exist; every model loads the columns that TIGER "
            f"reads (item_id:token title:token ...): add it, or, for other models alone, name columns by --load_col=...; "
            f"TIGER needs no text with --item_embeddings=..., or with --semantic_ids=... and --text_initializer=False"
        )
    fields = header(path, config)
    if config["ITEM_ID_FIELD"] not in fields:
        raise TigerError(
            f"{path} has no column {config['ITEM_ID_FIELD']}: it has {', '.join(fields)}; name it by --ITEM_ID_FIELD=..."
        )
    columns = [field for field in config["text_fields"] if field in fields]
    if needed and not columns:
        raise TigerError(
            f"{path} has none of text_fields {', '.join(config['text_fields'])}: it has {', '.join(fields)}; "
            f"name the columns with text by --text_fields=[...]"
        )
    return columns


def _without_absent(values, kind, where):
    """Values of a column with "" for what is written for an absent one.

    Raises:
        TigerError: several items have one and the same word in place of text.
    """
    values = values.str.strip().replace("[]", "")
    if kind == "float":
        return values.where(np.isfinite(pd.to_numeric(values, errors="coerce")), "")
    for word in WRITTEN_ABSENT:
        items = values.index[values == word]
        advice = f"{where} of {named(items)} is {word!r}, as Python writes what is absent: leave it empty"
        if len(items) > 1:
            raise TigerError(f"{advice} ({len(items)} items)")
        if len(items):
            getLogger().warning(f"{advice}, unless it is meant; it is read as a word")
    return values


def read_item_text(config):
    """Read the text of every item of the item file.

    The raw columns are read, before RecBole fills, rescales or remaps anything: a title "None" stays a title, an absent
    price stays absent. Values are joined by ", ", absent ones are left out. Of several rows of an item the first counts.

    Returns:
        DataFrame indexed by item token with the columns ``text`` (all fields), ``title`` (the first field present), and for
        every field of the file a column COLUMN + its name.

    Raises:
        TigerError: the file cannot be read, or several items have the word of an absent value in place of text.
    """
    path = item_file(config)
    columns = text_columns(config, needed=False)
    if not columns:
        return pd.DataFrame({"text": [], "title": []}, dtype=object)
    fields = header(path, config)
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
        frame[column] = _without_absent(frame[column], fields[column], f"{path}: the {column}")
    rows = [[value for value in row if value] for row in frame.itertuples(index=False, name=None)]
    table = frame.add_prefix(COLUMN)
    table["text"], table["title"] = [", ".join(row) for row in rows], [row[0] if row else "" for row in rows]
    return table


def lists_of(table):
    """Texts and titles of a table of :func:`read_item_text`, two lists; dict of field -> list of its values."""
    columns = {name.removeprefix(COLUMN): table[name].tolist() for name in table.columns if name.startswith(COLUMN)}
    return table["text"].tolist(), table["title"].tolist(), columns


def text_of_items(config, items, needed=True):
    """Text of the given items.

    Args:
        items: item tokens.
        needed: whether every item has to have text; what it lacks is "" if not.

    Returns:
        texts, titles: lists in the order of ``items``; dict of field -> such a list of its values.

    Raises:
        TigerError: text is needed, and an item is not in the item file or has none.
    """
    columns = text_columns(config, needed)
    path = item_file(config)
    table = read_item_text(config)
    missing = [item for item in items if item not in table.index]
    if needed and missing:
        raise TigerError(f"{len(missing)} items are not in {path}: {named(missing)}; add a row for each")
    table = table.reindex(items, fill_value="")
    empty = table.index[table["text"] == ""]
    if needed and len(empty):
        raise TigerError(
            f"{len(empty)} items have no text in {path} (fields {', '.join(columns)}): {named(empty)}; "
            f"give them text or name more columns by --text_fields=[...]"
        )
    return lists_of(table)


def _refuse_absent(path, tokens, name):
    """Refuse rows without a token, and with those as NA and null, which pandas reads as absent: RecBole drops such rows."""
    empty = np.flatnonzero(tokens == "")
    if len(empty):
        raise TigerError(
            f"{path}: {len(empty)} rows have no {name}, first row {empty[0] + 1}, and RecBole would drop them; give them "
            f"one or leave them out"
        )
    tokens = pd.Series(tokens.unique(), dtype=object)
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


def _refuse_lost(path, table, known, items, histories, seq_separator):
    """Refuse interactions and histories with items that the item file lacks.

    Args:
        known: the tokens of the item file ``items``.
        histories: the column of histories, where ``table`` has one.
    """
    used = table.iloc[:, 0]
    lost = used[~used.isin(known)]
    if len(lost):
        raise TigerError(
            f"{len(lost)} interactions of {path} are with {lost.nunique()} items that {items} lacks: "
            f"{named(lost.unique())}; add their rows to the item file"
        )
    if histories in table:
        values = {value for row in table[histories].unique() for value in row.split(seq_separator)}
        if unknown := sorted(values - set(known) - {""}):
            raise TigerError(
                f"{path}: {len(unknown)} values of {histories} are no items of {items}, first {named(unknown)}; a history "
                f"is of item tokens with {seq_separator!r} between them (--seq_separator=...), without padding"
            )


def check_interactions(config):
    """Refuse files that RecBole would read otherwise than they are written, or whose rows it would drop or misplace.

    It drops rows with items that the item file lacks or without an item or a user, takes some tokens for absent ones, and
    misplaces rows with times that are no numbers. Warns where it would lose their order. Files that this process has checked
    are not read again until they change.

    Raises:
        TigerError: with the first of them.
    """
    loaded = config["load_col"]
    item_id, user, time = (config[f"{name}_FIELD"] for name in ("ITEM_ID", "USER_ID", "TIME"))
    items = item_file(config) if "item" in loaded else None
    paths = [path for path in interaction_files(config) if path.is_file()]  # RecBole names those that are absent
    others = [item_file(config).with_suffix(f".{kind}") for kind in loaded if kind not in ("inter", "item")]
    others = [path for path in others if path.is_file()]
    files = [path for path in (items, *paths, *others) if path is not None]
    ordered = config["eval_args"]["order"] == "TO" and not config["benchmark_filename"]
    histories = history_field(config) if config["benchmark_filename"] else None
    state = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file())
    state = (*state, user, item_id, time, ordered, histories)
    state = (*state, config["field_separator"], config["seq_separator"], config["encoding"])
    if state in _checked:
        return
    if items is not None:
        text_columns(config, needed=False)  # there has to be a column of items
        _refuse_other_ids(items, header(items, config), [item_id])
        table = read_columns(items, [item_id], config)
        _refuse_absent(items, table[item_id], item_id)
        _prove_read_alike(items, table, config)
        known = table[item_id]
    for path in paths:
        fields = header(path, config)
        if item_id not in fields:
            raise TigerError(f"{path} has no column {item_id}: it has {', '.join(fields)}; name it by --ITEM_ID_FIELD=...")
        _refuse_other_ids(path, fields, (user, item_id))
        table = read_columns(path, [name for name in (item_id, user, time, histories) if name in fields], config)
        if table.empty:
            raise TigerError(f"{path} has a header and no interaction: add a row for each")
        for name in table.columns.intersection([user, item_id]):
            _refuse_absent(path, table[name], name)
        if ordered and {user, time} <= set(table):
            _tell_lost_times(path, table[user], _read_times(path, fields, table, time))
        if items is not None:
            _refuse_lost(path, table, known, items, histories, config["seq_separator"])
        _prove_read_alike(path, table.drop(columns=time, errors="ignore"), config)
    for path in others:
        _prove_read_alike(path, read_columns(path, list(header(path, config))[:1], config), config)
    _checked.add(state)
