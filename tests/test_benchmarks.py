"""The scripts of benchmarks/: what they compute, and that they run."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from recbole.quick_start import load_data_and_model

from recbole_tiger.catalogue.catalogue import quantize
from recbole_tiger.catalogue.semantic_ids import SemanticIDs
from recbole_tiger.cli import make_parser
from recbole_tiger.errors import TigerError
from recbole_tiger.report.results import read_results
from recbole_tiger.runs import experiment, sweep
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.training.checkpoint import load_checkpoint
from recbole_tiger.training.dataset import CatalogueDataset
from tests.conftest import N_ITEMS, N_USERS, read_sequences
from tests.test_command_line import files_under, rows_of

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def siblings(monkeypatch):
    """Scripts import their siblings, as they do where they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_the_pages_are_made_of_the_result_files():
    summary = script("summary")
    found = []
    for page in summary.PAGES:
        text = page.read_text(encoding="utf-8")
        assert summary.with_tables(text) == text, page
        found += [name for _, name, _ in summary.MARKED.findall(text)]
    assert sorted(found) == sorted(summary.TABLES)


def test_pictures_are_drawn(tmp_path):
    summary = script("summary")
    pages = "".join(page.read_text(encoding="utf-8") for page in summary.PAGES)
    for name, draw in summary.PICTURES.items():
        draw().savefig(tmp_path / f"{name}.png", dpi=20)
        assert f"results/summary/{name}.png" in pages
        assert (BENCHMARKS / f"results/summary/{name}.png").is_file()


def test_bars_are_what_the_result_files_say():
    """The height of each bar is test NDCG@10, the mean over seeds, or the published number."""
    summary = script("summary")
    axes = summary.draw_quality().axes[0]
    bars = [bar.get_height() for bar in sorted(axes.patches, key=lambda bar: bar.get_x())]
    runs = read_results(BENCHMARKS / "results/leaderboard")
    expected = []
    for dataset, published in zip(summary.DATASETS, (0.0384, 0.0225, 0.0432), strict=True):
        expected.append(published)
        for label in summary.CHART[1:]:
            found = [r["test_result"]["ndcg@10"] for r in runs if (r["dataset"], r["label"]) == (dataset, label)]
            expected.append(np.mean(found))
    assert bars == pytest.approx(expected, abs=5e-5)  # result files have four digits


def row_of(page, table, cells):
    """The row with some cells, of a table of a page: column -> cell."""
    text = (BENCHMARKS / page).read_text(encoding="utf-8").split(f"<!-- table {table} -->")[1].split("<!-- end -->")[0]
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines()]
    (found,) = [row for row in (dict(zip(header, row, strict=True)) for row in rows) if cells.items() <= row.items()]
    return found


def per_user(folder, dataset, label):
    """Means over seeds of Recall@10 and NDCG@10 of every user, and whether the target is of a later day, from the files."""
    values, later = [], {}
    for file in sorted((BENCHMARKS / "results" / folder).glob(f"{dataset}-*.json")):
        run = json.loads(file.read_text())
        with np.load(file.parent / run["ranks"]) as arrays:
            if "later_day" in arrays:
                later = dict(zip(arrays["users"].tolist(), arrays["later_day"].tolist(), strict=True))
            if run["label"] == label:
                users, ranks = arrays["users"].tolist(), arrays["ranks"].astype(float)
                found = (ranks > 0) & (ranks <= 10)
                values.append([found, np.where(found, 1 / np.log2(np.maximum(ranks, 1) + 1), 0)])
    return np.mean(values, axis=0), np.array([later[user] for user in users])


def test_tables_are_what_the_result_files_say():
    """A few cells, computed anew: the sign of a difference, the targets of a later day, what a drawn order loses."""

    def text(values):
        return " / ".join(f"{value:.4f}".removeprefix("0") for value in values)

    (ours, later), (theirs, _) = (per_user("leaderboard", "amazon-beauty", label) for label in ("TIGER", "SASRec"))
    by = (ours - theirs).mean(axis=1)
    assert (by < 0).all()
    cell = row_of("quality.md", "differences", {"first minus second": "TIGER - SASRec"})["Beauty"]
    assert [float(part) for part in re.findall(r"[+-]\.\d+", cell)] == pytest.approx(by, abs=5.1e-5)
    days = row_of("data.md", "days", {"dataset": "Beauty", "model": "SASRec"})
    assert days["later day"] == text(theirs[:, later].mean(axis=1))
    assert days["same day"] == text(theirs[:, ~later].mean(axis=1))
    shares = row_of("data.md", "days", {"dataset": "Beauty", "model": "share of the targets"})
    assert shares["later day"] == f"{later.mean():.3f}".removeprefix("0")
    first, *drawn = json.loads((BENCHMARKS / "results/amazon-beauty-SASRec-ties.json").read_text())["rows"]
    lost = [1 - np.mean([row[metric] for row in drawn]) / first[metric] for metric in ("recall@10", "ndcg@10")]
    ties = row_of("data.md", "ties", {"Recall@10 / NDCG@10": "SASRec"})
    assert ties["lost"] == " / ".join(f"{share:.0%}" for share in lost)
    values, later = per_user("identifiers", "amazon-beauty", "TIGER-vq")
    row = row_of("semantic_ids.md", "identifiers", {"IDs": "vq, 256 codes"})
    assert (row["test"], row["later day"]) == (text(values.mean(axis=1)), text(values[:, later].mean(axis=1)))


