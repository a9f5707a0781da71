"""Item texts from the item file of a RecBole dataset, and checks of atomic files."""

import csv
import io
import re
from logging import getLogger
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_tiger.errors import TigerError, named

# A value in double quotes, with doubled quotes inside.
QUOTED = re.compile(r'"(?:[^"]|"")*"')
# Column types.
KINDS = ("token", "token_seq", "float", "float_seq")
# First bytes of compressed files.
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip"}
# What Python and pandas write for a missing value. It may be the title of one item, but not of several.
MISSING_WORDS = ("nan", "NaN", "None", "NaT", "<NA>")
# States of files that check_interactions has already accepted.
_checked = set()
# Prefix of field names in a table that also has other columns.
COLUMN = "column "


def _lines(path, config):
    """Numbered lines of an atomic file, without line ends.

    Raises:
        TigerError: the file is compressed or has another encoding, or a line contains a lone carriage return or a NUL, at
            which pandas ends a row or a value.
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
                            f"{path}, line {number} contains a {name}, at which readers end a row or a value; "
                            f"replace it by a space"
                        )
                yield number, line
    except UnicodeError as error:
        raise TigerError(
            f"{path} has another encoding than utf-8 or that of the settings ({error}); name it by --encoding=..."
        ) from error


def header(path, config):
    """Fields of an atomic file.

    Returns:
        dict of field name to its type (``token``, ``token_seq``, ``float``, ``float_seq``), in the file's order.

    Raises:
        TigerError: the first line is not a header.
    """
    _, line = next(_lines(path, config), (1, ""))
    if not line.strip():
        raise TigerError(f"{path} has no header: its first line has to name the columns, such as user_id:token")
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


def _unquoted(value, path, number):
    """A value without enclosing quotes."""
    if not value.startswith('"'):
        return value
    if not QUOTED.fullmatch(value):
        # RecBole reads on until the next quote, which may be rows away.
        raise TigerError(
            f"{path}, line {number}: a value begins with a double quote that does not enclose it; leave that quote out, or "
            f"enclose the value in quotes and double those within; replace separators and line breaks within quotes by a "
            f"space"
        )
    return value[1:-1].replace('""', '"')


def read_columns(path, names, config):
    """Columns of an atomic file as strings, before RecBole fills, rescales or remaps anything; missing values are "".

    Raises:
        TigerError: the file is compressed or has another encoding, a row is longer than the header, a quote is not closed,
            or a row contains carriage returns or NUL characters.
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
            values = [_unquoted(value, path, number) for value in values]
        values += [""] * (len(fields) - len(values))
        for column, place in zip(columns, places, strict=True):
            column.append(values[place])
    return pd.DataFrame(dict(zip(names, columns, strict=True)), dtype=object)


def read_csv(path, engine, **settings):
    """``pandas.read_csv`` with the C parser, which is ten times as fast as the Python parser that RecBole asks for."""
    try:
        return pd.read_csv(path, engine="c", float_precision="round_trip", **settings)
    except ValueError:  # the separator is a regular expression, or a value is bad: the Python parser names its column
        return pd.read_csv(path, engine=engine, **settings)


def _check_same_in_pandas(path, table, config):
    """Check that pandas, which RecBole uses, reads the same rows from a file as ``table``, from :func:`read_columns`."""
    fields = header(path, config)
    columns = [f"{name}:{fields[name]}" for name in table]
    separator, encoding = config["field_separator"], config["encoding"]
    try:
        theirs = read_csv(path, engine="python", delimiter=separator, usecols=columns, dtype=str, encoding=encoding)
    except (ValueError, re.error) as error:
        raise TigerError(
            f"{path}: pandas, which RecBole uses, cannot read it with the separator {separator!r} ({error}); write the "
            f"file with another and give it as --field_separator=..."
        ) from error
    for name, column in zip(table, columns, strict=True):
        ours, other = table[name].to_numpy(), theirs[column].fillna("").to_numpy()
        shared = min(len(ours), len(other))
        differ = np.flatnonzero(ours[:shared] != other[:shared])
        if len(differ) or len(ours) != len(other):
            row = differ[0] if len(differ) else shared
            raise TigerError(
                f"{path}: RecBole reads {len(other)} rows where {len(ours)} are written, and another {name} in row "
                f"{row + 1}; take quotes and control characters out of that row, or give another --field_separator"
            )


