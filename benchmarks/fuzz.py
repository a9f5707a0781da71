"""Does every input end in a right result or in one sentence?

Makes atomic files, tables of semantic IDs, files of embeddings, histories, settings and damaged checkpoints, and gives each
to a command. The command has to end with status 0 and the result of an independent reader of the file (the csv module,
loops), or with status 2, one sentence and no new file. Inputs that do neither are minimised and shown.

    python benchmarks/fuzz.py --examples=1000 --seed=0
"""

import argparse
import contextlib
import csv
import functools
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st
from tqdm import tqdm

from recbole_tiger.catalogue.quantizers import QUANTIZERS
from recbole_tiger.cli import main as command
from recbole_tiger.report.results import read_results
from recbole_tiger.settings.config import make_config
from recbole_tiger.settings.properties import ADDED_LATER, NOT_IN_RUN_KEY, defaults_of, known_settings, settings_of

ITEMS, USERS, STEPS = 8, 5, 5
# Settings of a model that trains quickly.
LAYERS = {"hidden_size": 8, "n_heads": 1, "head_size": 8, "inner_size": 8, "n_layers": 1, "n_decoder_layers": 1}
# Texts only: paths and numbers of rows have to be small and within the folder of the example.
LEFT_OUT = {"gpu_id", "data_path", "worker", "nproc", "local_rank", "config_file"}
# Settings to which RecBole adds missing parts.
REWRITTEN = {"train_neg_sample_args", "eval_args"}

CHARACTERS = [
    "\t",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\0",
    '"',
    '""',
    "'",
    ",",
    ";",
    ":",
    "|",
    "\\",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x1c",
    "\x1a",
]
CHARACTERS += [
    "é",
    "茶",
    "😀",
    "\u200b",
    "NA",
    "nan",
    "None",
    "null",
    "[]",
    "inf",
    "-1",
    "1e400",
    "i1",
    "u1",
    "token",
    "#",
    "",
]
# Characters that a title may have almost anywhere.
WITHIN_TITLES = [*(text for text in CHARACTERS if not set(text) & set("\t\n\r\0")), "\t"]
# Tokens of items and users by number.
TOKENS = ["i{}", "i{}", "{}", "0{}", "{}.0", "a b{}", "a'{}", 'a"{}', "a,{}", "#{}", "-{}", "{}e5", "NA{}", "é茶{}", "A\\{}"]
ENCODINGS = ["utf-8", "utf-8-sig", "latin-1", "utf-16", "gb18030"]


class Fault(AssertionError):
    """An input with a wrong outcome."""


def files_of(folder):
    """Files under a folder, except for the logs of runs."""
    found = {file.relative_to(folder) for file in Path(folder).rglob("*") if file.is_file()}
    return {file for file in found if file.parts[0] not in ("log", "log_tensorboard")}


def called(arguments):
    """Run a command; return its status, standard output and sentence.

    Raises:
        Fault: it ended in an exception, in another status than 0 or 2, in more or less than a sentence, or left files.
    """
    before = files_of(".")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = command(arguments)
        except SystemExit as error:
            status = error.code
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error}; of {arguments}") from error
    lines = [line for line in err.getvalue().splitlines() if "error: " in line]
    if status not in (0, 2) or len(lines) != (status == 2):
        raise Fault(f"status {status} with {lines} of {arguments}")
    if status == 2 and (left := files_of(".") - before):
        raise Fault(f"refused, and left {sorted(map(str, left))}")
    if halves := [file for file in files_of(".") if file.name.startswith(".")]:
        raise Fault(f"half-written {halves}")
    return status, out.getvalue(), "".join(lines)


def shared(name="mine"):
    """Arguments common to commands on a dataset."""
    settings = ["--data_path=data", "--state=CRITICAL", "--show_progress=False", "--quantizer=rq_kmeans"]
    sizes = ["--codebook_size=4", "--codebook_depth=2", "--topk=[2]", "--valid_metric=NDCG@2", "--beam_size=2"]
    return [f"--dataset={name}", *settings, *sizes]