def test_conditions_are_of_runs_that_are_here():
    runs = read_results(BENCHMARKS / "results/leaderboard")
    here = {(run["dataset"], run["label"], run["seed"]) for run in runs if run["label"] != "Pop"}
    notes = yaml.safe_load((BENCHMARKS / "results/leaderboard/conditions.yaml").read_text(encoding="utf-8"))
    noted = {(d, label, seed) for d, labels in notes.items() for label, seeds in labels.items() for seed in seeds}
    assert noted == here


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


def test_order_of_ties_runs(data_path, capsys):
    settings = {"data_path": str(data_path), "epochs": 2, "show_progress": False, "n_layers": 1}
    result = experiment.run(experiment.prepare("SASRec", "tiny", settings), "results")
    script("order_of_ties").main([f"--checkpoint={result['checkpoint']}", "--seeds=3", "--output=ties.json"])
    shown = capsys.readouterr().out
    assert "100.0% of the test users have their two last items on one day" in shown  # tiny lies within a day
    written = json.loads(Path("ties.json").read_text())
    first = {name: value for name, value in written["rows"][0].items() if name != "order"}
    assert first == result["test_result"]
    assert len(written["rows"]) == 4
    assert len({row["recall@20"] for row in written["rows"]}) > 1


def test_beam_vs_exact_runs(settings):
    result = experiment.run(experiment.prepare("TIGER", "tiny", settings), "results")
    arguments = [f"--checkpoint={result['checkpoint']}", "--users=30", "--beam_sizes=10,60", "--output=beam.json"]
    script("beam_vs_exact").main(arguments)
    rows = {row["scoring"]: row for row in json.loads(Path("beam.json").read_text())["rows"]}
    assert set(rows) == {"exact", "beam 10", "beam 60"}
    assert rows["exact"]["share of the exact top 10"] == rows["beam 60"]["share of the exact top 10"] == 1  # all 60 items
    assert rows["exact"]["recall@10"] == rows["beam 60"]["recall@10"]


def test_likelihood_runs(settings):
    result = experiment.run(experiment.prepare("TIGER", "tiny", settings), "results")
    arguments = [f"--checkpoint={result['checkpoint']}", "--targets=50", "--output=likelihood.json"]
    script("likelihood").main(arguments)
    rows = {row["targets of"]: row for row in json.loads(Path("likelihood.json").read_text())["rows"]}
    # The likelihood of an item is its exact score, computed by another path.
    _, model, _, _, _, test_data = load_data_and_model(result["checkpoint"])
    drawn = test_data._dataset[np.random.default_rng(0).permutation(len(test_data._dataset))[:50]].to(model.device)
    scores = model.eval().exact(model.histories_of(drawn), None)
    expected = -scores.gather(1, drawn[model.ITEM_ID].unsqueeze(1)).mean().item()
    assert rows["test"]["item"] == pytest.approx(expected, abs=1e-4)
    assert rows["test"]["item"] == pytest.approx(sum(v for k, v in rows["test"].items() if k.startswith("level")))


