"""Mixtures of several datasets (``--dataset=a,b``)."""

import copy
import hashlib
import json
from collections import Counter
from pathlib import Path

from recbole_tiger.catalogue.item_text import header, item_file, read_columns, text_columns
from recbole_tiger.errors import TigerError
from recbole_tiger.files import content_hash, locked, whole_folder
from recbole_tiger.settings.properties import is_sample

# Raise it with every change that makes other files from the same datasets.
REVISION = 2


def sources(config):
    """The Config of each dataset of a mixture, for reading its files.

    Raises:
        TigerError: a name is missing, repeated or that of RecBole's sample, or the files are pre-split.
    """
    names = config["dataset"].split(",")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if "" in names or twice:
        raise TigerError(
            f"dataset {config['dataset']} is no list of different datasets: write it as --dataset=a,b, without spaces"
        )
    if config["benchmark_filename"]:
        raise TigerError(
            f"dataset {config['dataset']}: pre-split files cannot be mixed; leave benchmark_filename out, or name one"
        )
    parent = Path(config["data_path"]).parent
    samples = [name for name in names if is_sample(name, parent)]
    if samples:
        raise TigerError(
            f"{samples[0]} in {config['dataset']} is RecBole's sample, which is not mixed: copy its files to a dataset of "
            f"another name in {parent}"
        )
    parts = [copy.copy(config) for _ in names]
    for part, name in zip(parts, names, strict=True):
        own = {"dataset": name, "data_path": str(parent / name)}
        part.final_config_dict = {**config.final_config_dict, **own}
    return parts


def mix(parts, folder, text_needed):
    """Join the atomic files of several datasets into one dataset, unless that has been done.

    Tokens of users and items are prefixed with the name of their dataset, ``a:i1``. The interactions have the columns that
    all datasets share, the items have the columns of any dataset.

    Args:
        parts: from :func:`sources`; their files exist.
        folder: the folder to write in; there the parent of the mixture's folder is named by a hash of the files.
        text_needed: whether every dataset needs item text.

    Returns:
        Path of the mixture's folder, which has the name of the dataset, ``a,b``.

    Raises:
        TigerError: a dataset has no text though it is needed, some datasets have an item file and others have none, or a
            column has different types.
    """
    first, name = parts[0], ",".join(part["dataset"] for part in parts)
    inters = [Path(part["data_path"]) / f"{part['dataset']}.inter" for part in parts]
    for part, file in zip(parts, inters, strict=True):
        if not file.is_file():
            raise TigerError(f"dataset {part['dataset']} has no interaction file: {file} does not exist")
        text_columns(part, text_needed)
    items = [item_file(part) if item_file(part).is_file() else None for part in parts]
    without = [part["dataset"] for part, file in zip(parts, items, strict=True) if file is None]
    if 0 < len(without) < len(parts):
        raise TigerError(f"{', '.join(without)} has no item file, unlike the others of {name}: give all one, or none")
    settings = ["USER_ID_FIELD", "ITEM_ID_FIELD", "field_separator", "encoding"]
    made_by = [REVISION, name, [first[key] for key in settings]]
    digest = hashlib.sha256(json.dumps(made_by).encode())
    for file in (*inters, *items):
        digest.update(b"-" if file is None else content_hash(file))
    mixture = Path(folder) / f"mixture-{digest.hexdigest()[:20]}"
    if not mixture.is_dir():
        with locked(f"{mixture}.lock", f"the join of {name}"):
            if not mixture.is_dir():  # another run may have made it in between
                with whole_folder(mixture) as temporary:
                    inside = temporary / name
                    inside.mkdir()
                    _write(inside / f"{name}.inter", parts, inters, shared=True)
                    if any(items):
                        _write(inside / f"{name}.item", parts, items, shared=False)
    return mixture / name


def _write(target, parts, files, shared):
    """Join files of several datasets, with the columns that all of them have (``shared``) or that any has."""
    pairs = [(part, file) for part, file in zip(parts, files, strict=True) if file is not None]
    headers = [header(file, part) for part, file in pairs]
    kinds = {name: kind for fields in reversed(headers) for name, kind in fields.items()}
    for fields, (_, file) in zip(headers, pairs, strict=True):
        for name, kind in fields.items():
            if kind != kinds[name]:
                raise TigerError(
                    f"{file}: the column {name} is of type {kind}, in {pairs[0][1]} of type {kinds[name]}; give it one type "
                    f"in all datasets of a mixture"
                )
    columns = [name for name in kinds if not shared or all(name in fields for fields in headers)]
    first = parts[0]
    ids, separator = (first["USER_ID_FIELD"], first["ITEM_ID_FIELD"]), first["field_separator"]
    with open(target, "w", encoding=first["encoding"] or "utf-8", newline="\n") as stream:
        stream.write(separator.join(f"{name}:{kinds[name]}" for name in columns) + "\n")
        for fields, (part, file) in zip(headers, pairs, strict=True):
            table = read_columns(file, [name for name in columns if name in fields], part)
            for name in table.columns.intersection(ids):
                present = table[name] != ""  # missing tokens stay missing, and are refused later
                table.loc[present, name] = part["dataset"] + ":" + table.loc[present, name]
            table = table.reindex(columns=columns, fill_value="")
            for row in table.itertuples(index=False, name=None):
                stream.write(separator.join(map(_quoted, row)) + "\n")


def _quoted(value):
    """A value as written to a file: in quotes if it begins with a quote."""
    return '"' + value.replace('"', '""') + '"' if value.startswith('"') else value