def atomic_files():
    """The texts of an item and an interaction file in order: a dict of kind to text."""
    items = ["item_id:token\ttitle:token\tprice:float", *(f"i{i}\tTea no. {i}\t{i}.5" for i in range(ITEMS))]
    rows = [f"u{u}\ti{(3 * u + 2 * s) % ITEMS}\t{s}" for u in range(USERS) for s in range(STEPS)]
    return {
        "item": "\n".join(items) + "\n",
        "inter": "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n",
    }


def write_dataset(texts, encoding="utf-8"):
    """Write ``data/mine``; characters that the encoding lacks are left out."""
    folder = Path("data/mine")
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in texts.items():
        (folder / f"mine.{kind}").write_bytes(text.encode(encoding, errors="ignore"))


def embed(tokens):
    """Write ``mine.npz``: an embedding of each token, all different."""
    x = np.random.default_rng(0).normal(size=(len(tokens), 4))
    np.savez("mine.npz", items=np.array(tokens, dtype=str), embeddings=x)


def one_in(n):
    """True once in a given number of times; Hypothesis draws bounds of numbers more often than others."""
    return st.sampled_from([*[False] * (n - 1), True])


@st.composite
def edited(draw, text):
    """A text, every other time with one edit: characters inserted, a part removed or doubled, a line moved."""
    if draw(st.booleans()):
        return text
    begin = draw(st.integers(0, len(text)))
    end = min(len(text), begin + draw(st.integers(0, 12)))
    kind = draw(st.sampled_from(["insert", "insert", "replace", "double", "line", "cut"]))
    if kind == "insert":
        return text[:begin] + draw(st.sampled_from(CHARACTERS)) + text[begin:]
    if kind == "replace":
        return text[:begin] + draw(st.sampled_from(CHARACTERS)) + text[end:]
    if kind == "double":
        return text[:end] + text[begin:]
    if kind == "cut":
        return text[:begin] if draw(st.booleans()) else text[begin:]
    lines = text.split("\n")
    lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from([*lines, ""])))
    return "\n".join(lines)