def test_rare_items_runs(data_path, tmp_path, capsys):
    settings = {"data_path": str(data_path), "epochs": 1, "show_progress": False, "n_layers": 1}
    result = experiment.run(experiment.prepare("SASRec", "tiny", settings), "results")
    rare, where = script("rare_items"), ["--results_dir=results", f"--data_path={data_path}"]
    assert rare.main([*where, "--dataset=tiny", "--output=rare.json"]) == 0
    tables = json.loads(Path("rare.json").read_text())
    for rows in (tables["rows"], tables["pairs"]):
        shares, found = ({name: row[name] or 0 for name in row if name != "model"} for row in rows)
        # Weighed by the shares of the targets, the groups make up the whole.
        whole = sum(shares[name] * found[name] for name in found)
        assert whole == pytest.approx(result["test_result"]["recall@10"], abs=2e-4)
    # The ranges, counted by hand: what is left of a user's items without the last two is training.
    sequences = read_sequences(data_path / "tiny")
    counts = Counter(item for items in sequences.values() for item in items[:-2])
    rare_targets = sum(counts[items[-1]] <= 10 for items in sequences.values())
    shares = tables["rows"][0]
    assert rare_targets / len(sequences) == pytest.approx(shares["0-2"] + shares["3-5"] + shares["6-10"], abs=2e-4)
    capsys.readouterr()
    for metric in ("recall@50", "precision@10", "recall"):
        assert rare.main([*where, "--dataset=tiny", f"--metric={metric}"]) == 2
        assert f"--metric={metric} has to be recall or hit or ndcg or mrr at 1 to 20" in capsys.readouterr().err
    # Beyond the longest list of a run its ranks tell nothing.
    short = experiment.run(experiment.prepare("SASRec", "tiny", {**settings, "topk": [5, 10]}), "short")
    assert rare.main(["--results_dir=short", where[1], "--dataset=tiny", "--metric=recall@10"]) == 0
    assert rare.main(["--results_dir=short", where[1], "--dataset=tiny", "--metric=recall@20"]) == 2
    assert f"--metric=recall@20: ranks of {short['label']} end before that place" in capsys.readouterr().err
    # Results of other files under the name of the dataset are left out.
    other = tmp_path / "other"
    shutil.copytree(data_path / "tiny", other / "tiny")
    file = other / "tiny" / "tiny.inter"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    assert rare.main(["--results_dir=results", "--dataset=tiny", f"--data_path={other}"]) == 2
    assert "holds no results of tiny with ranks, made of the files of" in capsys.readouterr().err
    assert rare.main(["--results_dir=absent", where[1], "--dataset=tiny"]) == 2
    assert "absent holds no results of tiny with ranks" in capsys.readouterr().err


def test_without_history(settings):
    """Against RecBole's evaluator, and lists made user by user."""
    folder = Path(shutil.copytree(Path(settings["data_path"]) / "tiny", "data/tiny"))
    table = pd.read_csv(folder / "tiny.inter", sep="\t")
    table["timestamp:float"] *= 3000  # in place of seconds between two interactions, a third of a day
    table.to_csv(folder / "tiny.inter", sep="\t", index=False)
    settings["data_path"] = "data"
    plain = {"data_path": "data", "checkpoint_dir": settings["checkpoint_dir"], "show_progress": False}
    runs = {"SASRec": {**plain, "epochs": 3, "n_layers": 1, "loss_type": "CE"}, "TIGER": {**settings, "beam_size": 60}}
    results = [experiment.run(experiment.prepare(name, "tiny", own), "results") for name, own in runs.items()]
    files = [result["checkpoint"] for result in results]
    assert script("without_history").main(["--checkpoints", *files, "--output=found.json"]) is None
    rows = json.loads(Path("found.json").read_text())["rows"]
    assert [row["model"] for row in rows] == list(runs)
    assert [row["seed"] for row in rows] == [result["seed"] for result in results]
    for file, result, row in zip(files, results, rows, strict=True):
        for metric in ("recall@10", "ndcg@10"):
            assert row[f"{metric} as it is"] == pytest.approx(result["test_result"][metric], abs=1e-4)
        _, model, _, _, _, test_data = load_data_and_model(file)
        model.eval()
        hits, first, places, later = [], [], [], []
        for interaction, _, _, targets in test_data:
            scores = model.full_sort_predict(interaction.to(model.device)).detach().cpu().view(len(targets), -1).numpy()
            for own, history, target in zip(scores, interaction["item_id_list"].tolist(), targets.tolist(), strict=True):
                items = [item for item in np.argsort(-own, kind="stable").tolist() if item]
                first.append(items[0] in history)
                places += [item in history for item in items[:10]]
                hits.append(target in [item for item in items if item not in history][:10])
            for now, past in zip(interaction["timestamp"].tolist(), interaction["timestamp_list"].tolist(), strict=True):
                later.append(int(now / 86400) > int(max(past) / 86400))
        assert row["recall@10 without history"] == pytest.approx(np.mean(hits), abs=1e-4)
        assert 0 < sum(later) < len(later)
        assert row["recall@10 without history, later day"] == pytest.approx(np.mean(np.array(hits)[later]), abs=1e-4)
        assert row["history among the first"] == pytest.approx(np.mean(first), abs=1e-4)
        assert row["history among the 10"] == pytest.approx(np.mean(places), abs=1e-4)
        assert row["history among the 10"] > 0