def interaction_files(config):
    """Paths of the dataset's interaction files, existing or not."""
    folder, dataset, split = Path(config["data_path"]), config["dataset"], config["benchmark_filename"]
    return [folder / f"{dataset}.{part}.inter" for part in split] if split else [folder / f"{dataset}.inter"]


def history_field(config):
    """Name of the column of histories, in RecBole's rows and in pre-split files."""
    return config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]


def item_file(config):
    """Path of the dataset's item file, existing or not."""
    return Path(config["data_path"]) / f"{config['dataset']}.item"


def text_columns(config, needed=True):
    """The columns of the item file that are in ``text_fields``, in the order of the latter.

    Args:
        needed: whether text is needed.

    Raises:
        TigerError: the file has no column of items, or text is needed and the file has none of the columns.
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


def _blank_missing(values, kind, where):
    """Values of a column, with "" for missing ones.

    Raises:
        TigerError: several items have the same one of MISSING_WORDS in place of text.
    """
    values = values.str.strip().replace("[]", "")
    if kind == "float":
        return values.where(np.isfinite(pd.to_numeric(values, errors="coerce")), "")
    for word in MISSING_WORDS:
        items = values.index[values == word]
        advice = f"{where} of {named(items)} is {word!r}, which Python writes for a missing value: leave it empty"
        if len(items) > 1:
            raise TigerError(f"{advice} ({len(items)} items)")
        if len(items):
            getLogger().warning(f"{advice}, unless it is meant; it is read as a word")
    return values


def read_item_text(config):
    """Read the text of every item of the item file.

    It reads the raw columns, before RecBole fills, rescales or remaps anything: a title "None" stays a title, a missing
    price stays missing. Values are joined by ", "; missing ones are left out. If an item has several rows, the first counts.

    Returns:
        DataFrame indexed by item token, with the columns ``text`` (all fields), ``title`` (the first field present), and for
        every text field of the file a column COLUMN + its name.

    Raises:
        TigerError: the file cannot be read, or several items have the same word for a missing value in place of text.
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
            f"{path}: {len(twice)} items have several rows of different text: {named(twice)}; the first one counts"
        )
    frame = frame.drop_duplicates(item_id, keep="first").set_index(item_id)[columns]
    for column in columns:
        if fields[column].endswith("_seq"):
            frame[column] = frame[column].str.replace(config["seq_separator"], " ", regex=False)
        frame[column] = _blank_missing(frame[column], fields[column], f"{path}: the {column}")
    rows = [[value for value in row if value] for row in frame.itertuples(index=False, name=None)]
    table = frame.add_prefix(COLUMN)
    table["text"], table["title"] = [", ".join(row) for row in rows], [row[0] if row else "" for row in rows]
    return table


def table_to_lists(table):
    """Lists of the texts and of the titles in a table of :func:`read_item_text`; dict of field -> list of values."""
    columns = {name.removeprefix(COLUMN): table[name].tolist() for name in table.columns if name.startswith(COLUMN)}
    return table["text"].tolist(), table["title"].tolist(), columns


def text_of_items(config, items, needed=True):
    """Text of the given items.

    Args:
        items: item tokens.
        needed: whether every item needs text; otherwise missing text is "".

    Returns:
        texts, titles: lists in the order of ``items``; dict of field -> list of values in the same order.

    Raises:
        TigerError: text is needed, and an item is not in the item file or has no text.
    """
    columns = text_columns(config, needed)
    path = item_file(config)
    table = read_item_text(config)
    missing = [item for item in items if item not in table.index]
    if needed and missing:
        raise TigerError(f"{len(missing)} items are not in {path}: {named(missing)}; add a row for each")
    table = table.reindex(items, fill_value="")
    if needed:
        refuse_empty(table, path, columns, "or name more columns by --text_fields=[...]")
    return table_to_lists(table)