@st.composite
def written(draw, rows, separator=None):
    """Rows as the text of a table: with either line end, with or without a final one, with or without quotes.

    Args:
        rows: lists of strings, the header first. separator: None: a tab, and no quotes.
    """
    quoted = separator is not None and draw(st.sampled_from([False, False, True]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    head, *rows = rows
    if quoted:
        rows = [['"' + value.replace('"', '""') + '"' for value in row] for row in rows]
    return end.join((separator or "\t").join(row) for row in [head, *rows]) + draw(st.sampled_from([end, end, ""]))


def read_table(kind, encoding, separator):
    """Read an atomic file with the csv module: dicts of column to value; empty lines are skipped."""
    text = Path(f"data/mine/mine.{kind}").read_bytes().decode(encoding)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    names = [column.partition(":")[0] for column in rows[0]]
    return [dict(zip(names, [*row, *[""] * len(names)], strict=False)) for row in rows[1:] if any(map(str.strip, row))]


@st.composite
def of_atomic_files(draw):
    """Atomic files with tokens, titles, columns, orders, separators and encodings of many kinds, some of them edited."""
    separator = draw(st.sampled_from(["\t", "\t", "\t", ",", "|", ";", " "]))
    item, user = draw(st.sampled_from(TOKENS)), draw(st.sampled_from(TOKENS))

    def value(text):
        return text if draw(one_in(200)) else text.replace(separator, "-")

    items = [["item_id:token", "title:token", "price:float", "tags:token_seq"]]
    for i in draw(st.permutations(range(ITEMS))):
        title = f"Tea no. {i}"
        if draw(one_in(4)):
            begin = draw(st.integers(0, len(title)))
            title = title[:begin] + draw(st.sampled_from(WITHIN_TITLES)) + title[begin:]
        row = [item.format(i), title, draw(st.sampled_from([f"{i}.5", "", "7"])), draw(st.sampled_from(["a b", "a", ""]))]
        items += [list(map(value, row))] * (2 if draw(one_in(8)) else 1)
    rows = [["user_id:token", "item_id:token", "timestamp:float", "rating:float"]]
    of_users = [(u, s) for u in range(USERS) for s in range(STEPS)]
    if draw(st.booleans()):
        of_users = draw(st.permutations(of_users))
    for u, s in of_users[draw(st.integers(0, 3)) :]:
        row = [
            user.format(u),
            item.format((3 * u + 2 * s) % ITEMS),
            draw(st.sampled_from([f"{s}", f"{s}.0", f"{s}e3"])),
            "4",
        ]
        rows.append(list(map(value, row)))
    texts = {}
    for kind, table in (("item", items), ("inter", rows)):
        order = draw(st.permutations(range(4))) if draw(st.booleans()) else range(draw(st.sampled_from([3, 4])))
        texts[kind] = draw(written([[row[place] for place in order] for row in table], separator))
    kind = draw(st.sampled_from(list(texts)))
    texts[kind] = draw(edited(texts[kind]))
    return texts, separator, draw(st.sampled_from([*["utf-8"] * 6, *ENCODINGS])), not draw(one_in(5))


def check_atomic_files(example):
    """RecBole and the package read the same users, items and rows as the csv module."""
    from recbole.data import create_dataset

    from recbole_tiger import SemanticIDs
    from recbole_tiger.catalogue.item_text import text_of_items
    from recbole_tiger.runs import experiment

    texts, separator, encoding, told = example
    write_dataset(texts, encoding)
    own = [f"--field_separator='{separator}'", *([f"--encoding={encoding}"] if told else [])]
    try:
        tokens = sorted({row["item_id"] for row in read_table("item", encoding if told else "utf-8", separator)})
        embed(tokens or ["i0"])
    except (UnicodeError, LookupError, KeyError, IndexError, csv.Error, ValueError):
        embed(["i0"])
    arguments = [*shared(), *own, "--item_embeddings=mine.npz"]
    status, *_ = called(["tokenize", *arguments, "--output=ids.tsv"])
    if status:
        return "refused"
    encoding = encoding if told else "utf-8"
    items, rows = read_table("item", encoding, separator), read_table("inter", encoding, separator)
    expected = {row["item_id"] for row in items}
    if set(SemanticIDs.load("ids.tsv").items) != expected:
        raise Fault(f"other items than {sorted(expected)}")
    settings = {"data_path": "data", "field_separator": separator, **({"encoding": encoding} if told else {})}
    config = experiment.prepare("SASRec", "mine", settings)
    dataset = create_dataset(config)
    tokens = [dataset.id2token(field, dataset.inter_feat[field]).tolist() for field in ("user_id", "item_id")]
    times = dataset.inter_feat["timestamp"].tolist()
    written = Counter((row["user_id"], row["item_id"], float(np.float32(row["timestamp"]))) for row in rows)
    if Counter(zip(*tokens, times, strict=True)) != written:
        raise Fault("other interactions than are written")
    if set(dataset.field2id_token["item_id"][1:]) != expected:
        raise Fault("another catalogue than is written")
    titles = {row["item_id"]: row.get("title", "").strip() for row in reversed(items)}  # the first row of an item counts
    found = dict(zip(titles, text_of_items(config, list(titles), needed=False)[1], strict=True))
    if other := {item: found[item] for item, title in titles.items() if title not in ("", "[]", found[item])}:
        raise Fault(f"other titles than are written: {other}")
    return "right"


@st.composite
def of_semantic_ids(draw):
    """Tables of semantic IDs, every other one edited."""
    depth = draw(st.integers(1, 4))
    code = st.integers(0, 5) | st.sampled_from([0, 1, 99])
    codes = draw(st.lists(st.tuples(*[code] * (depth + 1)), min_size=ITEMS, max_size=ITEMS, unique=True))
    items = draw(st.permutations([f"i{i}" for i in range(ITEMS)]))
    rows = [[item, *map(str, row)] for item, row in zip(items, codes, strict=True)]
    head = ["item", *(f"code_{level + 1}" for level in range(depth)), "collision"]
    return draw(edited(draw(st.sampled_from(["", "", "", "\ufeff"])) + draw(written([head, *rows]))))


def check_semantic_ids(text):
    """The table read by the package is that of the file."""
    from recbole_tiger import SemanticIDs

    write_dataset(atomic_files())
    Path("mine.tsv").write_text(text, encoding="utf-8", newline="")
    status, *_ = called(["tokenize", *shared(), "--semantic_ids=mine.tsv", "--output=ids.tsv"])
    if status:
        return "refused"
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    expected = {item: list(map(int, codes)) for item, *codes in (line.split("\t") for line in lines[1:] if line)}
    found = SemanticIDs.load("ids.tsv")
    if dict(zip(found.items, found.codes.tolist(), strict=True)) != expected:
        raise Fault(f"other IDs than {expected}")
    return "right"


@st.composite
def damages(draw, size, unread=()):
    """Damage to a file of ``size`` bytes: a list of kind, place and number of bytes.

    Args:
        unread: places whose bytes tell nothing.
    """
    place = st.integers(0, max(0, size - 1))
    if unread and draw(st.booleans()):
        return draw(st.lists(st.tuples(st.just("flip"), st.sampled_from(unread), st.integers(0, 7)), max_size=3))
    kind = st.sampled_from(["flip", "flip", "cut", "remove", "append"])
    return draw(st.lists(st.tuples(kind, place, st.integers(1, 40)), max_size=2))


def unread_places(file):
    """Places of a zip archive whose bytes do not affect its content: the padding before arrays."""
    places = []
    with zipfile.ZipFile(file) as archive, open(file, "rb") as stream:
        for member in archive.infolist():
            stream.seek(member.header_offset + 26)
            name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
            places += range(member.header_offset + 30 + name + 4, member.header_offset + 30 + name + extra)
    return places


def damaged(content, changes):
    """Bytes with some bits flipped, bytes removed or appended, or the end cut off."""
    content = bytearray(content)
    for kind, place, n in changes:
        if kind == "flip":
            content[place : place + 1] = [byte ^ 1 << n % 8 for byte in content[place : place + 1]]
        elif kind == "cut":
            del content[place:]
        elif kind == "append":
            content += bytes(n)
        else:
            del content[place : place + n]
    return bytes(content)


@st.composite
def of_embeddings(draw):
    """Files of embeddings of many shapes, types and orders, some of them damaged."""
    n = draw(st.sampled_from([*[ITEMS] * 4, *[ITEMS + 2] * 4, 0]))
    tokens = draw(st.permutations([f"i{i}" for i in range(n)]))
    kind = draw(st.sampled_from([*["f4", "f8", "f2", ">f4", "i8", "u1"] * 3, "U1", "c8", "?"]))
    shape = draw(st.sampled_from([*[(n, 4), (n, 3), (n, 16)] * 8, (n, 1), (n, 0), (n,), (4, n), (n, 2, 2), (n + 1, 4)]))
    x = 9 * np.random.default_rng(draw(st.integers(0, 3))).normal(size=shape)
    if x.size and draw(one_in(6)):
        x.flat[draw(st.integers(0, x.size - 1))] = draw(st.sampled_from([np.nan, np.inf, 1e300, 0, 0]))
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    with np.errstate(all="ignore"):
        x = x.astype(kind)
    file = io.BytesIO()
    if draw(st.booleans()):
        np.savez(file, items=np.array(tokens, dtype=str), embeddings=x)
        name = "mine.npz"
    else:
        np.save(file, x)
        name = "mine.npy"
    content = file.getvalue()
    return name, damaged(content, draw(damages(len(content))) if draw(st.booleans()) else []), tokens


def check_embeddings(example):
    """A file with numbers for every item makes codes; any other is refused."""
    from recbole_tiger import SemanticIDs

    name, content, tokens = example
    write_dataset(atomic_files())
    Path(name).write_bytes(content)
    Path("mine.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    status, *_ = called(["tokenize", *shared(), f"--item_embeddings={name}", "--output=ids.tsv"])
    if status:
        return "refused"
    with np.load(name) if name == "mine.npz" else contextlib.nullcontext({"embeddings": np.load(name)}) as arrays:
        x, own = arrays["embeddings"], arrays["items"].tolist() if name == "mine.npz" else tokens
    if x.shape[:1] != (len(own),) or x.ndim != 2 or not {f"i{i}" for i in range(ITEMS)} <= set(own):
        raise Fault(f"taken, though {x.shape} is not one row for each of {own}")
    if set(SemanticIDs.load("ids.tsv").items) != {f"i{i}" for i in range(ITEMS)}:
        raise Fault("other items than the dataset's")
    return "right"


# --- with a trained model ---


def train(folder):
    """Train a small model in a folder; return its checkpoint."""
    with _in(folder):
        write_dataset(atomic_files())
        embed([f"i{i}" for i in range(ITEMS)])
        layers = [f"--{key}={value}" for key, value in LAYERS.items()]
        status, *_ = called(["run", "--model=TIGER", *shared(), *layers, "--epochs=1", "--item_embeddings=mine.npz"])
        assert status == 0
        (file,) = Path("saved").glob("TIGER-*.pth")
        return file.absolute()


@st.composite
def of_histories(draw):
    """Files of histories: edited tokens, quotes and separators, one history per line."""
    lines = draw(st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=10), min_size=1, max_size=5))
    text = "".join(",".join(f"i{item}" for item in line) + "\n" for line in lines)
    k = draw(st.sampled_from([*range(1, ITEMS + 1), 0, ITEMS + 1]))
    return draw(edited(text)), k, draw(st.booleans())


def check_histories(example, checkpoint):
    """Every line of the file gives a line of JSON with its history and k other items, or those left."""
    text, k, exclude = example
    Path("histories.txt").write_text(text, encoding="utf-8", newline="")
    options = [f"--k={k}", *(["--exclude_history"] if exclude else [])]
    status, out, _ = called(["recommend", f"--checkpoint={checkpoint}", "--histories=histories.txt", *options])
    if status:
        return "refused"
    answers = [json.loads(line) for line in out.splitlines()]
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    if len(answers) != len(lines):
        raise Fault(f"{len(answers)} answers for {len(lines)} lines")
    for answer in answers:
        items = [row["item"] for row in answer["recommendations"]]
        left_out = set(answer["history"]) if exclude else set()
        if len(items) != min(k, ITEMS - len(left_out)) or len(set(items)) < len(items) or left_out & set(items):
            raise Fault(f"{items} after {answer['history']} with {options}")
    return "right"


def check_checkpoint(changes, checkpoint, expected):
    """A damaged checkpoint that can be read recommends the same as the undamaged one."""
    Path("mine.pth").write_bytes(damaged(checkpoint.read_bytes(), changes))
    status, out, _ = called(["recommend", "--checkpoint=mine.pth", "--history=i1,i2", "--k=5"])
    if status == 0 and out != expected:
        raise Fault("a damaged checkpoint recommends something else")
    return "refused" if status else "right"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.floats(-2, 2)
    | st.sampled_from(["", "x", "5,10", "nan", "[1,2", "None"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "inter", "item", "RS", "LS", "mode"]), inner)
    ),
    max_leaves=4,
)