def test_by_frequency():
    rare = script("rare_items")
    found = rare.by_group(rare.ranges_of(pd.Series([0, 2, 3, 5, 6, 51])), pd.Series([1.0, 0, 1, 1, 0, 1]))
    assert found.dropna().to_dict() == {"0-2": 0.5, "3-5": 1.0, "6-10": 0.0, "over 50": 1.0}


def test_seen():
    """Against plain loops: a pair counts in its order, within a window, and a history's last items alone."""
    rare, rng, window = script("rare_items"), np.random.default_rng(0), 3
    histories = {f"u{i}": rng.integers(1, 60, 8).tolist() for i in range(40)}
    targets = {user: int(rng.integers(1, 60)) for user in histories}
    pairs = {(h[a], h[b]) for h in histories.values() for a in range(8) for b in range(a + 1, min(a + window + 1, 8))}
    long = pd.Series(histories).explode().astype(int)
    found = rare.seen(long, long, pd.Series(targets), window)
    for user, target in targets.items():
        last = histories[user][-window:]
        forward = any((item, target) in pairs for item in last)
        backward = any((target, item) in pairs for item in last)
        assert found[user] == (rare.SEEN if forward else rare.REVERSED if backward else rare.UNSEEN)
    assert set(found) == {rare.SEEN, rare.REVERSED, rare.UNSEEN}


def test_draw_order(data_path, capsys):
    """Every user's day keeps its times and its items, whose order changes, and with it a model's data."""
    source, draw = Path(data_path) / "tiny", script("draw_order")
    assert draw.main(["--dataset=tiny", f"--data_path={data_path}", "--output_path=drawn"]) == 0
    copy = Path("drawn") / "tiny"
    assert (copy / "tiny.item").read_bytes() == (source / "tiny.item").read_bytes()

    def read(folder):
        return pd.read_csv(folder / "tiny.inter", sep="\t", dtype=str).sort_values(
            ["user_id:token", "timestamp:float"], ignore_index=True, key=lambda column: column.str.zfill(9)
        )

    before, after = read(source), read(copy)
    for name in ("user_id:token", "timestamp:float"):
        assert before[name].equals(after[name])
    moved = int((before["item_id:token"] != after["item_id:token"]).sum())
    assert moved > len(before) / 2 and f"{moved:,} of {len(before):,} interactions changed places" in capsys.readouterr().out
    for _, rows in after.groupby("user_id:token"):  # all of a user's are of one day here
        assert sorted(rows["item_id:token"]) == sorted(before["item_id:token"][rows.index])
    assert draw.main(["--dataset=tiny", f"--data_path={data_path}", "--output_path=drawn"]) == 2
    assert "drawn/tiny exists" in capsys.readouterr().err


def test_drawn_order_stays_within_days():
    draw, day = script("draw_order"), 86400
    table = pd.DataFrame({"u": [*"aaaab"], "t": [str(t) for t in (0, 1, day, day + 1, 0)], "i": [*"pqrsp"]})
    seen = {"".join(draw.drawn(table, "u", "t", np.random.default_rng(seed))["i"]) for seed in range(30)}
    assert seen == {"pqrsp", "qprsp", "pqsrp", "qpsrp"}


# --- the grid ---


GRID = """
datasets: [tiny]
seeds: [1, 2]
settings: {epochs: 1, embedding_size: 8, state: ERROR}
models:
  Pop: {}
  SASRec: {n_layers: 1, n_heads: 1, hidden_size: 8}
"""


ARGUMENTS = ["--grid=grid.yaml", "--results_dir=results"]


@pytest.fixture
def grid(capsys, data_path):
    """Run the grid of grid.yaml in this process (its cells have their own); returns what it printed."""

    def run(*arguments, status=0):
        capsys.readouterr()
        assert script("leaderboard").main([*ARGUMENTS, f"--data_path={data_path}", *arguments]) == status
        shown = capsys.readouterr()
        return shown.out, shown.err

    return run


def states(output):
    return {name: cells[0] for name, cells in rows_of(output).items()}


