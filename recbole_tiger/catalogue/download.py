"""Download of the Amazon product data of 2014 from the official address, and conversion to RecBole's atomic files."""

import ast
import gzip
import html
import json
import re
import zlib
from logging import getLogger
from pathlib import Path

import pandas as pd
import requests
import urllib3
from recbole.data.dataset import Dataset
from tqdm import tqdm

from recbole_tiger.catalogue.datasets import DATASETS, OFFICIAL, Counts
from recbole_tiger.catalogue.mixture import mix, sources
from recbole_tiger.errors import TigerError
from recbole_tiger.files import locked, make_folder, whole_file, whole_folder

CHUNK = 2**18
ATTEMPTS = 5
TIMEOUT = 60  # seconds without a byte

DAY = 86400
# Seconds between the reviews of one day. RecBole stores times as float32, which cannot tell single seconds apart at 1.4e9.
STEP = 128
ASIN = re.compile(rb"'asin': '(\w+)'")


# --- files from a server ---


def fetch(url, file, show_progress=False):
    """Download a gzip file, completely or not at all.

    A broken transfer leaves ``<file>.part``, and ``<file>.part.json`` with the server's description of the file. The next
    call resumes from there if the file on the server has not changed, and starts again otherwise.

    Raises:
        TigerError: the server cannot be reached or has no such file, the transfer broke off, or the file is damaged.
    """
    part, note = Path(f"{file}.part"), Path(f"{file}.part.json")
    for attempt in range(ATTEMPTS):
        try:
            size = _transfer(url, part, note, show_progress)
            break
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            have = part.stat().st_size if part.is_file() else 0
            if not have:
                raise TigerError(f"{url} cannot be reached ({error}); check the network, or name a --source") from error
            if attempt + 1 == ATTEMPTS:
                raise TigerError(
                    f"{url}: the transfer broke off after {have:,} bytes ({error}); run the same command again to resume it"
                ) from error
        except requests.RequestException as error:
            raise TigerError(f"{url} cannot be fetched: {error}") from error
        except OSError as error:
            raise TigerError(
                f"cannot write {part}: {error.strerror or error}; make room or choose another folder"
            ) from error
    have = part.stat().st_size
    try:
        if size is not None and have != size:
            raise TigerError(f"{url}: received {have:,} bytes, but the server announced {size:,}")
        for _ in _lines(part, "checking"):
            pass
    except TigerError as error:
        part.unlink()
        raise TigerError(f"{error}; it was removed, run the same command again") from error
    finally:
        note.unlink(missing_ok=True)
    part.rename(file)


def _transfer(url, part, note, show_progress):
    """Complete the file ``part``; returns the size that the server announced, or None."""
    before = _read_note(note)
    have = part.stat().st_size if part.is_file() and before else 0
    if have and have == before["size"]:
        return have  # complete, but not checked yet
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        resumed = response.status_code == 206
        now = _identity(response, have if resumed else 0)
        if have and (response.status_code == 416 or (resumed and now != before)):
            part.unlink()  # the file on the server has changed, or is shorter than the part
            return _transfer(url, part, note, show_progress)
        if not response.ok:
            raise TigerError(f"{url} cannot be fetched: the server answers {response.status_code} {response.reason}")
        with open(part, "ab" if resumed else "wb") as stream:
            with whole_file(note) as temporary:
                temporary.write_text(json.dumps(now), encoding="utf-8")
            bar = tqdm(
                total=now["size"],
                initial=stream.tell(),
                desc=part.stem,
                unit="B",
                unit_scale=True,
                disable=not show_progress,
            )
            with bar:
                for chunk in response.raw.stream(CHUNK, decode_content=False):
                    stream.write(chunk)
                    bar.update(len(chunk))
        if now["size"] is not None and part.stat().st_size < now["size"]:
            raise requests.ConnectionError(f"the server announced {now['size']:,}")
        return now["size"]