@functools.cache
def usual():
    """Defaults of all settings, for a model that trains quickly."""
    return {**make_config("TIGER", "ml-100k", {}).final_config_dict, **LAYERS, "epochs": 1}


def near(key):
    """Values of the kind of a setting."""
    value, setting = usual().get(key), settings_of("TIGER").get(key)
    if setting and " or " in (setting.kind or ""):
        return st.sampled_from(setting.kind.split(" or "))
    if key == "quantizer":
        return st.sampled_from(list(QUANTIZERS))
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.sampled_from([value, value + 1, 1, 2, 3])
    if isinstance(value, float):
        return st.sampled_from([value, value / 2, 0.5, 0.0, 1, 2e-3])
    if isinstance(value, list) and value:
        return st.sampled_from([value, value[:1], value[::-1], value * 2])
    if isinstance(value, str):
        return st.sampled_from([value, value, value.upper(), value + "x"])
    return st.none() | VALUES if value is None else st.just(value)


@st.composite
def of_settings(draw):
    """Some settings with values of their kind, or of any, as a dict; and as YAML, sometimes edited."""
    own = [key for key in defaults_of("TIGER") if key not in LEFT_OUT]
    keys = st.sampled_from([*own * 4, *sorted(known_settings() - LEFT_OUT), "on", "1", "epoch", "neg_sampling"])
    chosen = {}
    for key in draw(st.lists(keys, min_size=1, max_size=3, unique=True)):
        chosen[key] = draw(VALUES if draw(one_in(4)) else near(key))
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in chosen.items())
    return chosen, draw(edited(text)) if draw(one_in(3)) else text