def test_grid(grid):
    Path("grid.yaml").write_text(GRID)
    cells = [f"tiny/{model}/{seed}" for seed in (1, 2) for model in ("Pop", "SASRec")]

    plan, _ = grid("--dry-run")
    assert states(plan) == dict.fromkeys(cells, "to run")
    assert "4 of 4 cells to run: about 0 minutes, and 4 of unknown length" in plan
    assert not Path("results").exists()

    first, _ = grid("--only=*/SASRec/1")
    assert states(first) == {cells[1]: "finished"}
    (result,) = read_results("results")
    assert (result["label"], result["seed"], result["epochs"], result["settings"]["hidden_size"]) == ("SASRec", 1, 1, 8)
    plan, _ = grid("--dry-run")
    assert rows_of(plan)[cells[1]] == ["finished", "", ""]
    assert rows_of(plan)[cells[3]] == ["to run", "0.0", "earlier runs"]
    assert rows_of(plan)[cells[0]] == ["to run", "?", "no earlier run"]

    before = files_under("results")
    second, _ = grid("--only=tiny/Pop/2,*/SASRec/1")
    assert states(second) == {cells[1]: "was finished", cells[2]: "finished"}
    assert {file: content for file, content in files_under("results").items() if file in before} == before
    assert len(read_results("results")) == 2
    # Other settings are another cell.
    assert states(grid("--dry-run", "--epochs=2")[0]) == dict.fromkeys(cells, "to run")
    assert rows_of(grid("--dry-run", "--max_minutes=3")[0])[cells[0]] == ["to run", "0.0", "earlier runs"]  # of Pop/2


def test_settings_of_a_dataset(data_path):
    """They lie over those of every model, and under those of the model and of the command line."""
    own = {"datasets": {"tiny": {"epochs": 2, "max_minutes": 9, "hidden_size": 4}}, "seeds": [1]}
    every, model = {"epochs": 1, "embedding_size": 8}, {"SASRec": {"hidden_size": 8}}
    Path("grid.yaml").write_text(json.dumps({**own, "settings": every, "models": model}))
    over = {"data_path": str(data_path), "max_minutes": 3}
    (cell,) = script("leaderboard").read_grid(Path("grid.yaml"), [], over, Path("results"))
    assert cell.settings == {**over, "epochs": 2, "embedding_size": 8, "hidden_size": 8}


def failure(grid, setting):
    """What a grid says of its cell of SASRec that fails for a setting, and that the other cell ends."""
    Path("grid.yaml").write_text(GRID.replace("seeds: [1, 2]", "seeds: [1]").replace("n_heads: 1", setting))
    shown, errors = grid(status=1)
    assert states(shown) == {"tiny/Pop/1": "finished", "tiny/SASRec/1": "failed"}
    (line,) = [line for line in errors.splitlines() if "tiny/SASRec/1 failed" in line]
    return line


def test_a_failed_cell_does_not_end_the_grid(grid):
    line = failure(grid, "weight_decay: x")  # of which the optimizer cannot be made, long after the settings are read
    assert "status 1: " in line
    assert "'str'" in line
    log = Path(line.rpartition("whole output: ")[2].rstrip(")"))
    assert "Traceback" in log.read_text()


def test_a_cell_that_recbole_refuses_says_why(grid):
    line = failure(grid, "n_heads: 3")
    assert "status 2: " in line
    assert "not a multiple of the number of attention heads (3)" in line


def test_a_dataset_that_is_not_there_does_not_end_the_grid(grid):
    Path("grid.yaml").write_text(GRID.replace("[tiny]", "[amazon-beauty, tiny]").replace("seeds: [1, 2]", "seeds: [1]"))
    plan, _ = grid("--dry-run", "--only=*/Pop/*")
    assert states(plan) == {"amazon-beauty/Pop/1": "cannot run", "tiny/Pop/1": "to run"}
    assert "recbole-tiger download --dataset=amazon-beauty" in plan
    shown, errors = grid("--only=*/Pop/*", status=1)
    assert states(shown) == {"amazon-beauty/Pop/1": "failed", "tiny/Pop/1": "finished"}
    assert "amazon-beauty/Pop/1 failed: dataset amazon-beauty is not at" in errors


