"""Sweeps: what is tried, that a killed one goes on, that the winner is what a run of its settings gives."""

import contextlib
import csv
import dataclasses
import io
import json
import mmap
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import ray
from PIL import Image

from recbole_tiger.cli import main
from recbole_tiger.errors import TigerError
from recbole_tiger.report.results import read_results
from recbole_tiger.runs import experiment, sweep, tuning
from recbole_tiger.settings.config import make_config
from tests.conftest import N_ITEMS, small_settings, write_dataset
from tests.test_bad_input import QUIET, full_disk, has, of_model, refused, sentence
from tests.test_command_line import arguments, files_under, rows_of

PYTHON = [sys.executable, "-W", "ignore", "-m", "recbole_tiger"]


def records(folder):
    """The records of the trials under a folder of results, by size of their codebooks or by number."""
    found = [json.loads(file.read_text()) for file in Path(folder).glob("*/trials/*.json")]
    return {record["params"].get("codebook_size", record["number"]): record for record in found}


def wait_until(condition):
    """Wait until ``condition()`` is true, ten minutes at most."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def wait_for(condition, process):
    """Wait until ``condition()`` is true, which ``process`` brings about."""

    def running():
        assert process.poll() is None, f"the process ended with {process.returncode}"
        return False

    wait_until(lambda: condition() or running())


def gone(process):
    """Whether a process has ended, though nobody may have waited for it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
    wait_for(lambda: scored(records(folder / "results").get(4, {})) >= 3, driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    workers = [process for process in children if "ray::" in " ".join(process.cmdline())]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: all(map(gone, workers)))  # they write until they notice that the driver is gone
    found["before"], found["files"] = records(folder / "results"), files_under(folder / "results")

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as message:
        patch.chdir(folder)
        status = main(call)
    found["refusal"] = (status, message.getvalue(), files_under(folder / "results") == found["files"])
    with subprocess.Popen([*PYTHON, *call, "--resume"], cwd=folder, stdout=subprocess.PIPE, text=True) as driver:
        # The lock of the one that was killed lies there, too.
        wait_for(lambda: any(file.read_text() == str(driver.pid) for file in (folder / "saved").glob("*.lock")), driver)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as message:
            patch.chdir(folder)
            found["second"] = (main([*call, "--resume"]), message.getvalue(), driver.pid)
        wait_for(lambda: scored(records(folder / "results").get(8, {})) >= 1, driver)
        processes = psutil.Process(driver.pid).children(recursive=True)
        (worker,) = [process for process in processes if "ray::ImplicitFunc" in " ".join(process.cmdline())]
        worker.kill()
        found["shown"], _ = driver.communicate()
    assert driver.returncode == 0
    return {**found, "folder": folder, "call": call, "settings": settings, "after": records(folder / "results")}


def test_a_sweep_that_was_begun_is_not_begun_again(killed):
    status, message, same = killed["refusal"]
    assert status == 2
    assert same
    assert "a sweep of 4 trials, 3 of them unfinished: continue it with --resume" in message


def test_the_same_sweep_twice_at_once(killed):
    """The second names the first, which ends as if it were alone; the one that was killed holds nothing."""
    status, message, process = killed["second"]
    assert status == 2
    (folder,) = (path for path in Path(killed["folder"], "results").glob("tiny-*") if path.is_dir())
    assert f"the sweep of {folder.relative_to(killed['folder'])} is running already" in message
    assert f"in process {process} (saved/" in message
    assert "wait until it ends, or end it" in message
    assert not list((killed["folder"] / "saved").glob("*.lock"))


def test_resume_repeats_no_trial_that_had_ended(killed):
    assert [killed["before"][size]["status"] for size in (3, 4)] == ["completed", "running"]
    assert 8 not in killed["before"]
    (file,) = [name for name in killed["files"] if json.loads(killed["files"][name])["params"] == {"codebook_size": 3}]
    assert Path(file).read_bytes() == killed["files"][file]
    assert killed["after"][4]["status"] == "completed"


def test_resume_takes_up_an_unfinished_trial_at_its_last_epoch(killed):
    before, after = (killed[when][4]["result"]["epoch_log"] for when in ("before", "after"))
    done = len(before) - 1  # the epoch that was being evaluated may not be kept
    assert done >= 2
    assert after[:done] == before[:done]  # to the last digit of the seconds
    assert len(after) == 40


def test_a_failing_trial_is_noted_with_its_reason(killed):
    assert {size: record["status"] for size, record in killed["after"].items()} == {
        3: "completed",
        4: "completed",
        8: "failed",
        50: "failed",
    }
    assert killed["after"][8]["reason"] == "its process ended without a message: out of memory, or killed"
    assert killed["after"][50]["reason"].startswith("codebook 1 has collapsed: 4 of 50 codes used")
    assert re.search(r"^failed: codebook_size 50: codebook 1 has collapsed", killed["shown"], flags=re.MULTILINE)