def check_settings(example):
    """Any settings are refused, or a run uses them and ends with metrics."""
    chosen, text = example
    write_dataset(atomic_files())
    embed([f"i{i}" for i in range(ITEMS)])
    Path("layers.yaml").write_text(json.dumps({**LAYERS, "epochs": 1, "train_batch_size": 64}), encoding="utf-8")
    Path("mine.yaml").write_text(text, encoding="utf-8", newline="")
    arguments = [*shared(), "--item_embeddings=mine.npz", "--config_files=layers.yaml,mine.yaml"]
    status, *_ = called(["tokenize", *arguments])  # its files are written whole
    if status:
        return "refused"
    status, *_ = called(["run", "--model=TIGER", *arguments])
    if status:
        return "refused"
    (result,) = read_results("results")
    read = {key: value for key, value in chosen.items() if f"{key}: {json.dumps(value)}" in text.splitlines()}
    read = {key: value for key, value in read.items() if key not in REWRITTEN}
    for key, value in read.items():
        found = result["settings"].get(key, value if key in NOT_IN_RUN_KEY or key in ADDED_LATER else None)
        if found != value and not any(text.startswith(f"--{key}=") for text in arguments):
            raise Fault(f"{key} is {found!r} and not {value!r}")
    if not all(0 <= value <= 1 for value in result["test_result"].values()):
        raise Fault(f"metrics {result['test_result']}")
    return "right"


