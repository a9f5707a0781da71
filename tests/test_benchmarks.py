"""The scripts of benchmarks/: what they compute, and that they run."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from recbole_tiger import experiment

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def script(name):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name, *arguments):
    done = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_shuffled_ties():
    day = 86400.0
    history = torch.tensor([[1, 2, 3, 4, 0, 0], [5, 6, 7, 0, 0, 0]])
    times = torch.tensor([[day, day + 128, 3 * day, 9 * day, 0, 0], [2 * day, 3 * day, 4 * day, 0, 0, 0]])
    target, target_time = torch.tensor([10, 11]), torch.tensor([9 * day + 128, 5 * day])
    seen, ties = Counter(), script("order_of_ties")
    for seed in range(400):
        new, new_target = ties.shuffled(
            history, torch.tensor([4, 3]), target, times, target_time, np.random.default_rng(seed)
        )
        seen[(*new[0].tolist(), new_target[0].item())] += 1
        assert new[1].tolist() == history[1].tolist()  # no two on one day
        assert new_target[1] == 11
    # Every order of the first two, and either of the last two as target, about as often.
    expected = {(*first, 3, last[0], 0, 0, last[1]) for first in [(1, 2), (2, 1)] for last in [(4, 10), (10, 4)]}
    assert set(seen) == expected
    assert min(seen.values()) > 60
    assert history.tolist()[0] == [1, 2, 3, 4, 0, 0]  # the originals stay


def test_order_of_ties_runs(data_path):
    settings = {"data_path": str(data_path), "epochs": 2, "show_progress": False, "n_layers": 1}
    result = experiment.run(experiment.prepare("SASRec", "tiny", settings), "results")
    shown = call("order_of_ties", f"--checkpoint={result['checkpoint']}", "--seeds=3", "--output=ties.json")
    assert "100.0% of the test users have their two last items on one day" in shown  # tiny lies within a day
    written = json.loads(Path("ties.json").read_text())
    first = {name: value for name, value in written["rows"][0].items() if name != "order"}
    assert first == result["test_result"]
    assert len(written["rows"]) == 4
    assert len({row["recall@20"] for row in written["rows"]}) > 1