def test_tables_tell_what_the_trials_did(killed):
    (folder,) = (file.parent for file in killed["folder"].glob("results/*/trials.csv"))
    with open(folder / "trials.csv") as file:
        rows = {int(row["codebook_size"]): row for row in csv.DictReader(file)}
    assert set(rows) == {3, 4, 8, 50}
    for size in (3, 4):
        row, result = rows[size], killed["after"][size]["result"]
        assert (row["status"], row["codebook_depth"], row["reason"]) == ("completed", "1", "")
        assert float(row["ndcg@10"]) == max(epoch["valid_score"] for epoch in result["epoch_log"])
        assert int(row["distinct_ids"]) == size == int(row["used_codes"])  # of four kinds of items
        assert float(row["collision_rate"]) == 1
        assert int(row["largest_group"]) == {3: 30, 4: 15}[size]
        assert float(row["seconds"]) > float(row["train_seconds"]) > 0
    assert rows[50]["ndcg@10"] == ""
    assert "collapsed" in rows[50]["reason"]
    told = json.loads((folder / "trials.json").read_text())
    assert [row["codebook_size"] for row in told] == [3, 4, 8, 50]
    assert told[0]["perplexity"] == killed["after"][3]["result"]["semantic_ids"]["perplexity"]
    shown = killed["shown"].split("the winner, test set")[0]
    assert {size: row[7] for size, row in rows_of(shown).items()} == {
        str(size): f"{float(rows[size]['ndcg@10']):.4f}" if rows[size]["ndcg@10"] else "" for size in rows
    }
    for name in ("scores.png", "collisions.png"):
        with Image.open(folder / name) as picture:
            assert len(set(picture.convert("L").getdata())) > 20


def test_the_winner_is_what_a_run_of_its_settings_gives(killed, monkeypatch):
    monkeypatch.chdir(killed["folder"])
    (won,) = read_results("results")
    best = max((3, 4), key=lambda size: killed["after"][size]["result"]["best_valid_score"])
    assert won["semantic_ids"]["used_codes"] == [best]
    call = ["run", "--model=TIGER", "--dataset=tiny", f"--codebook_size={best}", "--results_dir=alone"]
    assert main([*call, *arguments({**killed["settings"], "checkpoint_dir": "alone"})]) == 0
    (alone,) = read_results("alone")
    for key in ("test_result", "best_valid_result", "best_epoch", "settings", "data_hash", "parameters", "semantic_ids"):
        assert won[key] == alone[key], key
    assert set(won) == set(alone)
    assert [file.name for file in Path("results").glob("*.json")] == [file.name for file in Path("alone").glob("*.json")]


def test_a_finished_sweep_shows_its_table_again_and_runs_nothing(killed, monkeypatch, capsys):
    monkeypatch.chdir(killed["folder"])
    before = files_under("results"), files_under("saved")
    assert main(killed["call"]) == 0
    again = capsys.readouterr().out
    assert rows_of(again) == rows_of(killed["shown"])
    after = files_under("results"), files_under("saved")
    pictures = {name for name in before[0] if name.endswith(".png")}
    assert after[1] == before[1]
    assert {k: v for k, v in after[0].items() if k not in pictures} == {
        k: v for k, v in before[0].items() if k not in pictures
    }


@pytest.mark.parametrize("name", ["trials.json", "trials.csv", "scores.png", "collisions.png"])
def test_no_room_for_the_tables_and_pictures(killed, monkeypatch, capsys, name):
    """Those of before are there still."""
    monkeypatch.chdir(killed["folder"])
    before = files_under("results")
    with full_disk(name, 50):
        assert main(killed["call"]) == 2
    has(capsys.readouterr().err.splitlines()[-1], "error: cannot write ", name, "make room or choose another folder")
    after = files_under("results")
    assert after[next(file for file in before if file.endswith(name))]
    assert {file: after[file] for file in after if not file.endswith(".png")} == {
        file: before[file] for file in before if not file.endswith(".png")
    }


# --- a cluster of two nodes ---


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The address of a cluster of two nodes with a CPU each, which wants a token; the second was started elsewhere."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        port, other = first.getsockname()[1], second.getsockname()[1]
    address = f"127.0.0.1:{port}"
    head = ["--head", f"--port={port}", f"--ray-client-server-port={other}", "--include-dashboard=false"]
    nodes = []
    try:
        for options, folder in ((head, tmp_path), ([f"--address={address}"], tmp_path / "elsewhere")):
            folder.mkdir(exist_ok=True)
            start = [sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block"]
            how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder}
            how["env"] = {**os.environ, **tuning.RAY_TIMEOUTS}
            how["env"].pop("MALLOC_ARENA_MAX", None)
            nodes.append(subprocess.Popen([*start, *options, "--disable-usage-stats"], **how))
            assert any("Ray runtime started" in line for line in nodes[-1].stdout)
        yield address
    finally:
        for node in nodes:
            for process in [*psutil.Process(node.pid).children(recursive=True), node]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            node.communicate()