@contextlib.contextmanager
def _in(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def search(strategy, check, examples, seed, bar=None):
    """Give a number of examples of a strategy to a check, each in its own folder, which is removed.

    Args:
        seed: an int; None: always the same examples.

    Returns:
        Counter of what the checks said.

    Raises:
        Fault: of the smallest example that fails.
    """
    counts = Counter()

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(strategy)
    def one(example):
        with tempfile.TemporaryDirectory() as folder, _in(folder):
            try:
                counts[check(example)] += 1
            finally:
                if bar is not None:
                    bar.update()

    (one if seed is None else hypothesis.seed(seed)(one))()
    return counts


def searches(folder):
    """The kinds of inputs: name -> strategy and check. A model is trained in ``folder``."""
    checkpoint = train(folder)
    with tempfile.TemporaryDirectory() as empty, _in(empty):
        shutil.copy(checkpoint, "mine.pth")
        expected = called(["recommend", "--checkpoint=mine.pth", "--history=i1,i2", "--k=5"])[1]
    return {
        "atomic files": (of_atomic_files(), check_atomic_files),
        "semantic IDs": (of_semantic_ids(), check_semantic_ids),
        "embeddings": (of_embeddings(), check_embeddings),
        "histories": (of_histories(), lambda example: check_histories(example, checkpoint)),
        "settings": (of_settings(), check_settings),
        "checkpoints": (
            damages(checkpoint.stat().st_size, unread_places(checkpoint)),
            lambda changes: check_checkpoint(changes, checkpoint, expected),
        ),
    }


def main(argv=None):
    """Search and print the counts; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--examples", type=int, default=1000, help="number of examples of all kinds together (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="only these kinds, separated by commas, with the same number of each (default: all)")
    args = parser.parse_args(argv)
    faults = {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = searches(folder)
        of_each = max(1, args.examples // len(kinds))
        chosen = args.kinds.split(",") if args.kinds else list(kinds)
        counts = {}
        with tqdm(total=of_each * len(chosen), unit="example") as bar:
            for name in chosen:
                strategy, check = kinds[name]
                bar.set_description(name)
                try:
                    counts[name] = search(strategy, check, of_each, args.seed, bar)
                except Fault as error:
                    faults[name] = "\n".join([str(error), *getattr(error, "__notes__", [])])
    for name, found in counts.items():
        print(f"{name}: {found['right']} right, {found['refused']} refused")
    for name, fault in faults.items():
        print(f"{name}: FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
