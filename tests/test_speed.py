"""The scripts of speed and scale run, and the ratios that they report are those of the medians beside them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import N_ITEMS, N_USERS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = [
    *("--hidden_size=16", "--n_heads=2", "--head_size=8", "--inner_size=32", "--n_layers=1", "--n_decoder_layers=1"),
    *("--codebook_size=8", "--codebook_depth=2", "--train_batch_size=32", "--rq_vae_steps=4", "--rq_vae_warmup_steps=2"),
]


def script(name, *options, sizes=SMALL):
    """Run a benchmark at small dimensions; returns what it wrote."""
    command = [sys.executable, BENCHMARKS / name, "--output=out.json", "--seconds=0.01", *sizes, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path("out.json").read_text()), done.stdout


def test_speed(data_path):
    embeddings = f"--item_embeddings={data_path}/tiny/embeddings.npz"
    result, shown = script("speed.py", "--dataset=tiny", f"--data_path={data_path}", "--quick", "--rounds=2", embeddings)
    interactions = len((data_path / "tiny" / "tiny.inter").read_text().splitlines()) - 1
    shape = {"items": N_ITEMS, "users": N_USERS, "interactions": interactions}
    assert result["dataset"] == {"name": "tiny", "generated": False, **shape}
    training, decoding, ratios = result["training"], result["decoding"], result["ratios"]
    targets = interactions - 3 * N_USERS  # a user's first, validation and test items are none
    for row in training.values():
        assert row["epoch_seconds"] == pytest.approx(targets / row["targets_per_second"])
    rows = [*training.values(), *(row for beam in decoding.values() for row in beam.values())]
    assert all(row["peak_bytes"] > 0 for row in training.values())
    for row in rows:
        median = sum(row["rounds"]) / 2
        assert row.get("targets_per_second", row.get("users_per_second")) == pytest.approx(median)
    ours = training["ours"]["targets_per_second"]
    assert ratios["training_vs_hf"] == pytest.approx(ours / training["hf"]["targets_per_second"])
    assert ratios["training_vs_sasrec"] == pytest.approx(ours / training["sasrec"]["targets_per_second"])
    for width in (10, 20, 50):
        beam = {name: row["users_per_second"] for name, row in decoding[f"beam{width}"].items()}
        assert ratios[f"decoding_vs_hf_beam{width}"] == pytest.approx(beam["ours"] / beam["hf"])
        assert ratios[f"decoding_vs_hf_prefix_beam{width}"] == pytest.approx(beam["ours"] / beam["hf_prefix"])
    arithmetic = result["arithmetic"]
    assert arithmetic["share_of_mm"] == pytest.approx(arithmetic["training_gflops"] / arithmetic["mm_gflops"])
    assert "decoding vs hf prefix beam50" in shown


def test_parts_of_speed(data_path):
    options = (
        "--dataset=tiny",
        f"--data_path={data_path}",
        "--rounds=1",
        f"--item_embeddings={data_path}/tiny/embeddings.npz",
    )
    result, shown = script("speed.py", *options, "--parts=training")
    assert {"training", "ratios"} <= result.keys()
    assert not {"decoding", "preparation"} & result.keys()
    assert set(result["ratios"]) == {"training_vs_hf", "training_vs_sasrec", "training_row_a_prefix_vs_hf"}
    assert "targets/s" in shown


def test_scale():
    result, shown = script("scale.py", "--items=400")
    (row,) = result["catalogues"]
    assert row["items"] == 400
    assert row["tokenize_s"] > 0
    assert row["libraries_bytes"] < row["tokenize_peak_rss_bytes"] <= row["peak_rss_bytes"]
    # Two 32-bit numbers a node and one a leaf, at most a node a level and item.
    assert 8 < row["trie_bytes_per_item"] < 3 * 8 + 4 + 1
    assert row["epoch_s"] == pytest.approx(row["targets"] / row["targets_per_s"])
    assert row["users_per_s"] > 0
    assert "trie bytes/item" in shown


def test_scale_of_another_model():
    result, _ = script("scale.py", "--items=400", "--model=VQRec-text", sizes=["--hidden_size=16", "--codebook_size=8"])
    (row,) = result["catalogues"]
    assert "trie_s" not in row
    assert row["targets_per_s"] > 0 and row["users_per_s"] > 0


def test_time_of_the_checks():
    command = [sys.executable, BENCHMARKS / "scale.py", "--checks=generated", "--items=400"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(r"checks of generated: \d+\.\d\d s of CPU time\n", done.stdout)