def test_a_cluster_of_two_nodes_runs_a_trial_on_each(cluster, data_path, tmp_path):
    (tmp_path / "data").symlink_to(data_path)
    (tmp_path / "rates.yaml").write_text("learning_rate: {loguniform: [0.000001, 0.02]}\nn_layers: {choice: [1]}\n")
    call = ["tune", "--model=SASRec", "--dataset=tiny", "--sweep=rates.yaml", "--num_samples=4", f"--ray_address={cluster}"]
    how = ["--max_concurrent=2", "--cpus_per_trial=1", "--grace_period=1", "--epochs=6", "--stopping_step=6"]
    data = ["--valid_users=50", "--data_path=data", "--show_progress=False", "--state=ERROR"]  # a relative path
    done = subprocess.run([*PYTHON, *call, *how, *data], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = list(records("results").values())
    assert len(found) == 4
    assert len({record["node"] for record in found}) == 2
    # ASHA stops some before their last epoch, and never the best of a rung.
    by_status = {status: [r for r in found if r["status"] == status] for status in ("completed", "stopped")}
    assert len(by_status["completed"]) + len(by_status["stopped"]) == 4
    assert {record["result"]["epochs"] for record in by_status["completed"]} == {6}
    assert all(record["result"]["epochs"] in (1, 3) for record in by_status["stopped"])
    assert by_status["stopped"]
    first = max(found, key=lambda record: record["result"]["epoch_log"][0]["valid_score"])
    assert first["result"]["epochs"] >= 3
    # The winner is the best of the completed, and it alone has a test result.
    (won,) = read_results("results")
    assert won["best_valid_score"] == max(r["result"]["best_valid_score"] for r in by_status["completed"])
    assert won["settings"]["valid_users"] == 50
    assert not any("test_result" in record["result"] for record in found)
    assert len(list(Path("saved").glob("*/*/SASRec-*.pth"))) == len(by_status["completed"])


@pytest.mark.skipif(not hasattr(ray.exceptions, "AuthenticationError"), reason="this Ray knows no tokens")
@pytest.mark.parametrize("token", ["none", "another"])
def test_a_cluster_wants_its_token(token, cluster, settings):
    if token == "none":
        environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"} | {"HOME": os.getcwd()}
    else:
        environment = {**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    settings = {key: value for key, value in settings.items() if key != "inner_size"}
    call = ["tune", "--dataset=tiny", "--sweep=TIGER", f"--ray_address={cluster}", *arguments(settings)]
    done = subprocess.run([*PYTHON, *call], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"recbole-tiger: error: the Ray cluster at {cluster} refuses the connection: ")
    assert message.endswith("; give the cluster's token, as in RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... recbole-tiger tune")
    assert "Traceback" not in done.stderr


RUNNING = """
import sys
import ray
from recbole_tiger.cli import main

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
status = main(sys.argv[1:])
assert ray.is_initialized()
sys.exit(status)
"""


def test_ray_that_runs_in_the_process_already(settings):
    """It is not ours to shut down."""
    settings = {key: value for key, value in settings.items() if key != "inner_size"}
    call = ["tune", "--dataset=tiny", "--sweep=TIGER", *arguments(settings)]
    done = subprocess.run([sys.executable, "-c", RUNNING, *call], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("recbole-tiger: error: Ray already runs in this process")


def test_lists_longer_than_the_catalogue_before_any_trial(capsys, data_path):
    (Path("rates.yaml")).write_text("learning_rate: [0.001, 0.002]\n")
    call = ["tune", "--model=SASRec", "--dataset=tiny", "--sweep=rates.yaml"]
    has(refused(capsys, call, {"data_path": str(data_path), "topk": [10, 100]}), "topk 100", "60 items", "lower it")


PAGES = """
import json, sys, threading
import ray
from recbole_tiger.runs import tuning

TENSORS, SIZE, THREADS = {tensors}, {size}, {threads}


@ray.remote(num_cpus=1)
def cleared():
    import resource  # Windows has none

    import torch

    from recbole_tiger.training.memory import keep_freed_memory

    keep_freed_memory()
    pages, all_there, one_at_a_time = [], threading.Barrier(THREADS), threading.Lock()

    def train():
        all_there.wait()  # a thread that has ended would leave the next one its heap
        with one_at_a_time:
            for count in (2, TENSORS):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                for _ in range(count):
                    torch.ones(SIZE // 4)
            pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    running = [threading.Thread(target=train) for _ in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return pages


tuning.start_ray(*sys.argv[1:] or [None])
print(json.dumps(ray.get(cleared.remote())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
@pytest.mark.parametrize("where", ["here", "cluster"])
def test_threads_of_a_worker_keep_the_memory_that_they_free(where, request):
    """The system clears few pages in each thread for tensors as large as some that it freed before."""
    tensors, size, threads = 8, 100 * 2**20, 8
    code = PAGES.format(tensors=tensors, size=size, threads=threads)
    address = [] if where == "here" else [request.getfixturevalue("cluster")]
    command = [sys.executable, "-W", "ignore", "-c", code, *address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = json.loads(done.stdout)
    assert len(pages) == threads
    # Now and then one of Ray's own threads takes a piece of what was freed.
    assert statistics.median(pages) < tensors * size / mmap.PAGESIZE / 2


# --- the search space ---


@pytest.mark.parametrize(
    ("name", "model", "count"),
    [("codebook", "TIGER", 12), *((model, model, 10) for model in ("TIGER", "GRU4Rec", "SASRec", "BERT4Rec", "FDSA"))],
)
def test_shipped_sweeps(name, model, count, data_path):
    config = make_config(model, "tiny", {"data_path": str(data_path)})
    space = sweep.read_space(name, config)
    trials = sweep.draw(space, 10, 2020)
    assert len(trials) == count
    assert all(set(trial) == set(space) for trial in trials)
    assert sweep.draw(space, 10, 2020) == trials
    for trial in trials:
        make_config(model, "tiny", {"data_path": str(data_path), **trial})
    if name == "codebook":
        assert {(t["codebook_size"], t["codebook_depth"]) for t in trials} == {
            (size, depth) for size in (64, 128, 256, 512) for depth in (2, 3, 4)
        }
    else:  # more samples are more of the same, another seed others
        assert sweep.draw(space, 4, 2020) == trials[:4]
        assert sweep.draw(space, 10, 2021) != trials
        low, high = space["learning_rate"]["loguniform"]
        assert all(low <= trial["learning_rate"] <= high for trial in trials)


def test_a_grid_and_draws_combine():
    space = {
        "encoder_text": [True, False],
        "n_layers": {"randint": [1, 4]},
        "rq_vae_hidden_sizes": {"choice": [[8], [16, 8]]},
        "hidden_dropout_prob": {"quniform": [0.0, 0.5, 0.1]},
        "learning_rate": {"uniform": [0.1, 0.2]},
    }
    trials = sweep.draw(space, 30, 1)
    assert sum(trial["encoder_text"] for trial in trials) == len(trials) / 2 == 30
    assert {trial["n_layers"] for trial in trials} == {1, 2, 3}
    assert all(type(trial["n_layers"]) is int and type(trial["encoder_text"]) is bool for trial in trials)
    assert {tuple(trial["rq_vae_hidden_sizes"]) for trial in trials} == {(8,), (16, 8)}
    assert {round(trial["hidden_dropout_prob"] * 10, 6) for trial in trials} == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("codebok_size: [8]", ["unknown setting 'codebok_size'", "did you mean codebook_size?"]),
        ("mask_ratio: [0.1]", ["mask_ratio", "TIGER has no such setting"]),
        ("codebook_size: []", ["codebook_size", "[] is not a list of values", "at least one"]),
        ("codebook_size: 8", ["codebook_size", "8 is not a list of values"]),
        ("codebook_size: [8, 8]", ["twice"]),
        ("", ["holds no setting to vary"]),
        ("- 8", ["has to hold key: value lines"]),
        ("codebook_size: [8, 512]", ["512 is larger than the catalogue of 60 items", "'codebook_size': 512"]),
        ("codebook_size: [8, 0]", ["trial {'codebook_size': 0}", "whole number from 2 up"]),
        ("seed: [1, 2]", ["seed", "all trials have to share it to be comparable"]),
        ("hidden_dropout_prob: {quniform: [0.05, 0.5, 0.1]}", ["hidden_dropout_prob: ", "0.05", "not divisible"]),
        ("learning_rate: {lognormal: [0, 1]}", ["not a distribution", "loguniform"]),
        ("learning_rate: {uniform: [0.1]}", ["uniform takes a list of 2 numbers", "[0.1]"]),
        ("learning_rate: {uniform: [0.1, .inf]}", ["uniform takes a list of 2 numbers", "inf"]),
        ("learning_rate: {uniform: [0.2, 0.1]}", ["uniform from 0.2 to 0.1"]),
        ("learning_rate: {loguniform: [0, 0.1]}", ["loguniform from 0 to 0.1"]),
        ("n_layers: {randint: [1.5, 3]}", ["randint takes whole numbers"]),
        ("learning_rate: {choice: []}", ["at least one"]),
        ("topk: [[5], [10]]", ["topk", "comparable", "--topk=..."]),
        ("cache_dir: [a, b]", ["cache_dir", "all trials have to share it"]),
    ],
)
def test_a_sweep_that_cannot_work(text, parts, capsys, settings):
    Path("mine.yaml").write_text(text + "\n")
    varied = {key: value for key, value in settings.items() if key not in ("codebook_size", "learning_rate", "cache_dir")}
    has(refused(capsys, ["tune", "--dataset=tiny", "--sweep=mine.yaml"], varied), *parts)


def test_a_sweep_of_settings_that_the_quantizer_does_not_read(capsys, settings):
    varied = {**{key: value for key, value in settings.items() if not key.startswith("codebook")}, "quantizer": "vq"}
    message = refused(capsys, ["tune", "--dataset=tiny", "--sweep=codebook"], varied)
    has(message, "varies codebook_depth, but the quantizer vq does not read it", "choose another quantizer")


def test_a_sweep_of_one_codebook_has_no_pictures_of_depths(settings):
    Path("mine.yaml").write_text("codebook_size: [3, 4]\n")
    varied = {**{key: value for key, value in settings.items() if not key.startswith("codebook")}, "quantizer": "vq"}
    config = experiment.prepare("TIGER", "tiny", varied)
    how = {"search": "random", "num_samples": 1, "scheduler": "none", "grace_period": None, "results_dir": "results"}
    planned = sweep.plan("TIGER", "tiny", varied, config, sweep="mine.yaml", **how)
    result = {"semantic_ids": {"collision_rate": 0.5}, "best_valid_result": {"ndcg@10": 0.1}, "epoch_log": []}
    result.update(dict.fromkeys(("epochs", "best_epoch", "prepare_seconds", "train_seconds", "parameters"), 1))
    for trial in planned.trials:
        planned.write(trial, status="completed", result={**result, "best_valid_score": 0.1})
    tuning.draw_pictures(planned)
    sweep.write_tables(planned)
    assert {file.name for file in planned.folder.iterdir()} == {"trials", "trials.csv", "trials.json"}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--sweep=codebok"], ["unknown sweep 'codebok'", "did you mean codebook?"]),
        (["--sweep=none.yaml"], ["none.yaml does not exist"]),
        (["--sweep=codebook"], ["varies codebook_depth, codebook_size", "remove it from one"]),
        (["--sweep=codebook", "--model=SASRec"], ["SASRec has no such setting", "try --sweep=SASRec"]),
        (["--sweep=GRU4Rec"], ["sweep GRU4Rec varies settings of GRU4Rec, not of TIGER", "--model=GRU4Rec"]),
        (["--sweep=TIGER", "--model=SASRec"], ["sweep TIGER varies settings of TIGER, not of SASRec"]),
        (["--sweep=TIGER", "--grace_period=3"], ["grace_period", "from 1 to the 2 epochs, not 3"]),
        (["--sweep=TIGER", "--max_concurrent=0"], ["max_concurrent", "positive whole number, not 0"]),
        (["--sweep=TIGER", "--grace_period=1", "--scheduler=none"], ["grace_period is for --scheduler=asha"]),
        (["--sweep=TIGER", "--cpus_per_trial=0"], ["cpus_per_trial", "positive whole number, not 0"]),
        (["--sweep=TIGER", "--gpus_per_trial=-1"], ["gpus_per_trial", "number from 0 up, not -1"]),
        (
            ["--sweep=TIGER", "--gpus_per_trial=0.5"],
            ["gpus_per_trial 0.5 is more than the 0 GPUs of this machine"],
        ),
        (["--sweep=TIGER", "--num_samples=0"], ["num_samples", "positive whole number, not 0"]),
        (["--sweep=TIGER", "--valid_users=0"], ["valid_users", "positive whole number, not 0"]),
    ],
)
def test_options_that_cannot_work(options, parts, capsys, settings):
    settings = {key: value for key, value in settings.items() if key != "inner_size"}
    if "--model=SASRec" in options:
        settings = {key: settings[key] for key in ("data_path", "epochs")}
    has(refused(capsys, ["tune", "--dataset=tiny", *options], settings), *parts)


def test_folders_that_cannot_be_written_are_refused_first(capsys, settings):
    """Before texts are embedded and codes are made."""
    Path("file").write_text("")
    for option in ("results_dir", "checkpoint_dir"):
        own = {key: value for key, value in settings.items() if key not in ("inner_size", option)}
        told = refused(capsys, ["tune", "--dataset=tiny", "--sweep=TIGER", f"--{option}=file/inside"], own)
        has(told, "cannot make the folder file/inside")
    assert not Path(settings["cache_dir"]).exists()


@pytest.mark.parametrize("record", ["{}", "[]", '{"number": 1, "params": {}, "status": "completed"}'])
def test_a_record_that_is_none(record, settings):
    three = planned(settings)
    three.write(three.trials[0], status="running")
    (file,) = three.folder.glob("trials/*.json")
    file.write_text(record)
    with pytest.raises(TigerError, match=f"{file} is no record of a trial; delete it to run its trial again"):
        three.winner()


@pytest.mark.parametrize(
    ("model", "space", "change", "parts"),
    [
        ("SASRec", "n_heads: [2, 3]", {}, ["trial {'n_heads': 3}: SASRec on tiny: RecBole refuses"]),
        ("SASRec", "n_layers: [1, 2]", {"user_inter_num_interval": "[99,inf)"}, ["its filters leave no interaction"]),
        ("TIGER", "n_layers: [1, 2]", {"user_inter_num_interval": "[99,inf)"}, ["its filters leave no interaction"]),
        (
            "TIGER",
            "codebook_size: [8, 4]",
            {"item_embeddings": "same.npz"},
            ["of every trial", "size': 8}: "],
        ),
        ("TIGER", "n_layers: [1, 2]", {"semantic_ids": "short.tsv"}, ["short.tsv lacks 59 items of the dataset"]),
        ("TIGER", "n_layers: [1, 2]", {"item_embeddings": "absent.npz"}, ["absent.npz does not exist"]),
    ],
)
def test_what_every_trial_or_one_would_fail_of(model, space, change, parts, capsys, settings):
    """What compare refuses before it trains a model is refused before the first trial."""
    np.savez("same.npz", items=np.array([f"i{i}" for i in range(N_ITEMS)]), embeddings=np.ones((N_ITEMS, 4)))
    Path("short.tsv").write_text("item\tcode_1\tcollision\ni0\t0\t0\n")
    Path("mine.yaml").write_text(f"{space}\n")
    own = {key: value for key, value in of_model(settings, model).items() if key not in space}
    has(refused(capsys, ["tune", f"--model={model}", "--dataset=tiny", "--sweep=mine.yaml"], {**own, **change}), *parts)


def test_every_trial_has_to_fit_the_width_of_the_embeddings(capsys, settings):
    """16 numbers are cut in two, not in three."""
    Path("mine.yaml").write_text("codebook_depth: [2, 3]\n")
    own = {key: value for key, value in settings.items() if key != "codebook_depth"} | {"quantizer": "opq"}
    told = refused(capsys, ["tune", "--dataset=tiny", "--sweep=mine.yaml"], own)
    has(told, "trial {'codebook_depth': 3}", "16")


def test_settings_that_make_the_same_run_are_one_trial(settings):
    """RecBole fills in what a draw of negatives leaves out."""
    kinds = "{distribution: uniform}, {distribution: uniform, sample_num: 1}, {distribution: popularity}"
    Path("mine.yaml").write_text(f"train_neg_sample_args: [{kinds}]\n")
    settings = {"data_path": settings["data_path"], "loss_type": "BPR"}
    config = experiment.prepare("SASRec", "tiny", settings)
    how = {"search": "random", "num_samples": 1, "scheduler": "none", "grace_period": None, "results_dir": "results"}
    found = sweep.plan("SASRec", "tiny", settings, config, sweep="mine.yaml", **how)
    assert found.size == len(found.trials) == 2


def test_one_trial_that_collapses_refuses_no_others(settings):
    """It fails alone, wherever in the sweep it stands: the fourth one of the sweep above."""
    kinds = np.eye(4, 16)[np.arange(N_ITEMS) % 4]
    np.savez("kinds.npz", items=np.array([f"i{i}" for i in range(N_ITEMS)]), embeddings=kinds)
    settings = {**settings, "item_embeddings": "kinds.npz", "codebook_depth": 1}
    tuning.check_trials(planned(settings, sizes=[50, 4]))
    (cache,) = Path(settings["cache_dir"]).glob("quantized-*.npz")
    assert len(np.unique(np.load(cache)["semantic_ids"][:, 0])) == 4


def test_a_trial_that_no_node_has_room_for(capsys, settings):
    settings = {key: value for key, value in settings.items() if key != "inner_size"}
    call = ["tune", "--dataset=tiny", "--sweep=TIGER", "--grace_period=1", "--cpus_per_trial=999"]
    assert main([*call, *arguments({**settings, **QUIET})]) == 2
    has(sentence(capsys), "999 CPUs", "no node has them", "lower --cpus_per_trial")


def test_a_cluster_that_is_not_there(capsys, settings):
    settings = {key: value for key, value in settings.items() if key != "inner_size"}
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        call = ["tune", "--dataset=tiny", "--sweep=TIGER", f"--ray_address={address}"]
        has(refused(capsys, call, settings), f"no Ray cluster at {address}", "Connection refused", "ray start --head")


# --- what became of the trials ---


def planned(settings, scheduler="none", epochs=9, sizes=(4, 6, 8)):
    """A sweep of codebooks on "tiny"."""
    Path("three.yaml").write_text(f"codebook_size: {list(sizes)}\n")
    settings = {key: value for key, value in settings.items() if key != "codebook_size"} | {"epochs": epochs}
    config = experiment.prepare("TIGER", "tiny", settings)
    how = {
        "sweep": "three.yaml",
        "search": "random",
        "num_samples": 1,
        "scheduler": scheduler,
        "grace_period": 1 if scheduler == "asha" else None,
        "results_dir": "results",
    }
    return sweep.plan("TIGER", "tiny", settings, config, **how)


def noted(scores):
    """What a trial with these validation scores notes."""
    log = [{"valid_score": score, "train_seconds": 1.0, "valid_result": {"ndcg@10": score}} for score in scores]
    best = max(scores)
    counts = {
        "epochs": len(log),
        "best_epoch": scores.index(best),
        "prepare_seconds": 1,
        "train_seconds": 2,
        "parameters": 3,
    }
    return {"best_valid_score": best, "best_valid_result": {"ndcg@10": best}, "epoch_log": log, **counts}


def test_a_sweep_that_is_terminated(settings):
    """In a sentence and with the status of any command, though Ray has a handler of its own; it goes on from there."""
    Path("sizes.yaml").write_text("codebook_size: [4, 8]\n")
    varied = {key: value for key, value in settings.items() if key != "codebook_size"} | {
        "epochs": 200,
        "stopping_step": 200,
    }
    call = ["tune", "--dataset=tiny", "--sweep=sizes.yaml", "--scheduler=none", "--cpus_per_trial=1", *arguments(varied)]
    driver = subprocess.Popen([*PYTHON, *call], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: scored(records("results").get(4, {})) >= 1, driver)
    driver.terminate()
    assert driver.communicate()[1].splitlines()[-1] == "recbole-tiger: terminated"
    assert driver.returncode == 143
    assert records("results")[4]["status"] == "running"
    assert not list(Path().rglob("*.lock"))


def test_terminated_while_ray_starts(monkeypatch):
    """Ray's handler of the signal, which it sets while it starts, ends the process by its number and says nothing."""

    def half_started(**arguments):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", half_started)
    before, seen = signal.getsignal(signal.SIGTERM), []
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        tuning.start_ray(None)
        assert seen == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit):
            tuning.start_ray(None)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_room_for_what_becomes_of_trials(settings):
    """Neither the trial nor the driver can note it."""
    one = planned(settings, epochs=1, sizes=[4])
    one.folder.mkdir(parents=True)
    (one.folder / "trials").touch()
    how = {"scheduler": "none", "grace_period": 1, "max_concurrent": 1, "cpus_per_trial": 1, "gpus_per_trial": 0}
    with pytest.raises(TigerError, match=r"broke off: cannot write .*/trials/.*; make room .*; then continue with --resume"):
        tuning.tune_sweep(one, resume=False, ray_address=None, **how)


def test_the_winner_is_the_best_of_the_completed_trials(settings):
    three = planned(settings)
    for trial, status, scores in zip(
        three.trials, ("completed", "stopped", "completed"), ([0.1, 0.3], [0.9], [0.4, 0.2]), strict=True
    ):
        three.write(trial, status=status, result=noted(scores))
    assert three.winner() is three.trials[2]
    assert dataclasses.replace(three, bigger=False).winner() is three.trials[0]
    assert [row["winner"] for row in three.rows()] == [False, False, True]
    assert three.left() == 0
    three.write(three.trials[0], status="running")
    assert three.left() == 1


def test_a_sweep_without_a_completed_trial_shows_the_reasons(settings, capsys):
    three = planned(settings, epochs=2)
    for trial in three.trials:
        three.write(trial, status="failed", reason=f"number {trial.number} broke")
    settings = {key: value for key, value in settings.items() if key != "codebook_size"}
    assert main(["tune", "--dataset=tiny", "--sweep=three.yaml", "--scheduler=none", *arguments(settings)]) == 2
    shown = capsys.readouterr()
    assert "failed: codebook_size 6: number 2 broke" in shown.out
    assert "no trial of the sweep completed" in shown.err
    assert read_results("results") == []


def test_asha_knows_the_trials_of_an_earlier_sitting(settings):
    three = planned(settings, scheduler="asha")
    three.write(three.trials[0], status="completed", result=noted([0.2, 0.5, 0.7, 0.8]))
    three.write(three.trials[1], status="running", result=noted([0.9]))  # it will report that again itself
    decisions = []
    for score in (0.1, 0.3):
        asha = tuning.make_scheduler(three, "asha", 1)
        asha.on_trial_add(None, SimpleNamespace(trial_id="third"))
        result = {"epoch": 1, "ndcg@10": score}
        decisions.append(asha.on_trial_result(None, SimpleNamespace(trial_id="third"), result))
    assert decisions == ["STOP", "CONTINUE"]  # 0.2 was the first epoch's score


def test_settings_of_the_run_name_the_sweep(settings):
    folder = planned(settings).folder
    assert planned(settings).folder == folder
    assert planned({**settings, "show_progress": True}).folder == folder
    assert planned(settings, epochs=8).folder != folder
    assert planned({**settings, "seed": 3}).folder != folder
    assert planned(settings, scheduler="asha").folder != folder


# --- a search that chooses by the scores of earlier trials ---

HEIGHTS = "learning_rate: {loguniform: [0.0001, 1.0]}\nn_layers: {choice: [1, 2]}\n"


def adaptive(settings, size, space=HEIGHTS):
    """An adaptive sweep of so many trials on "tiny"."""
    Path("heights.yaml").write_text(space)
    settings = {key: value for key, value in settings.items() if key != "n_layers"}
    config = experiment.prepare("TIGER", "tiny", settings)
    how = {"sweep": "heights.yaml", "search": "hyperopt", "num_samples": size, "scheduler": "none", "grace_period": None}
    return sweep.plan("TIGER", "tiny", settings, config, **how, results_dir="results")


def tried(chosen, trials, most):
    """Run up to ``most`` trials of a search where only the learning rate matters, best at 0.003; returns them."""
    found = []
    while len(found) < most and isinstance(config := trials.suggest(f"trial {len(found)}"), dict):
        trial = config["trial"]
        score = 1 - abs(np.log10(trial.params["learning_rate"] / 0.003)) / 4
        chosen.write(trial, status="completed", result=noted([score]))
        trials.on_trial_complete(f"trial {len(found)}", {"ndcg@10": score})
        found.append(trial)
    return found


def test_hyperopt_looks_where_scores_are_good(settings):
    chosen = adaptive(settings, 30)
    drawn = [trial.params for trial in chosen.trials]
    assert (
        drawn == sweep.draw({"learning_rate": {"loguniform": [0.0001, 1.0]}, "n_layers": {"choice": [1, 2]}}, 30, 2020)[:5]
    )
    found = tried(chosen, tuning.Trials(chosen), 99)
    assert [trial.params for trial in found[:5]] == drawn
    assert len({trial.key for trial in found}) == len(found) == chosen.size == 30
    off = [abs(np.log10(trial.params["learning_rate"] / 0.003)) for trial in found]
    assert np.mean(off[15:]) < 0.7  # fifteen random draws: 1.07 on average, with a standard deviation of 0.17
    assert chosen.left() == 0


def test_hyperopt_goes_on_where_it_was(settings):
    chosen = adaptive(settings, 12)
    found = tried(chosen, tuning.Trials(chosen), 8)
    chosen.write(found[6], status="running")
    again = adaptive(settings, 12)
    assert [trial.params for trial in again.trials] == [trial.params for trial in found]
    assert again.left() == 5
    rest = tried(again, tuning.Trials(again), 99)
    assert rest[0].params == found[6].params
    assert len(rest) == 5
    assert not {trial.key for trial in rest[1:]} & {trial.key for trial in found}


def test_hyperopt_numbers_its_trials_without_gaps_after_a_kill(settings):
    chosen = adaptive(settings, 12)
    found = tried(chosen, tuning.Trials(chosen), 8)
    (chosen.folder / "trials" / f"{found[5].key}.json").unlink()  # drawn, and killed before it was noted
    again = adaptive(settings, 12)
    assert [trial.key for trial in again.trials] == [trial.key for trial in found if trial is not found[5]]
    tried(again, tuning.Trials(again), 99)
    numbers = {file.stem: json.loads(file.read_text())["number"] for file in (chosen.folder / "trials").glob("*.json")}
    assert numbers == {trial.key: number for number, trial in enumerate(again.trials, start=1)}
    assert len(numbers) == 12


def test_hyperopt_says_when_a_space_has_no_more_points(settings):
    chosen = adaptive(settings, 5, "n_layers: {choice: [1, 2]}\nhidden_dropout_prob: {choice: [0.1, 0.2]}\n")
    trials = tuning.Trials(chosen)
    for number in range(4):
        chosen.write(trials.suggest(str(number))["trial"], status="completed", result=noted([0.1]))
        trials.on_trial_complete(str(number))
    with pytest.raises(
        TigerError, match="chose no new trial after 4: the space is too small for 5 trials; lower --num_samples"
    ):
        trials.suggest("4")


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        ("label_smoothing: [0.0, 0.1]", ["label_smoothing is a grid", "{choice: [...]}"]),
        ("epochs: {randint: [2, 5]}", ["varies epochs", "--search=random"]),
    ],
)
def test_spaces_that_hyperopt_cannot_search(space, parts, capsys, settings):
    Path("mine.yaml").write_text(space + "\n")
    varied = {key: value for key, value in settings.items() if key != "epochs"}
    has(refused(capsys, ["tune", "--dataset=tiny", "--sweep=mine.yaml", "--search=hyperopt"], varied), *parts)


