"""How do time and memory grow with the catalogue? Tokenizing, dataset, trie, training and decoding of 10^4 to 10^6 items.

python benchmarks/scale.py --output=benchmarks/results/scale.json --plot=benchmarks/results/scale.png

Every catalogue is generated (clustered embeddings, power-law popularity) and measured in a separate process, so that its
peak memory is its own. Any setting of the model may be given as --key=value.

With --checks it only measures the time that the checks of a dataset's files add to the start of a run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from generated import PAPER, clustered_embeddings, item_tokens, write_dataset
from recbole.data import data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import get_model, get_trainer
from tabulate import tabulate
from tqdm import tqdm

from recbole_tiger.catalogue.catalogue import quantize
from recbole_tiger.model.tiger import TIGER
from recbole_tiger.model.trie import Trie
from recbole_tiger.report.results import write_result
from recbole_tiger.runs import experiment
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.settings.identity import check_unchanged, run_inputs
from recbole_tiger.training.dataset import CatalogueDataset, training_windows
from recbole_tiger.training.memory import keep_freed_memory

SIZES = (10**4, 10**5, 10**6)
MOST_INTERACTIONS = 10**6
INTERACTIONS_A_USER = 9
# Steps of a schedule, more than are ever run.
FAR_OFF = 10**9
# Number of evaluated users.
USERS = 1024


def peak():
    """Peak memory of this process in bytes; the value of getrusage starts from that of the parent if it is larger."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"^VmHWM:\s*(\d+) kB", status, flags=re.MULTILINE).group(1)) * 1024


class Stopwatch:
    """Seconds since it was last read."""

    def __init__(self):
        self.begin = time.perf_counter()

    def read(self):
        """Seconds since the last call."""
        begin, self.begin = self.begin, time.perf_counter()
        return self.begin - begin


