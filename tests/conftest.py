"""A small catalogue with structure to learn, and settings that train on it in a second."""

import os

# Small tensors: a second thread costs more than it brings, and the processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests read what a command writes; transformers draws a bar of its own there.
os.environ.setdefault("TQDM_DISABLE", "1")
# The servers of tests are on this machine.
os.environ["no_proxy"] = "127.0.0.1,localhost"

import json
import logging
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_tiger.catalogue.quantizers import QUANTIZERS
from recbole_tiger.model import MODELS
from recbole_tiger.registry import IMPORTED_FILES, PLUGIN_FILES

# The tests run on the CPU; those of test_cuda.py bring the GPU back.
HAS_GPU = torch.cuda.is_available()
torch.cuda.is_available = lambda: False
torch.cuda.device_count = lambda: 0

N_ITEMS, N_USERS, GROUPS = 60, 120, 6


def write_dataset(folder, name="tiny", n_items=N_ITEMS, n_users=N_USERS):
    """Atomic files of a dataset where users mostly walk to the next item of one of a few groups."""
    rng = np.random.default_rng(0)
    path = Path(folder) / name
    path.mkdir(parents=True, exist_ok=True)
    kinds = ["lipstick", "shampoo", "soap", "brush", "cream", "perfume"]
    lines = ["item_id:token\ttitle:token\tbrand:token\tprice:float"]
    for i in range(n_items):
        price = f"{rng.integers(100, 900) / 100}" if i % 3 else ""
        lines.append(f"i{i}\tThe {kinds[i % GROUPS]} number {i}\t{'Acme' if i % 2 else ''}\t{price}")
    (path / f"{name}.item").write_text("\n".join(lines) + "\n")
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(n_users):
        item = int(rng.integers(n_items))
        for step in range(int(rng.integers(5, 14))):
            lines.append(f"u{user}\ti{item}\t{1000 + 10 * step}")
            item = (item + GROUPS) % n_items if rng.random() < 0.8 else int(rng.integers(n_items))
    (path / f"{name}.inter").write_text("\n".join(lines) + "\n")
    embeddings = np.eye(GROUPS, 16)[np.arange(n_items) % GROUPS] * 3 + rng.normal(size=(n_items, 16))
    np.savez(path / "embeddings.npz", items=np.array([f"i{i}" for i in range(n_items)]), embeddings=embeddings)
    return path


def read_sequences(folder):
    """Items of every user of the dataset in a folder of its name, oldest first."""
    sequences = {}
    for line in (Path(folder) / f"{Path(folder).name}.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        sequences.setdefault(user, []).append(item)
    return sequences


def small_settings(folder, data_path, name="tiny"):
    """Settings of a TIGER that trains on the dataset in about a second an epoch; everything is written under ``folder``."""
    return {
        "data_path": str(data_path),
        "checkpoint_dir": str(Path(folder) / "saved"),
        "cache_dir": str(Path(folder) / "cache"),
        "item_embeddings": str(Path(data_path) / name / "embeddings.npz"),
        "quantizer": "rq_kmeans",
        "codebook_size": 8,
        "codebook_depth": 2,
        "hidden_size": 32,
        "n_heads": 2,
        "head_size": 16,
        "inner_size": 64,
        "n_layers": 1,
        "n_decoder_layers": 1,
        "train_batch_size": 128,
        "epochs": 2,
        "show_progress": False,
    }


def data_of(file):
    """What a page holds."""
    text = Path(file).read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(found)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Give each test a working directory, for what RecBole writes there, and undo what commands change in the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test"])
    for registry in (MODELS, QUANTIZERS):
        monkeypatch.setattr(registry, "data", dict(registry.data))
        monkeypatch.setattr(registry, "settings", dict(registry.settings))
    lists = [(files, files[:]) for files in (IMPORTED_FILES, PLUGIN_FILES)]
    on_sigterm, on_thread_error = signal.getsignal(signal.SIGTERM), threading.excepthook
    yield
    for files, before in lists:
        files[:] = before
    signal.signal(signal.SIGTERM, on_sigterm)
    threading.excepthook = on_thread_error
    root = logging.getLogger()
    for handler in root.handlers[:]:  # RecBole's write into what pytest captures of this test, and would into the next
        if type(handler) in (logging.StreamHandler, logging.FileHandler):
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def data_path(tmp_path_factory):
    """The parent folder of the dataset "tiny"."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder)
    return folder


@pytest.fixture
def settings(tmp_path, data_path):
    """Settings of a small TIGER on the dataset "tiny"."""
    return small_settings(tmp_path, data_path)


@pytest.fixture(scope="session")
def real_data():
    """The folder with the real datasets, where this machine has it."""
    folder = os.environ.get("RECBOLE_TIGER_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RECBOLE_TIGER_DATA does not name a folder with the real datasets")
    return Path(folder).resolve()