def test_a_sweep_by_hyperopt(settings, monkeypatch):
    for module in (sweep, tuning):
        monkeypatch.setattr(module, "DRAWN_FIRST", 1)
    Path("heights.yaml").write_text(HEIGHTS)
    settings = {key: value for key, value in settings.items() if key not in ("n_layers", "learning_rate")}
    call = ["tune", "--dataset=tiny", "--sweep=heights.yaml", "--search=hyperopt", "--num_samples=3", "--scheduler=none"]
    assert main([*call, *arguments(settings)]) == 0
    found = records("results")
    assert {number: record["status"] for number, record in found.items()} == dict.fromkeys((1, 2, 3), "completed")
    assert len({record["params"]["learning_rate"] for record in found.values()}) == 3


def test_a_sweep_of_epochs(settings, capsys):
    """The grace period is a quarter of the most epochs of a trial, not of the settings'."""
    Path("mine.yaml").write_text("epochs: [2, 3]\n")
    varied = {key: value for key, value in settings.items() if key != "epochs"}
    message = refused(capsys, ["tune", "--dataset=tiny", "--sweep=mine.yaml", "--grace_period=4"], varied)
    has(message, "grace_period", "from 1 to the 3 epochs, not 4")
    assert main(["tune", "--dataset=tiny", "--sweep=mine.yaml", *arguments(varied)]) == 0
    found = {record["params"]["epochs"]: record for record in records("results").values()}
    assert (found[2]["status"], scored(found[2])) == ("completed", 2)
    assert (found[3]["status"], scored(found[3])) in [("completed", 3), ("stopped", 1), ("stopped", 2)]
    # The setting and how far the trial came are told apart.
    (told,) = Path("results").glob("*/trials.json")
    rows = {row["epochs"]: row["epochs_run"] for row in json.loads(told.read_text())}
    assert rows == {2: scored(found[2]), 3: scored(found[3])}