def _read_note(note):
    """The server's description of a partial file; None if it is absent or incomplete."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _identity(response, offset):
    """What identifies the version of a file on a server."""
    length = response.headers.get("Content-Length")
    return {
        "url": response.url,
        "etag": response.headers.get("ETag"),
        "last_modified": response.headers.get("Last-Modified"),
        "size": None if length is None else offset + int(length),
    }


# --- original files -> atomic files ---


def _lines(file, description, show_progress=False):
    """Lines of a gzip file, as bytes.

    Raises:
        TigerError: the file is damaged or truncated (gzip has a checksum and a length).
    """
    try:
        bar = tqdm(
            total=file.stat().st_size, desc=description, unit="B", unit_scale=True, leave=False, disable=not show_progress
        )
        with open(file, "rb") as stream, gzip.open(stream) as lines, bar:
            for line in lines:
                yield line
                bar.update(stream.tell() - bar.n)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TigerError(f"{file} is damaged, cut short or no gzip file ({error})") from error


def read_reviews(file, show_progress=False):
    """Interactions of a 5-core reviews file, which has one JSON object per line.

    Returns:
        DataFrame with the columns ``user`` (numbered from 1 in the order of the file), ``item`` and ``day`` (since 1970),
        sorted by user and day; rows of the same day keep the order of the file.
    """
    rows = []
    for number, line in enumerate(_lines(file, "reviews", show_progress), start=1):
        try:
            review = json.loads(line)
            rows.append((review["reviewerID"], review["asin"], int(review["unixReviewTime"]) // DAY))
        except (ValueError, KeyError, TypeError) as error:
            raise TigerError(f"{file}, line {number} is no review with reviewerID, asin and unixReviewTime") from error
    frame = pd.DataFrame(rows, columns=["user", "item", "day"])
    frame["user"] = pd.factorize(frame["user"])[0] + 1
    return frame.sort_values(["user", "day"], kind="stable", ignore_index=True)


def read_metadata(file, items, department, show_progress=False):
    """Title, brand and category path of the given items, from a metadata file, which has one Python literal per line.

    Among several category paths it takes the first one in ``department``, or else the first one.

    Returns:
        DataFrame with the columns ``title``, ``brand`` and ``categories``, one row per item in the order of ``items``; ""
        for missing values.

    Raises:
        TigerError: a line is not a literal, or the file lacks items.
    """
    wanted = {item.encode() for item in items}
    found = {}
    for number, line in enumerate(_lines(file, "metadata", show_progress), start=1):
        if wanted.isdisjoint(ASIN.findall(line)):
            continue  # parsing all lines would take minutes
        try:
            record = ast.literal_eval(line.decode("utf-8"))
            paths = record.get("categories") or [[]]
            path = next((path for path in paths if path[:1] == [department]), paths[0])
            values = [record.get("title") or "", record.get("brand") or "", " > ".join(path)]
            found[record["asin"]] = [" ".join(html.unescape(value).split()) for value in values]
        except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, MemoryError, RecursionError) as error:
            raise TigerError(f"{file}, line {number} is no record of an item: a Python literal with an asin") from error
    absent = [item for item in items if item not in found]
    if absent:
        raise TigerError(f"{file} lacks {len(absent)} of the items that were reviewed, first {absent[0]}")
    return pd.DataFrame([found[item] for item in items], columns=["title", "brand", "categories"])


def write_atomic(folder, dataset, reviews, metadata):
    """Write ``<dataset>.inter`` and ``<dataset>.item`` into a folder.

    Args:
        reviews: from :func:`read_reviews`.
        metadata: from :func:`read_metadata`, for the items in the order of their first occurrence in ``reviews``.
    """
    rank = reviews.groupby(["user", "day"]).cumcount()
    interactions = {
        "user_id:token": reviews["user"],
        "item_id:token": reviews["item"],
        "timestamp:float": reviews["day"] * DAY + rank * STEP,
    }
    columns = {f"{name}:token": metadata[name] for name in metadata}
    items = {"item_id:token": reviews["item"].unique(), **columns}
    for kind, table in (("inter", interactions), ("item", items)):
        with whole_file(Path(folder) / f"{dataset}.{kind}") as temporary:
            pd.DataFrame(table).to_csv(temporary, sep="\t", index=False, encoding="utf-8", lineterminator="\n")


def count(file):
    """Counts of an interaction file as written by this module, or None if it has other columns."""
    names = ["user_id:token", "item_id:token"]
    try:
        frame = pd.read_csv(file, sep="\t", usecols=names, dtype=str, keep_default_na=False, quoting=3)
    except ValueError:
        return None
    return Counts(frame[names[0]].nunique(), frame[names[1]].nunique(), len(frame))


def read_originals(category, folder, show_progress=False):
    """Read the original files of a category, and check that they have the published size.

    Args:
        category: an Amazon. folder: of the original files.

    Returns:
        DataFrames of :func:`read_reviews` and :func:`read_metadata`.

    Raises:
        TigerError: a file cannot be read, or its counts differ from the published ones.
    """
    reviews_file, metadata_file = (folder / name for name in category.originals)
    reviews = read_reviews(reviews_file, show_progress)
    items = reviews["item"].unique()
    counts = Counts(reviews["user"].nunique(), len(items), len(reviews))
    if counts != category.published:
        raise TigerError(
            f"{reviews_file} has {counts}, but the published dataset has {category.published}: it is another file"
        )
    return reviews, read_metadata(metadata_file, items, category.department, show_progress)


def download_amazon(dataset, data_path, source=OFFICIAL, show_progress=False, amazon=DATASETS):
    """Make the folder of an Amazon dataset from the official files.

    Args:
        dataset: a name of ``amazon``.
        data_path: the folder of datasets; the original files are kept in its folder ``originals``.
        source: URL or folder of the original files.

    Returns:
        the published Counts.

    Raises:
        TigerError: a file cannot be fetched or read, the counts differ from the published ones, the folder holds another
            dataset, or another process is making it.
    """
    folder = Path(data_path) / dataset
    if not folder.exists():
        with locked(f"{folder}.lock", f"the download of {folder}"):
            if not folder.exists():  # another process may have made it in the meantime
                return _make_amazon(amazon[dataset], folder, source, show_progress)
    check_published(dataset, data_path, amazon)
    if not (folder / f"{dataset}.item").is_file():
        raise TigerError(f"{folder} has no {dataset}.item: move the folder away, and run the same command again")
    return amazon[dataset].published


def _make_amazon(category, folder, source, show_progress):
    """Make a missing folder for :func:`download_amazon`."""
    if "://" in source:
        originals = folder.parent / "originals"
        make_folder(originals)
        for name in category.originals:
            if not (originals / name).is_file():
                fetch(f"{source.rstrip('/')}/{name}", originals / name, show_progress)
        remedy = f"remove it to fetch it again, or name another --source than {source}"
    else:
        originals = Path(source)
        for name in category.originals:
            if not (originals / name).is_file():
                raise TigerError(f"{originals / name} does not exist: --source is a URL or a folder with {name}")
        remedy = "name another --source"
    try:
        reviews, metadata = read_originals(category, originals, show_progress)
    except TigerError as error:
        raise TigerError(f"{error}; {remedy}") from error
    with whole_folder(folder) as temporary:
        write_atomic(temporary, folder.name, reviews, metadata)
    return category.published


# --- the dataset of a run ---


def check_published(dataset, data_path, amazon=DATASETS):
    """Check that a published dataset has its published counts: RecBole downloads other data under the same names.

    Raises:
        TigerError: the dataset is missing, or its counts differ from the published ones.
    """
    folder, published = Path(data_path) / dataset, amazon[dataset].published
    if not folder.exists():
        raise TigerError(
            f"dataset {dataset} is not at {folder}; fetch it by recbole-tiger download --dataset={dataset} "
            f"--data_path={data_path}"
        )
    file = folder / f"{dataset}.inter"
    counts = count(file) if file.is_file() else None
    if counts != published:
        raise TigerError(
            f"{folder} holds another dataset than the published {dataset} ({counts or f'no {file.name} with its columns'} "
            f"instead of {published}); move it away or use another data_path, and run recbole-tiger download "
            f"--dataset={dataset} --data_path=..."
        )


def ensure_dataset(config, text_needed=False):
    """Make the dataset of a run available: download a dataset of RecBole's list, check a published one, mix several.

    Args:
        text_needed: whether every dataset of a mixture needs item text.

    Raises:
        TigerError: the dataset is unknown or cannot be fetched, or other data are stored under the name of a published one.
    """
    folder = Path(config["data_path"])
    if "," in config["dataset"]:
        if not folder.is_dir():  # after an earlier call data_path is that of the mixture
            parts = sources(config)
            for part in parts:
                ensure_dataset(part)
            config["data_path"] = str(mix(parts, config["cache_dir"], text_needed))
    elif config["dataset"] in DATASETS and not config["benchmark_filename"]:
        check_published(config["dataset"], folder.parent)
    elif not folder.exists():
        if config["benchmark_filename"]:
            raise TigerError(f"{config['dataset']} has no pre-split files: {folder} does not exist; give its --data_path")
        dataset = Dataset.__new__(Dataset)
        dataset.config, dataset.logger = config, getLogger()
        dataset.dataset_name, dataset.dataset_path = config["dataset"], config["data_path"]
        dataset._download()