def write_generated(folder, n_items):
    """Write the files of a catalogue of this size; return the number of interactions."""
    n_interactions = min(MOST_INTERACTIONS, 10 * n_items)
    write_dataset(folder, "generated", n_items, n_interactions // INTERACTIONS_A_USER, n_interactions)
    return n_interactions


def measure(model_name, n_items, seconds, settings, folder):
    """Measure all stages of one catalogue.

    Args:
        model_name: a model of semantic IDs, or a recipe.
        seconds: of training that are measured, at the least.
        settings: the user's.
        folder: for the files that are generated.
    """
    libraries = peak()
    n_interactions = write_generated(folder, n_items)
    fixed = {
        "data_path": folder,
        "cache_dir": folder,
        "text_fields": ["title"],
        "checkpoint_dir": str(Path(folder) / "saved"),
        "gpu_id": "",  # time and memory are measured on the CPU
    }
    paper = {**PAPER, "quantizer": "rq_kmeans"} if model_name == "TIGER" else {}
    settings = {**paper, **settings, **fixed, "show_progress": True, "state": "ERROR"}
    config = experiment.prepare(model_name, "generated", settings)
    result = {"items": n_items, "interactions": n_interactions, "libraries_bytes": libraries}

    embeddings = clustered_embeddings(n_items)
    items = item_tokens(n_items)
    watch = Stopwatch()
    semantic_ids, _ = quantize(config, items, embeddings)
    result["tokenize_s"] = watch.read()
    result["tokenize_peak_rss_bytes"] = peak()
    result["largest_group"] = semantic_ids.statistics()["largest_group"]
    config["semantic_ids"] = str(Path(folder) / "semantic-ids.tsv")
    semantic_ids.save(config["semantic_ids"])
    if config["model"] == "VQRec":
        config["text_initializer"] = False  # it needs the quantizer, and the time of a step does not depend on it
    if get_model(config["model"]).needs_embeddings(config):
        config["item_embeddings"] = str(Path(folder) / "embeddings.npz")
        np.savez(config["item_embeddings"], items=np.array(items), embeddings=embeddings)
    del embeddings, semantic_ids, items

    watch.read()
    dataset = CatalogueDataset(config)
    train_data, _, test_data = data_preparation(config, dataset)
    result["dataset_s"] = watch.read()

    torch.manual_seed(config["seed"])
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    if isinstance(model, TIGER):
        watch.read()
        trie = Trie(model.network.codes)
        result["trie_s"] = watch.read()
        result["trie_bytes_per_item"] = trie.bytes() / n_items
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

    watch.read()
    windows = training_windows(train_data._dataset, trainer.one_target).to(config["device"])
    batches = windows.batches(config["train_batch_size"], torch.Generator().manual_seed(config["seed"]))
    result["windows_s"] = watch.read()
    targets, spent = 0, 0.0
    for number, batch in enumerate(batches):
        watch.read()
        trainer.train_step(windows, batch, FAR_OFF)
        if number:  # the first is a warm-up
            spent += watch.read()
            targets += int(windows.n_targets[batch].sum())
        if spent > seconds:
            break
    result["targets"] = int(windows.n_targets.sum())
    result["targets_per_s"] = targets / spent
    result["epoch_s"] = result["targets"] / result["targets_per_s"]
    result["epoch_s_is"] = f"extrapolated from {targets} targets"

    rows = test_data._dataset.inter_feat
    rows = rows[torch.randperm(len(rows))[:USERS]]
    evaluated = FullSortEvalDataLoader(config, test_data._dataset.copy(rows), None)
    trainer.evaluate(FullSortEvalDataLoader(config, test_data._dataset.copy(rows[:32]), None), load_best_model=False)
    watch.read()
    trainer.evaluate(evaluated, load_best_model=False)
    result["users_per_s"] = len(rows) / watch.read()
    result["peak_rss_bytes"] = peak()
    return result


def of_checks(dataset, settings):
    """Seconds of CPU time that a run spends at its start on checking its files."""
    config = experiment.configure("TIGER", dataset, settings)
    run_inputs(config)  # the hashes that name the run are not a check
    begin = time.process_time()
    experiment.fit_to_data(config, settings)
    check_unchanged(config)
    return time.process_time() - begin


def in_own_process(n_items, rest):
    """The measurements of one catalogue, made in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "one.json"
        command = [sys.executable, __file__, f"--items={n_items}", f"--output={file}", *rest]
        subprocess.run(command, check=True)  # noqa: S603 - this script
        return json.loads(file.read_text())["catalogues"][0]


def table(catalogues):
    """The measurements as a text table, one row per catalogue."""
    rows = [
        {
            "items": row["items"],
            "interactions": row["interactions"],
            "tokenize s": round(row["tokenize_s"], 1),
            "tokenize GB": round(row["tokenize_peak_rss_bytes"] / 1e9, 2),
            "dataset s": round(row["dataset_s"], 1),
            "trie bytes/item": round(row["trie_bytes_per_item"], 1) if "trie_bytes_per_item" in row else "",
            "targets/s": round(row["targets_per_s"]),
            "epoch s": round(row["epoch_s"]),
            "users/s": round(row["users_per_s"], 1),
            "peak GB": round(row["peak_rss_bytes"] / 1e9, 2),
        }
        for row in catalogues
    ]
    return tabulate(rows, headers="keys", tablefmt="github")


def plot(catalogues, file):
    """Plot seconds, speeds and memory over the number of items, on logarithmic axes."""
    import matplotlib.pyplot as plt

    panels = {
        "seconds": {"tokenize_s": 1, "dataset_s": 1, "trie_s": 1, "epoch_s": 1},
        "a second": {"targets_per_s": 1, "users_per_s": 1},
        "GB": {"tokenize_peak_rss_bytes": 1e-9, "peak_rss_bytes": 1e-9},
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 4), layout="constrained")
    for panel, (unit, names) in zip(axes, panels.items(), strict=True):
        measured = {name: factor for name, factor in names.items() if name in catalogues[0]}
        for name, factor in measured.items():
            label = name.removesuffix("_bytes").removesuffix("_s").removesuffix("_per").replace("_", " ")
            panel.plot([row["items"] for row in catalogues], [row[name] * factor for row in catalogues], "o-", label=label)
        panel.set(xscale="log", yscale="log", xlabel="items", ylabel=unit)
        panel.legend()
    figure.savefig(file, dpi=120)


def main():
    """Print a table; write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default="TIGER",
        help="TIGER with the paper's sizes and residual k-means, or a recipe or VQRec with its own settings; default: TIGER",
    )
    parser.add_argument("--items", type=int, help="number of items of a single catalogue instead of the three")
    parser.add_argument("--seconds", type=float, default=20, help="least seconds of training to measure (default: 20)")
    parser.add_argument("--checks", help="measure the checks of the files of this dataset; 'generated' is one of --items")
    parser.add_argument("--output", help="JSON file of all numbers")
    parser.add_argument("--plot", help="PNG file")
    args, rest = parser.parse_known_args()
    keep_freed_memory()
    warnings.simplefilter("ignore", FutureWarning)

    settings = parse_arguments(rest)
    if args.checks:
        with tempfile.TemporaryDirectory() as folder:
            if args.checks == "generated":
                write_generated(folder, args.items or max(SIZES))
                settings["data_path"] = folder
            print(f"checks of {args.checks}: {of_checks(args.checks, settings):.2f} s of CPU time")
        return
    if args.items:
        home = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # RecBole's trainer writes logs in the working directory
            try:
                catalogues = [measure(args.model, args.items, args.seconds, settings, folder)]
            finally:
                os.chdir(home)
    else:
        catalogues = [
            in_own_process(size, [f"--model={args.model}", f"--seconds={args.seconds}", *rest])
            for size in tqdm(SIZES, "catalogues")
        ]
    if args.output:
        what = {"model": args.model, "settings": settings, "catalogues": catalogues}
        write_result({**what, "hardware": experiment.hardware(), "versions": experiment.versions()}, args.output)
    print(f"\n{table(catalogues)}")
    if args.plot:
        plot(catalogues, args.plot)


if __name__ == "__main__":
    main()