# --- validation on some users ---


def validated(model, settings, **changes):
    """Tokens of the users that a model is validated on, and the rows of the validation data."""
    keys = settings if model == "TIGER" else ("data_path", "checkpoint_dir")
    config = experiment.prepare(model, "tiny", {**{key: settings[key] for key in keys}, "state": "ERROR", **changes})
    _, valid_data, _ = experiment.load(config)
    dataset = valid_data._dataset
    users = dataset.field2id_token[dataset.uid_field][dataset.inter_feat[dataset.uid_field].numpy()]
    seen = sum(len(batch[2]) for batch in valid_data)
    return sorted(users), seen


def test_valid_users_is_a_sample_that_the_seed_fixes(settings):
    everyone, _ = validated("TIGER", settings)
    assert len(everyone) == 120
    sample, seen = validated("TIGER", settings, valid_users=30)
    assert len(set(sample)) == len(sample) == seen == 30
    assert set(sample) < set(everyone)
    for model in ("TIGER", "SASRec", "BERT4Rec", "Pop"):
        assert validated(model, settings, valid_users=30, learning_rate=0.002) == (sample, 30)
    assert validated("SASRec", settings, valid_users=30, seed=1)[0] != sample
    assert set(validated("SASRec", settings, valid_users=20)[0]) < set(sample)
    assert validated("SASRec", settings, valid_users=500) == validated("SASRec", settings)


def test_valid_users_scores_those_users_alone(settings, tmp_path):
    """Training and test stay as they are; only what is validated on differs."""
    results = {}
    for users in (120, 30, None):
        settings["checkpoint_dir"] = str(tmp_path / str(users))
        config = experiment.prepare("TIGER", "tiny", {**settings, "valid_users": users, "state": "ERROR"})
        results[users], trainer, test_data = experiment.train(config)
        experiment.finish(results[users], trainer, test_data, tmp_path / f"{users}.json")
        assert results[users]["settings"]["valid_users"] == users
        if users == 30:
            _, some, _ = experiment.load(config)
            again = trainer.evaluate(some, model_file=results[users]["checkpoint"])
            assert dict(again) == results[users]["best_valid_result"]
            hits = results[users]["best_valid_result"]["recall@10"] * 30
            assert hits == pytest.approx(round(hits), abs=2e-3)
    losses = [[epoch["train_loss"] for epoch in result["epoch_log"]] for result in results.values()]
    assert losses[0] == losses[1] == losses[2]  # training is the same
    assert results[120]["best_valid_result"] == results[None]["best_valid_result"]
    assert results[30]["best_valid_result"] != results[None]["best_valid_result"]
    assert results[120]["test_result"] == results[None]["test_result"]
