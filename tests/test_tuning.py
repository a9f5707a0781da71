"""Sweeps: what is tried, that a killed one goes on, that the winner is what a run of its settings gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from recbole_tiger.cli import main
from tests.conftest import small_settings, write_dataset
from tests.test_command_line import arguments, files_under

PYTHON = [sys.executable, "-W", "ignore", "-m", "recbole_tiger"]


def records(folder):
    """The records of the trials under a folder of results, by size of their codebooks or by number."""
    found = [json.loads(file.read_text()) for file in Path(folder).glob("*/trials/*.json")]
    return {record["params"].get("codebook_size", record["number"]): record for record in found}


def waited(condition, seconds=90):
    """Wait until ``condition()`` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def scored(record):
    """Epochs that a record tells."""
    return len(record.get("result", {}).get("epoch_log", []))


# --- a sweep of four codebooks: killed with one trial done and one begun, then resumed ---


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep whose driver was killed in its second trial and that was resumed, where the third trial's process was killed.

    The fourth trial fails: items of four kinds leave most of 50 codes unused.
    """
    folder = tmp_path_factory.mktemp("sweep")
    path = write_dataset(folder / "data")
    items = np.load(path / "embeddings.npz")["items"]
    np.savez(path / "embeddings.npz", items=items, embeddings=np.eye(4, 16)[np.arange(len(items)) % 4] * 3)
    (folder / "sizes.yaml").write_text("codebook_size: [3, 4, 8, 50]\n")
    settings = {**small_settings(".", "data"), "codebook_depth": 1, "epochs": 40, "stopping_step": 40}
    settings = {key: value for key, value in settings.items() if key != "codebook_size"}
    call = ["tune", "--dataset=tiny", "--sweep=sizes.yaml", "--scheduler=none", "--cpus_per_trial=1", *arguments(settings)]
    found, quiet = {}, {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen([*PYTHON, *call], **quiet)
    waited(lambda: scored(records(folder / "results").get(4, {})) >= 3)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(2)
    found["before"], found["files"] = records(folder / "results"), files_under(folder / "results")

    os.chdir(folder)
    assert main(call) == 2  # begun, and not to be resumed
    assert files_under(folder / "results") == found["files"]
    with subprocess.Popen([*PYTHON, *call, "--resume"], cwd=folder, stdout=subprocess.PIPE, text=True) as driver:
        waited(lambda: scored(records(folder / "results").get(8, {})) >= 1)
        (worker,) = [
            process for process in psutil.Process(driver.pid).children(recursive=True) if "run_trial" in _title(process)
        ]
        worker.kill()
        found["shown"], _ = driver.communicate()
    assert driver.returncode == 0
    return {**found, "folder": folder, "call": call, "settings": settings, "after": records(folder / "results")}
