"""Does every input end in a right result or in one sentence?

Makes atomic files, tables of semantic IDs, files of embeddings, histories, settings and damaged checkpoints, and gives
each to a command. It has to end with status 0 and what an independent reading of the file says (the csv module, loops),
or with status 2, one sentence and no file that was not there before. What does neither is shown, as small as it can be made.

    python benchmarks/fuzz.py --examples=1000 --seed=0
"""

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st
from tqdm import tqdm

from recbole_tiger.cli import main as command
from recbole_tiger.settings.properties import known_settings

ITEMS, USERS, STEPS = 8, 5, 5
# Nothing but texts: what is given as a path or number of rows is to be small and within the folder of the example.
LEFT_OUT = {"gpu_id", "data_path", "worker", "nproc", "local_rank", "config_file"}

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
ENCODINGS = ["utf-8", "utf-8-sig", "latin-1", "utf-16", "gb18030"]


class Fault(AssertionError):
    """An input that ended otherwise than it should."""


def files_of(folder):
    """Files under a folder, but for the logs that any run writes."""
    found = {file.relative_to(folder) for file in Path(folder).rglob("*") if file.is_file()}
    return {file for file in found if file.parts[0] not in ("log", "log_tensorboard")}


def called(arguments):
    """Status, standard output and the sentence of a command.

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
    """Arguments of every command on a dataset."""
    settings = ["--data_path=data", "--state=CRITICAL", "--show_progress=False", "--quantizer=rq_kmeans"]
    sizes = ["--codebook_size=2", "--codebook_depth=2", "--topk=[2]", "--valid_metric=NDCG@2", "--beam_size=2"]
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


@st.composite
def edited(draw, text):
    """A text with some edits: characters put in, stretches taken out or doubled, lines moved."""
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["insert", "insert", "replace", "double", "line", "cut"]))
        if kind == "insert":
            text = text[:begin] + draw(st.sampled_from(CHARACTERS)) + text[begin:]
        elif kind == "replace":
            text = text[:begin] + draw(st.sampled_from(CHARACTERS)) + text[end:]
        elif kind == "double":
            text = text[:end] + text[begin:]
        elif kind == "cut":
            text = text[:begin] if draw(st.booleans()) else text[begin:]
        else:
            lines = text.split("\n")
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from([*lines, ""])))
            text = "\n".join(lines)
    return text


def read_table(kind, encoding, separator):
    """An atomic file by the csv module: rows of dicts of column to value; empty lines count for nothing."""
    text = Path(f"data/mine/mine.{kind}").read_bytes().decode(encoding)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    names = [column.partition(":")[0] for column in rows[0]]
    return [dict(zip(names, [*row, *[""] * len(names)], strict=False)) for row in rows[1:] if any(map(str.strip, row))]


@st.composite
def of_atomic_files(draw):
    """Atomic files that were edited, encoded and separated in many ways."""
    texts = {kind: draw(edited(text)) for kind, text in atomic_files().items()}
    separator = draw(st.sampled_from(["\t", "\t", "\t", ",", "|", ";", " "]))
    texts = {kind: text.replace("\t", separator) for kind, text in texts.items()}
    return texts, separator, draw(st.sampled_from(["utf-8", "utf-8", *ENCODINGS])), draw(st.booleans())


def check_atomic_files(example):
    """RecBole and the package see the users, items and rows that the csv module sees."""
    from recbole.data import create_dataset

    from recbole_tiger import SemanticIDs
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
    dataset = create_dataset(experiment.prepare("SASRec", "mine", settings))
    tokens = [dataset.id2token(field, dataset.inter_feat[field]).tolist() for field in ("user_id", "item_id")]
    if Counter(zip(*tokens, strict=True)) != Counter((row["user_id"], row["item_id"]) for row in rows):
        raise Fault("other interactions than are written")
    if set(dataset.field2id_token["item_id"][1:]) != expected:
        raise Fault("another catalogue than is written")
    return "right"


def id_table():
    """The text of a table of semantic IDs in order."""
    rows = [f"i{i}\t{i // 4}\t{i % 4 // 2}\t{i % 2}" for i in range(ITEMS)]
    return "\n".join(["item\tcode_1\tcode_2\tcollision", *rows]) + "\n"


def of_semantic_ids():
    """Tables of semantic IDs that were edited."""
    return edited(id_table())


def check_semantic_ids(text):
    """The table that is read is that of the file."""
    from recbole_tiger import SemanticIDs

    write_dataset(atomic_files())
    Path("mine.tsv").write_text(text, encoding="utf-8", newline="")
    status, *_ = called(["tokenize", *shared(), "--semantic_ids=mine.tsv", "--output=ids.tsv"])
    if status:
        return "refused"
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    expected = {item: list(map(int, codes)) for item, *codes in (line.split("\t") for line in lines[1:] if line)}
    found = SemanticIDs.load("ids.tsv")
    if dict(zip(found.items, found.codes.tolist(), strict=True)) != expected:
        raise Fault(f"other IDs than {expected}")
    return "right"


def damages(size):
    """Damage to a file of ``size`` bytes: a list of kind, place and number of bytes."""
    one = st.tuples(st.sampled_from(["flip", "cut", "remove"]), st.integers(0, max(0, size - 1)), st.integers(1, 40))
    return st.lists(one, max_size=3)


def damaged(content, changes):
    """Bytes with some bits flipped, bytes taken out, or the end cut off."""
    content = bytearray(content)
    for kind, place, n in changes:
        if kind == "flip":
            content[place : place + 1] = [byte ^ 1 << n % 8 for byte in content[place : place + 1]]
        elif kind == "cut":
            del content[place:]
        else:
            del content[place : place + n]
    return bytes(content)


@st.composite
def of_embeddings(draw):
    """Files of embeddings of many shapes, types and orders, some of them damaged."""
    n = draw(st.sampled_from([ITEMS, ITEMS, ITEMS + 2, 1, 0]))
    tokens = draw(st.permutations([f"i{i}" for i in range(n)]))
    kind = draw(st.sampled_from(["f4", "f8", "f2", "i8", "U1", "c8", "?"]))
    shape = draw(st.sampled_from([(n, 4), (n, 4), (n, 1), (n, 0), (n,), (4, n), (n, 2, 2), (n + 1, 4)]))
    x = np.random.default_rng(draw(st.integers(0, 3))).normal(size=shape)
    if x.size and draw(st.booleans()):
        x.flat[draw(st.integers(0, x.size - 1))] = draw(st.sampled_from([np.nan, np.inf, 1e300, 0]))
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
    return name, damaged(content, draw(damages(len(content)))), tokens


def check_embeddings(example):
    """A file of numbers for every item makes codes; any other is refused."""
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
    """Train a small model in a folder; returns its checkpoint."""
    with _in(folder):
        write_dataset(atomic_files())
        embed([f"i{i}" for i in range(ITEMS)])
        layers = [
            "--hidden_size=8",
            "--n_heads=1",
            "--head_size=8",
            "--inner_size=8",
            "--n_layers=1",
            "--n_decoder_layers=1",
        ]
        status, *_ = called(["run", "--model=TIGER", *shared(), *layers, "--epochs=1", "--item_embeddings=mine.npz"])
        assert status == 0
        (file,) = Path("saved").glob("TIGER-*.pth")
        return file.absolute()


@st.composite
def of_histories(draw):
    """Files of histories: edited tokens, quotes and separators, a line each."""
    lines = draw(st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=10), min_size=1, max_size=5))
    text = "".join(",".join(f"i{item}" for item in line) + "\n" for line in lines)
    return draw(edited(text)), draw(st.integers(0, ITEMS + 1)), draw(st.booleans())


def check_histories(example, checkpoint):
    """A line of JSON for every line of the file, with that line's history and k other items, or those that are left."""
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
    """What a damaged checkpoint that is read recommends is what the whole one does."""
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


