"""On a GPU the results equal those on a CPU, and steps do not wait for the device."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_tiger.catalogue.catalogue import quantize
from recbole_tiger.errors import TigerError
from recbole_tiger.graphs import Graphs
from recbole_tiger.model.decoding import beam_search, exact_scores
from recbole_tiger.runs import experiment
from recbole_tiger.runs.recommend import Recommender
from recbole_tiger.settings.config import make_config
from recbole_tiger.training.checkpoint import load_checkpoint
from recbole_tiger.training.dataset import training_windows
from recbole_tiger.training.trainer import autocast
from tests import reference
from tests.conftest import HAS_GPU
from tests.test_command_line import arguments
from tests.test_recbole import built
from tests.test_recommend import VARIANTS as RECOMMENDER_VARIANTS

pytestmark = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")

VARIANTS = {
    "paper": {"bidirectional_encoder": True, "n_user_tokens": 5},
    "full softmax": {},
    "text": {**RECOMMENDER_VARIANTS["text"], "ema_decay": 0.9, "label_smoothing": 0.1},
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.fixture(autouse=True)
def with_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_waiting():
    """A context in which operations that make the host wait for the GPU raise an error."""

    class Forbidden:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *exception):
            torch.cuda.set_sync_debug_mode("default")

    return Forbidden()


def train_without_waiting(settings, name, no_waiting):
    """Do an epoch of steps after a whole training, which creates one-time state."""
    _, (train_data, _, _), model, trainer = built({**settings, "epochs": 1, "train_batch_size": 64}, name)
    trainer.fit(train_data, None, saved=False)
    model.train()
    batches = train_data.windows.batches(64, torch.Generator().manual_seed(0))
    with no_waiting:
        for batch in batches:
            trainer.train_step(train_data.windows, batch, len(batches))


@variants
def test_a_step_of_training_does_not_wait_for_the_device(settings, variant, no_waiting):
    train_without_waiting({**settings, **variant}, "TIGER", no_waiting)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_step_of_vqrec_does_not_wait_for_the_device(settings, stage, no_waiting):
    own = {key: settings[key] for key in ("data_path", "checkpoint_dir", "cache_dir", "item_embeddings", "show_progress")}
    own |= {
        "train_stage": stage,
        "history_bias": stage == "finetune",
        "codebook_size": 8,
        "codebook_depth": 4,
        "hidden_size": 16,
    }
    train_without_waiting({**own, "enable_amp": True}, "VQRec", no_waiting)


@variants
def test_graphs_equal_steps_without_graphs(settings, variant):
    """The first of three epochs captures each shape, except at the very first step; the others replay them."""
    settings = {**settings, **variant, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "code_dropout_prob": 0.0}
    found = []
    for graphs in (True, False):
        _, (train_data, _, _), model, trainer = built(settings)
        if not graphs:
            trainer._graphs = None
        windows = training_windows(train_data._dataset, model.network.bidirectional).to(trainer.device)
        model.train()
        losses = []
        for epoch in range(3):
            batches = windows.batches(64, torch.Generator().manual_seed(epoch))
            losses += [trainer.train_step(windows, batch, 3 * len(batches)).clone() for batch in batches]
        assert graphs == (isinstance(trainer._graphs, Graphs) and len(trainer._graphs.captured) > 0)
        found.append((torch.stack(losses), [parameter.detach().clone() for parameter in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)


@variants
def test_decoding_does_not_wait_for_the_device(settings, variant, no_waiting):
    _, _, model, _ = built({**settings, **variant})
    histories = torch.tensor([[0, 0, 3, 1], [5, 9, 2, 6], [0, 7, 8, 4]])
    slots = model.slots_of(torch.tensor([1, 2, 3]))
    model.eval()
    with torch.no_grad():
        expected = model.recommend(histories, slots, 10, 20, "beam")
        with no_waiting:
            found = model.recommend(histories, slots, 10, 20, "beam")
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("trie_softmax", [False, True])
def test_beam_as_wide_as_the_catalogue_ranks_as_the_exact_scorer(trie_softmax):
    network = reference.small_network(
        trie_softmax=trie_softmax, prefix_embedding=trie_softmax, history_bias=trie_softmax
    ).cuda()
    items = torch.tensor([[0, 0, 0, 3, 1, 4], [5, 9, 2, 6, 5, 3]]).cuda()
    found, scores = beam_search(network, network.encode(items), 30)
    expected = exact_scores(network, lambda rows: network.encode(items[rows]), 2)
    torch.testing.assert_close(scores, expected.gather(1, found), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores, expected[:, 1:].sort(dim=1, descending=True).values, atol=1e-4, rtol=1e-4)


@variants
@pytest.mark.parametrize(("amp", "tolerance"), [(False, 1e-4), (True, 2e-2)], ids=["float32", "bf16"])
def test_scores_are_those_of_the_cpu(settings, variant, amp, tolerance):
    """The same weights give the same scores on both devices; with bf16 they round in different order."""
    config, (train_data, _, test_data), model, trainer = built(
        {**settings, **variant, "scoring": "exact", "enable_amp": amp}
    )
    trainer.fit(train_data, None, saved=False)
    model.eval()
    interaction = next(iter(test_data))[0]
    found = []
    for device in ("cuda", "cpu"):
        model.to(device)
        config["device"] = torch.device(device)
        with autocast(config):
            found.append(model.full_sort_predict(interaction.to(device)).float().cpu()[:, 1:])
    torch.testing.assert_close(found[0], found[1], atol=tolerance, rtol=tolerance)


def test_a_resumed_run_ends_as_the_uninterrupted_one(settings):
    settings |= {"epochs": 4, "stopping_step": 10, "hidden_dropout_prob": 0.2, "metric_decimal_place": 10}
    whole = experiment.run(experiment.prepare("TIGER", "tiny", settings), "whole")
    config = experiment.prepare("TIGER", "tiny", {**settings, "checkpoint_dir": "again", "resume": True})
    train_data, valid_data, _ = experiment.load(config)
    trainer = experiment.make_trainer(config, train_data)

    def stop(epoch, score):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(train_data, valid_data, callback_fn=stop)
    resumed = experiment.run(config, "resumed")
    for name in ("train_loss", "valid_score"):
        course = [[epoch[name] for epoch in result["epoch_log"][-2:]] for result in (whole, resumed)]
        np.testing.assert_allclose(*course, rtol=1e-3, atol=2e-3)
    assert resumed["test_result"]["ndcg@10"] == pytest.approx(whole["test_result"]["ndcg@10"], abs=0.01)


def test_checkpoints_travel_both_ways(settings):
    histories = [["i3", "i9", "i15"], ["i7"]]
    for gpu_id, other in (("0", "cpu"), ("", "cuda")):
        config = experiment.prepare("TIGER", "tiny", {**settings, "gpu_id": gpu_id, "checkpoint_dir": f"saved-{other}"})
        if gpu_id == "":
            config["device"] = torch.device("cpu")
        result = experiment.run(config, "results")
        lists = [Recommender.load(result["checkpoint"], device).recommend(histories) for device in ("cpu", "cuda")]
        for one, two in zip(*lists, strict=True):
            assert [row["item"] for row in one] == [row["item"] for row in two]
            np.testing.assert_allclose([row["score"] for row in one], [row["score"] for row in two], rtol=1e-3, atol=1e-3)
        weights = load_checkpoint(result["checkpoint"])["state_dict"]
        assert {tensor.device.type for tensor in weights.values()} == {"cpu"}


@pytest.mark.parametrize("quantizer", ["rq_kmeans", "rq_vae"])
def test_semantic_ids_depend_on_the_seed_alone(settings, quantizer):
    embeddings = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    items, found = [f"i{i}" for i in range(60)], []
    for cache in ("one", "other"):
        own = {**settings, "quantizer": quantizer, "rq_vae_steps": 100, "rq_vae_warmup_steps": 60, "cache_dir": cache}
        found.append(quantize(make_config("TIGER", "tiny", own), items, embeddings)[0].codes)
    assert np.array_equal(*found)


def test_a_model_of_recboles_runs(settings):
    own = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress", "epochs")}
    result = experiment.run(experiment.prepare("SASRec", "tiny", own), "results")
    assert result["hardware"]["gpu"] == torch.cuda.get_device_name()
    assert result["test_result"]["recall@10"] > 0


def test_two_trials_share_the_gpu(settings):
    pytest.importorskip("ray.tune.schedulers")
    Path("two.yaml").write_text("codebook_size: [4, 8]\n")
    del settings["codebook_size"]
    call = ["tune", "--model=TIGER", "--dataset=tiny", "--sweep=two.yaml", "--max_concurrent=2", *arguments(settings)]
    # A process of its own: here CUDA has been initialised, after which RecBole cannot choose the visible GPUs.
    subprocess.run([sys.executable, "-W", "ignore", "-m", "recbole_tiger", *call], check=True)
    records = [json.loads(file.read_text()) for file in Path("results").glob("*/trials/*.json")]
    assert sorted(record["params"]["codebook_size"] for record in records) == [4, 8]
    assert {record["result"]["hardware"]["gpu"] for record in records} == {torch.cuda.get_device_name()}


def test_no_memory_left_is_one_sentence(settings):
    config = experiment.prepare("TIGER", "tiny", {**settings, "hidden_size": 512, "inner_size": 8192, "n_layers": 4})
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        with pytest.raises(TigerError, match="the GPU is out of memory: lower train_batch_size"):
            experiment.run(config, "results")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