def test_estimates_are_under_the_limit_of_the_cell():
    board = script("leaderboard")
    log = [{"train_seconds": 500.0, "eval_seconds": 100.0}, {"train_seconds": 500.0}]
    result = {"label": "A", "dataset": "tiny", "prepare_seconds": 7.0, "eval_seconds": 3.0, "epoch_log": log}

    def minutes(limit, dataset="tiny", out_of_time=False):
        settings = {} if limit is None else {"max_minutes": limit}
        cell = board.Cell("A", dataset, 1, settings, Path("x"))
        return board.estimate(cell, [{**result, "out_of_time": out_of_time}])

    assert minutes(None) == (1110, "earlier runs")
    assert minutes(30, "other") == (1110, "earlier runs on another dataset")
    assert minutes(10) == (610, "earlier runs")
    assert minutes(30, out_of_time=True) == (1810, "earlier runs")  # it will use up the longer limit, too


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_killed_cell_goes_on(sent, status, grid, settings):
    settings = {**settings, "epochs": 40, "stopping_step": 40}
    Path("grid.yaml").write_text(json.dumps({"datasets": ["tiny"], "seeds": [1], "models": {"TIGER": settings}}))
    command = [sys.executable, BENCHMARKS / "leaderboard.py", *ARGUMENTS]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Tests that a shell started in the background ignore interrupts, and what they start would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(Path("saved").glob("TIGER-*/last.pth")):
        assert process.poll() is None
        time.sleep(0.05)
    (cell,) = psutil.Process(process.pid).children()
    process.send_signal(sent)
    assert process.wait(60) == status
    assert not cell.is_running()
    assert b"the same command goes on from here" in process.stderr.read()
    assert not list(Path("results").glob("*.json"))
    (state,) = Path("saved").glob("TIGER-*/last.pth")
    done = len(load_checkpoint(state)["epoch_log"])
    assert 0 < done < 40
    grid()
    (result,) = read_results("results")
    assert len(result["epoch_log"]) == 40
    (log,) = Path("log/leaderboard").glob("*.log")
    assert f"epochs 0 to {done - 1} are done" in log.read_text()


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (GRID.replace("Pop", "Popp"), [], "unknown model 'Popp'; did you mean Pop?"),
        (GRID.replace("n_layers", "n_layer"), [], "unknown setting 'n_layer'"),
        (GRID.replace("seeds: [1, 2]", ""), [], "grid.yaml lacks seeds"),
        (GRID.replace("seeds:", "sedes: 3\nseeds:"), [], "unknown keys: sedes"),
        (GRID, ["--only=*/7"], "--only=*/7 matches no dataset/model/seed"),
        (GRID, ["--epoch=1"], "unknown setting 'epoch' in the command line"),
    ],
)
def test_bad_grid(grid, text, arguments, message):
    Path("grid.yaml").write_text(text)
    _, errors = grid(*arguments, status=2)
    assert errors.splitlines()[-1].startswith("leaderboard.py: error: ")
    assert message in errors.splitlines()[-1]
    assert not Path("results").exists()


@pytest.mark.parametrize(("name", "cells"), [("leaderboard", 117), ("ablations", 18), ("identifiers", 18)])
def test_grids_that_are_here(real_data, capsys, name, cells):
    """Every cell of the grids beside the scripts can be run: its settings are known and its data are there."""
    arguments = [f"--grid={BENCHMARKS / name}.yaml", "--dry-run", f"--data_path={real_data}", "--results_dir=none"]
    assert script("leaderboard").main(arguments) == 0
    assert f"{cells} of {cells} cells to run" in capsys.readouterr().out


def documented_searches():
    text = "".join(page.read_text(encoding="utf-8") for page in sorted(BENCHMARKS.glob("*.md")))
    return re.findall(r"^recbole-tiger (tune .*)$", text, flags=re.MULTILINE)


def test_both_searches_are_documented():
    assert [re.search("--sweep=(\\w+)", command).group(1) for command in documented_searches()] == ["SASRec", "codebook"]


@pytest.mark.parametrize("command", documented_searches())
def test_documented_searches_can_be_planned(real_data, command):
    """All trials of the searches in the pages of benchmarks/ are of settings that fit together."""
    args, rest = make_parser().parse_known_args(shlex.split(command))
    settings = {**parse_arguments(rest), "data_path": str(real_data)}
    config = experiment.prepare(args.model, args.dataset, settings)
    names = ("sweep", "search", "num_samples", "scheduler", "grace_period", "results_dir")
    options = {name: getattr(args, name) for name in names}
    planned = sweep.plan(args.model, args.dataset, settings, config, **options)
    assert planned.size == {"codebook": 12, "SASRec": 4}[args.sweep]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [(["fuzz.py", "--examples=6", "--kinds=histories"], 1), (["kills.py", "--kills=2", "--commands=tokenize"], 2)],
)
def test_faults_are_searched_for(arguments, count):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / arguments[0], *arguments[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAULT" not in done.stdout
    assert sum(map(int, re.findall(r"(?:: |, )(\d+)", done.stdout))) == count


# --- figures of the paper ---


def test_entropy_of_categories_given_codes():
    categories, groups = pd.Series(list("aabbab")), pd.Series([0, 0, 0, 0, 1, 1])
    categories_of = script("categories")
    assert categories_of.entropy_given(categories, groups) == pytest.approx(1)
    assert categories_of.entropy_given(categories, pd.Series([0, 0, 1, 1, 0, 1])) == pytest.approx(0)
    codes = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [0, 1], [1, 1]])
    rows = categories_of.measure(codes, categories, seed=0)
    assert [(row["codes"], row["groups"]) for row in rows] == [(0, 1), (1, 2), (2, 4)]
    assert [row["bits"] for row in rows] == pytest.approx([1, 0, 0])
    assert rows[0]["bits_at_random"] == pytest.approx(1)