def refuse_empty(table, path, fields, remedy):
    """Refuse items without text.

    Args:
        table: from :func:`read_item_text`, read from ``path``. fields: the text fields. remedy: what else may help.

    Raises:
        TigerError: names items without text.
    """
    empty = table.index[table["text"] == ""]
    if len(empty):
        raise TigerError(
            f"{len(empty)} items have no text in {path} (fields {', '.join(fields)}): {named(empty)}; "
            f"give them text, {remedy}"
        )


def _refuse_missing(path, tokens, name):
    """Refuse empty tokens, and those like NA and null that pandas reads as missing: RecBole drops their rows."""
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
            f"{path}: {', '.join(absent)} cannot be the token of an item or a user, because RecBole reads it as missing; "
            f"write it differently"
        )


def _refuse_other_types(path, fields, names):
    """Refuse columns of users and items of another type than token."""
    for name in names:
        if fields.get(name, "token") != "token":
            raise TigerError(f"{path}: {name} is of type {fields[name]}, but has to be a token: write {name}:token")


def _read_times(path, fields, table, time):
    """The times as numbers. Refuses other values: RecBole numbers tokens as they come, and fills in the mean time."""
    if fields[time] != "float":
        raise TigerError(
            f"{path}: {time} is of type {fields[time]}, but the order of interactions depends on it: make it {time}:float, "
            f"in seconds since 1970"
        )
    times = pd.to_numeric(table[time], errors="coerce")
    wrong = table.index[~np.isfinite(times)]
    if len(wrong):
        raise TigerError(
            f"{path}: {len(wrong)} interactions have no number in {time}, first {table[time][wrong[0]]!r} in row "
            f"{wrong[0] + 1}: give it in seconds since 1970, or leave them out"
        )
    return times


def _warn_of_lost_order(path, users, times):
    """Warn if RecBole loses the order of interactions: it stores times as float32, and leaves ties as in the file."""
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


def _refuse_unknown_items(path, table, known, items, histories, seq_separator):
    """Refuse interactions and histories with items that the item file lacks.

    Args:
        known: tokens of the item file ``items``.
        histories: name of the column of histories; ``table`` may lack it.
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
                f"consists of item tokens with {seq_separator!r} between them (--seq_separator=...), without padding"
            )


def check_interactions(config):
    """Refuse files that RecBole would misread, or whose rows it would drop or misplace.

    RecBole drops rows without an item or a user and rows with items that the item file lacks, reads some tokens as missing,
    and misplaces rows whose times are not numbers. Where it would lose the order of interactions, this warns. A process does
    not check a file again until it changes.

    Raises:
        TigerError: describes the first problem.
    """
    loaded = config["load_col"]
    item_id, user, time = (config[f"{name}_FIELD"] for name in ("ITEM_ID", "USER_ID", "TIME"))
    items = item_file(config) if "item" in loaded else None
    paths = [path for path in interaction_files(config) if path.is_file()]  # RecBole reports missing files
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
        if not items.is_file():
            raise TigerError(f"load_col names columns of items, but {items} does not exist: add it, or leave item out")
        text_columns(config, needed=False)  # checks that there is a column of items
        _refuse_other_types(items, header(items, config), [item_id])
        table = read_columns(items, [item_id], config)
        _refuse_missing(items, table[item_id], item_id)
        _check_same_in_pandas(items, table, config)
        known = table[item_id]
    for path in paths:
        fields = header(path, config)
        if item_id not in fields:
            raise TigerError(f"{path} has no column {item_id}: it has {', '.join(fields)}; name it by --ITEM_ID_FIELD=...")
        _refuse_other_types(path, fields, (user, item_id))
        table = read_columns(path, [name for name in (item_id, user, time, histories) if name in fields], config)
        if table.empty:
            raise TigerError(f"{path} has a header and no interaction: add a row for each")
        for name in table.columns.intersection([user, item_id]):
            _refuse_missing(path, table[name], name)
        if ordered and {user, time} <= set(table):
            _warn_of_lost_order(path, table[user], _read_times(path, fields, table, time))
        if items is not None:
            _refuse_unknown_items(path, table, known, items, histories, config["seq_separator"])
        _check_same_in_pandas(path, table.drop(columns=time, errors="ignore"), config)
    for path in others:
        _check_same_in_pandas(path, read_columns(path, list(header(path, config))[:1], config), config)
    _checked.add(state)
