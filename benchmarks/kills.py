"""Does a killed command, run again, end like an uninterrupted one?

Kills run, compare, tokenize, download and tune at random moments with SIGKILL, SIGTERM and SIGINT, and runs the same command
again, run and tune with --resume. The result files, semantic IDs and data have to be those of an uninterrupted command, and
the killed command has to end by its signal or with a sentence. Commands are forked from a process that has imported PyTorch
and RecBole, because importing them takes longer than the commands. Downloads are made-up files, served slowly by this
process. If a signal comes after the end of a command, it is sent again to another command.

    python benchmarks/kills.py --kills=200 --seed=0
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from generated import write_dataset
from originals import served, write_published_size
from tqdm import tqdm

from recbole_tiger.cli import main as main_of_commands
from recbole_tiger.files import content_hash
from recbole_tiger.report.results import read_results

FORKED = multiprocessing.get_context("forkserver")
IMPORTED = ["recbole_tiger.catalogue.download", "recbole_tiger.runs.experiment", "torch._dynamo", "torch.utils.tensorboard"]
FORKED.set_forkserver_preload(["__main__", *IMPORTED])

ITEMS = 60
SIGNALS = {signal.SIGKILL: {-9}, signal.SIGTERM: {-15, 143}, signal.SIGINT: {-2, 130}}
SHARED = ["--dataset=mine", "--data_path=data", "--show_progress=False", "--state=ERROR", "--epochs=4", "--stopping_step=4"]
OF_TIGER = ["--item_embeddings=mine.npz", "--quantizer=rq_kmeans", "--codebook_size=8", "--codebook_depth=2"]
OF_TIGER += ["--hidden_size=32", "--n_heads=2", "--head_size=16", "--inner_size=64", "--n_layers=1", "--n_decoder_layers=1"]
COMMANDS = {
    "run": ["run", "--model=TIGER", "--resume", *SHARED, *OF_TIGER],
    "compare": ["compare", "--models=SASRec,TIGER", *SHARED, *OF_TIGER],
    "tokenize": ["tokenize", "--output=ids.tsv", *SHARED, *OF_TIGER],
    "download": ["download", "--dataset=amazon-beauty", "--data_path=fetched"],
    "tune": ["tune", "--sweep=sizes.yaml", "--scheduler=none", "--resume", *SHARED, *OF_TIGER],
}
COMMANDS["tune"].remove("--codebook_size=8")
# Seconds between two pieces of a download.
PAUSE = 0.05


def prepare(folder):
    """Write the dataset, its embeddings and a sweep into a folder."""
    write_dataset(folder / "data", "mine", ITEMS, 100, 1000)
    x = np.random.default_rng(0).normal(size=(ITEMS, 16))
    np.savez(folder / "mine.npz", items=np.array([f"i{i}" for i in range(ITEMS)]), embeddings=x)
    (folder / "sizes.yaml").write_text("codebook_size: [4, 8]\n", encoding="utf-8")


def command(call, folder):
    """Run the command line in a separate process that writes ``err`` and ``out`` into the folder."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    for number, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.exit(main_of_commands(call))


def begin(name, folder, url):
    """Start a command in a folder.

    Args:
        url: of the originals that ``download`` fetches.
    """
    call = [*COMMANDS[name], *([f"--source={url}"] if name == "download" else [])]
    process = FORKED.Process(target=command, args=(call, folder))
    process.start()
    while process.is_alive() and not (folder / "err").is_file():  # until then a signal is not the command's
        time.sleep(0.001)
    return process


def end(process, folder):
    """Wait for the end of a command; return its status, negative for a signal, and its standard error."""
    process.join(600)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"hangs: {(folder / 'err').read_text(encoding='utf-8')[-2000:]}")
    err = folder / "err"
    return process.exitcode, err.read_text(encoding="utf-8") if err.is_file() else ""


def told(folder):
    """The results in a folder: scores of the models, the table of semantic IDs, and hashes of downloaded files."""
    results = read_results(folder / "results")
    scores = {result["label"]: (result["best_valid_result"], result["test_result"], result["epochs"]) for result in results}
    ids = folder / "ids.tsv"
    files = [file for file in (folder / "fetched").rglob("*") if file.is_file()]
    # SIGKILL leaves partly written files with hidden names.
    fetched = {file.name: content_hash(file) for file in files if "/." not in str(file)}
    return scores, ids.read_text(encoding="utf-8") if ids.is_file() else None, fetched


def kill(name, url, seconds, expected, draw):
    """Kill a command once and run it again.

    Args:
        url: as :func:`begin` takes it. seconds: before which it is killed. expected: what :func:`told` says of an
            uninterrupted one.

    Returns:
        the name of the signal; None if the command had ended before.

    Raises:
        AssertionError: with the fault.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prepare(folder)
        number = draw.choice(list(SIGNALS))
        process = begin(name, folder, url)
        time.sleep(draw.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid, number)
        status, err = end(process, folder)
        if status == 0:
            return None
        where = f"{name}, {number.name}"
        assert status in SIGNALS[number] and "Traceback" not in err, f"{where}: status {status}: {err[-2000:]}"
        status, err = end(begin(name, folder, url), folder)
        assert status == 0, f"{where}, then again: status {status}: {err[-2000:]}"
        assert told(folder) == expected, f"{where}, then again: another result: {told(folder)} and not {expected}"
        half = list(folder.rglob(".*"))
        assert number == signal.SIGKILL or not half, f"{where}: left {half}"
    return number.name


def main(argv=None):
    """Kill commands in turn and print the counts; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=200, help="number of kills of all commands together (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS), help="separated by commas (default: %(default)s)")
    args = parser.parse_args(argv)
    names = args.commands.split(",")
    draw, usual, counts, faults = random.Random(args.seed), {}, Counter(), 0
    with tempfile.TemporaryDirectory() as originals, served(originals) as (server, url):
        if "download" in names:
            write_published_size(originals, "amazon-beauty")
            server.pause = PAUSE
        end(begin("tokenize", Path(originals), url), Path(originals))  # it is refused; only its imports are wanted
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                prepare(Path(folder))
                start = time.perf_counter()
                status, err = end(begin(name, Path(folder), url), Path(folder))
                if status:
                    raise SystemExit(f"{name}, uninterrupted: status {status}: {err}")
                usual[name] = (time.perf_counter() - start, told(Path(folder)))
        for i in tqdm(range(args.kills), desc="kills"):
            name, found = names[i % len(names)], None
            while found is None:
                seconds, expected = usual[name]
                try:
                    found = kill(name, url, seconds, expected, draw)
                except AssertionError as error:
                    found = "fault"
                    faults += 1
                    tqdm.write(f"FAULT: {error}")
                if found is None:  # the machine is less busy than it was
                    usual[name] = (0.9 * seconds, expected)
            counts[f"{name}, {found}"] += 1
    for what, count in sorted(counts.items()):
        print(f"{what}: {count}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