def test_entropy_of_lists():
    found = script("diversity").entropies(np.array([[0, 0, 0, 0], [0, 1, 2, 3], [4, 4, 1, 1]]))
    assert found == pytest.approx([0, np.log(4), np.log(2)])


def test_share_of_invalid_ids():
    found, free = torch.arange(1, 101).view(2, 50), torch.arange(1, 101).view(2, 50)
    free[0, 4:] = 0
    rows = script("invalid").shares(found, free, torch.tensor([6, 51]))
    assert [row["invalid"] for row in rows] == pytest.approx([0.3, 0.4, 0.46])
    assert [row["recall_with_the_trie"] for row in rows] == [1, 1, 1]
    assert [row["recall_without"] for row in rows] == [0.5, 0.5, 0.5]


def test_lists_of_a_checkpoint(settings):
    """Both scripts have the recall of the test where they decode the lists of the test."""
    result = experiment.run(experiment.prepare("TIGER", "tiny", {**settings, "beam_size": 50}), "results")
    chosen = [f"--checkpoint={result['checkpoint']}", f"--users={N_USERS}"]
    script("invalid").main([*chosen, "--output=invalid.json", "--plot=invalid.png"])
    rows = {row["first"]: row for row in json.loads(Path("invalid.json").read_text())["rows"]}
    assert set(rows) == {10, 20, 50}
    for length in (10, 20):
        assert rows[length]["recall_with_the_trie"] == pytest.approx(result["test_result"][f"recall@{length}"], abs=6e-5)
    script("diversity").main([*chosen, "--column=title", "--output=diversity.json", "--plot=diversity.png"])
    rows = json.loads(Path("diversity.json").read_text())["rows"]
    best = {row["first"]: row["recall"] for row in rows if row["temperature"] is None}
    assert [best[length] for length in (10, 20)] == pytest.approx(
        [result["test_result"][f"recall@{length}"] for length in (10, 20)], abs=6e-5
    )
    drawn = {row["temperature"]: row["recall"] for row in rows if row["first"] == 10}
    assert set(drawn) == {None, 1.0, 1.5, 2.0}
    assert drawn[2.0] < drawn[None]
    assert Path("diversity.png").stat().st_size > 0


def test_index_memory():
    script("index_memory").main(["--sizes=100,1000", "--hnsw=0", "--output=memory.json", "--plot=memory.png"])
    rows = {(row["kept"], row["items"]): row["bytes"] for row in json.loads(Path("memory.json").read_text())["rows"]}
    assert rows["embeddings of 64", 1000] == 1000 * 64 * 4
    added = rows["TIGER-text", 1000] - rows["TIGER-text", 100]
    assert added > 900 * 4 * (384 + 128)  # the text and at least one prefix an item
    assert rows["TIGER", 1000] - rows["TIGER", 100] < 900 * 200


def test_a_measurement_whose_process_ends_says_so():
    with pytest.raises(TigerError, match="_exit ended with exit code 3"):
        script("speed").in_child(os._exit, 3)