@st.composite
def of_settings(draw):
    """A YAML file of settings with any values, and some broken YAML."""
    keys = st.sampled_from(sorted(known_settings() - LEFT_OUT)) | st.sampled_from(["on", "1", "epoch", "neg_sampling"])
    values = draw(st.dictionaries(keys, VALUES, min_size=1, max_size=2))
    return draw(edited("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())))


def check_settings(text):
    """A run of any settings begins or is refused."""
    write_dataset(atomic_files())
    embed([f"i{i}" for i in range(ITEMS)])
    Path("mine.yaml").write_text(text, encoding="utf-8", newline="")
    arguments = [*shared(), "--item_embeddings=mine.npz", "--config_files=mine.yaml"]
    status, *_ = called(["tokenize", *arguments])
    return "refused" if status else "right"


@contextlib.contextmanager
def _in(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def search(strategy, check, examples, seed, bar=None):
    """Give so many examples of a strategy to a check, each in a folder of its own, which is removed.

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
    """What there is to search: name -> strategy and check. A model is trained in ``folder``."""
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
        "checkpoints": (damages(checkpoint.stat().st_size), lambda changes: check_checkpoint(changes, checkpoint, expected)),
    }


def main(argv=None):
    """Search and print the counts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000, help="of all kinds together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    faults = {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = searches(folder)
        counts = {}
        with tqdm(total=args.examples, unit="example") as bar:
            for name, (strategy, check) in kinds.items():
                bar.set_description(name)
                try:
                    counts[name] = search(strategy, check, max(1, args.examples // len(kinds)), args.seed, bar)
                except Fault as error:
                    faults[name] = "\n".join([str(error), *getattr(error, "__notes__", [])])
    for name, found in counts.items():
        print(f"{name}: {found['right']} right, {found['refused']} refused")
    for name, fault in faults.items():
        print(f"{name}: FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