def test_places_of_new_items():
    cold_start = script("cold_start")
    scores = np.array([[0.1, 0.5, 0.3], [0.2, 0.2, 0.9], [0.4, 0.4, 0.4]])
    ranks = cold_start.ranks_of(scores, np.array([2, 0, 1]))
    assert ranks.tolist() == [2, 2.5, 2]
    # A rank between two places counts as the later one. The users of item b find it all or not at all.
    of_text, targets = np.array([1, 1, 9, 9]), ["a", "b", "a", "a"]
    draw = {"ranks": {"model": np.append(ranks, 1), "text": of_text}, "targets": targets}
    found = {(row["method"], row["epsilon"]): row for row in cold_start.table_of([draw]) if row["k"] == 10}
    assert [found["model", share]["recall"] for share in (0.05, 0.1, 0.2, 0.3)] == [0, 0.25, 0.75, 1]
    assert [found["text", share]["minus_model"] for share in (0.1, 0.2)] == [0.25, -0.25]
    assert found["text", 0.1]["interval"] == pytest.approx([1 / 3, 1])  # a alone, or b alone
    assert found["text", 0.1]["interval_minus_model"] == pytest.approx([0, 1])
    # Two items of one prefix: the text decides between them, and never against the prefix.
    levels = torch.log(torch.tensor([[[0.5, 0.1], [0.5, 0.9], [0.2, 1.0]]]))
    text = np.array([[0.9, 0.1, 1.0]])
    by_item, by_prefix = (cold_start.in_order(levels, text, order)[0] for order in cold_start.ORDERS)
    assert np.argsort(-by_item).tolist() == [1, 2, 0]
    assert np.argsort(-by_prefix).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("model", "n_tried"), [("TIGER-text", 6), ("VQRec-history", 1)])
def test_cold_start_runs(settings, data_path, model, n_tried):
    """TIGER-text has three starts and two orders to choose from."""
    if model == "VQRec-history":
        settings = {**settings, "codebook_depth": 4, "hidden_size": 16}
    small = [f"--{name}={value}" for name, value in settings.items() if name != "data_path"] + [f"--model={model}"]
    outputs = ["--output=cold.json", "--plot=cold.png"]
    arguments = [f"--data_path={data_path}", "--dataset=tiny", "--share=0.1", "--draws=1", "--eval_step=1", *outputs]
    script("cold_start").main([*arguments, *small])
    (draw,) = json.loads(Path("cold.json").read_text())["draws"]
    last = {items[-1] for items in read_sequences(data_path / "tiny").values()}
    assert draw["new_items"] == round(0.1 * len(last))
    folder = Path("cold_start/tiny-without-2020")
    left = {item for items in read_sequences(folder).values() for item in items}
    new = {line.split("\t")[0] for line in Path("cold_start/tiny-without-2020.new.item").read_text().splitlines()[1:]}
    assert len(new) == draw["new_items"]
    assert not left & new
    assert draw["users"] == sum(items[-1] in new for items in read_sequences(data_path / "tiny").values())
    assert all(1 <= rank <= len(new) for ranks in draw["ranks"].values() for rank in ranks)
    assert len(draw["tried"]) == n_tried and model in draw["ranks"]
    assert Path("cold.png").stat().st_size > 0


def test_joint_runs(settings, data_path, tmp_path):
    """Two datasets of the same items in two orders: the table has the codes of the first, in its order."""
    other = tmp_path / "data" / "other"
    shutil.copytree(data_path / "tiny", other)
    shutil.copytree(data_path / "tiny", tmp_path / "data" / "tiny")
    for file in list(other.glob("tiny.*")):
        file.rename(other / file.name.replace("tiny", "other"))
    head, *lines = (other / "other.inter").read_text().splitlines()
    (other / "other.inter").write_text("\n".join([head, *reversed(lines)]) + "\n")
    small = [f"--{name}={value}" for name, value in settings.items() if name != "data_path"]
    arguments = [
        f"--data_path={tmp_path / 'data'}",
        "--datasets=tiny,other",
        "--output=joint.json",
        "--plot=joint.png",
        *small,
    ]
    script("joint").main(arguments)
    rows = {row["cell"]: row for row in json.loads(Path("joint.json").read_text())["rows"]}
    assert len(rows) == 3
    assert {result["settings"]["n_user_tokens"] for result in read_results("joint/results")} == {0, 2000}
    assert all(0 <= row["p of ndcg@10"] <= 1 for name, row in rows.items() if name != "a tokenizer of its own")
    both = [
        CatalogueDataset(experiment.prepare("TIGER", name, {**settings, "data_path": str(tmp_path / "data")})).catalogue
        for name in ("tiny", "other")
    ]
    assert both[0].items != both[1].items
    config = experiment.prepare("TIGER", "tiny", settings)
    items = [f"{name}:{item}" for name, one in zip(("tiny", "other"), both, strict=True) for item in one.items]
    expected = quantize(config, items, np.concatenate([one.embeddings for one in both]))[0].codes[:N_ITEMS, :-1]
    table = SemanticIDs.load("joint/joint.tsv")
    assert list(table.items) == list(both[0].items)
    assert np.array_equal(table.codes[:, :-1], expected)
