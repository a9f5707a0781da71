"""Evaluation from ranked items gives what RecBole's own trainer computes from its score matrix."""

import pytest
import torch
from recbole.trainer import Trainer

from recbole_tiger.errors import TigerError
from recbole_tiger.runs.experiment import keep_ranks
from recbole_tiger.settings.config import make_config
from recbole_tiger.training.evaluation import RankedCollector
from tests.conftest import N_USERS
from tests.test_recbole import built

RANKED = ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"]
COUNTED = ["ItemCoverage", "AveragePopularity", "ShannonEntropy", "GiniIndex", "TailPercentage"]


def evaluated(settings):
    """Results and collected tensors of TIGER's trainer and of RecBole's, for one model; whether a score matrix was made."""
    config, (train_data, _, test_data), model, trainer = built({**settings, "metric_decimal_place": 10})
    trainer.fit(train_data, None, saved=False)
    matrices = []
    predict = model.full_sort_predict

    def noted(interaction):
        matrices.append(len(interaction))
        return predict(interaction)

    model.full_sort_predict = noted
    found, structs = [], []
    for one in (trainer, Trainer(config, model)):
        collect = one.eval_collector.get_data_struct

        def kept(collect=collect):
            structs.append(collect())
            return structs[-1]

        one.eval_collector.get_data_struct = kept
        one.eval_collector.data_collect(train_data)
        before = len(matrices)
        found.append((dict(one.evaluate(test_data, load_best_model=False)), len(matrices) > before))
    return config, trainer, found, structs


@pytest.mark.parametrize(("batch", "temperature"), [(None, None), (7, None), (7, 1.5)])
def test_ranked_items_are_evaluated_as_scores(settings, batch, temperature):
    more = {"metrics": RANKED + COUNTED, "eval_batch_size": batch, "topk": [1, 5, 15], "decoding_temperature": temperature}
    config, trainer, ((ours, matrix), (theirs, _)), (own, recbole) = evaluated({**settings, **more})
    assert not matrix
    assert config["eval_batch_size"] == (batch or 512)
    assert isinstance(trainer.eval_collector, RankedCollector)
    for name in ("rec.items", "rec.topk"):
        assert own[name].dtype == recbole[name].dtype
        assert torch.equal(own[name], recbole[name])
    assert ours == theirs
    assert 0 < ours["recall@5"] < 1


@pytest.mark.parametrize(
    "more",
    [{"scoring": "exact"}, {"scoring": "exact", "metrics": ["Recall", "GAUC"], "valid_metric": "Recall@10"}],
    ids=["exact", "a metric of the whole ranking"],
)
def test_what_needs_scores_has_them(settings, more):
    _, trainer, ((ours, matrix), (theirs, _)), _ = evaluated({**settings, **more})
    assert matrix
    assert not isinstance(trainer.eval_collector, RankedCollector)
    assert ours == theirs
    assert 0 < ours.get("gauc", 0.5) < 1


def test_an_interrupted_evaluation_is_forgotten(settings, monkeypatch):
    _, (train_data, _, test_data), model, trainer = built({**settings, "eval_batch_size": 7})
    trainer.fit(train_data, None, saved=False)
    expected = trainer.evaluate(test_data, load_best_model=False)
    beam, calls = model.beam, []

    def failing(interaction):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return beam(interaction)

    monkeypatch.setattr(model, "beam", failing)
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate(test_data, load_best_model=False)
    keep_ranks(trainer)
    assert trainer.evaluate(test_data, load_best_model=False) == expected
    assert len(trainer.ranks) == N_USERS


def test_sampled_evaluation_counts_users(settings):
    eval_args = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": {"valid": "uni25", "test": "uni20"}}
    _, (_, _, test_data), _, trainer = built({**settings, "eval_args": eval_args})
    assert not isinstance(trainer.eval_collector, RankedCollector)
    assert [len(batch[2]) for batch in test_data] == [N_USERS]  # all users in one batch, though each has 21 rows


def test_a_matrix_that_is_needed_bounds_the_batch(settings, monkeypatch):
    monkeypatch.setattr("recbole_tiger.training.dataset.SCORE_MATRIX", 600)
    sizes = [built({**settings, **more})[0]["eval_batch_size"] for more in ({}, {"scoring": "exact"})]
    assert sizes == [512, 10]


def test_ids_that_no_item_has_are_misses(settings):
    """A model that has learnt nothing makes many; a hit is at the place that its ID has in the beam."""
    _, (train_data, _, test_data), model, trainer = built({**settings, "constrained": False, "beam_size": 60})
    model.eval()
    trainer.eval_collector.data_collect(train_data)
    result = trainer.evaluate(test_data, load_best_model=False)
    hits = 0
    for interaction, _, _, targets in test_data:
        found, _ = model.beam(interaction)
        assert (found == 0).any()
        hits += int((found[:, :10] == targets.unsqueeze(1)).any(dim=1).sum())
    assert result["recall@10"] == round(hits / len(test_data._dataset), 4)
    with pytest.raises(TigerError, match="lists with gaps"):
        model.full_sort_predict(interaction)


def test_ids_that_are_no_number_of_63_bits(settings):
    with pytest.raises(TigerError, match=r"too few for 8 x 8 .* codes: lower codebook_depth"):
        built({**settings, "constrained": False, "codebook_depth": 21})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"constrained": False, "trie_softmax": True}, "leave out trie_softmax"),
        ({"constrained": False, "metrics": ["NDCG", "ItemCoverage"]}, "leave out ItemCoverage"),
        ({"constrained": False, "eval_args": {"mode": "uni50"}}, "the sampled mode of eval_args"),
        ({"decoding_temperature": 1.0, "scoring": "exact"}, "leave out scoring exact"),
        ({"decoding_temperature": 1.0, "eval_args": {"mode": "uni20"}}, "leave out the sampled mode of eval_args"),
        ({"decoding_temperature": 0}, "decoding_temperature has to be a positive number"),
    ],
)
def test_ways_of_decoding_that_cannot_work(settings, more, said):
    with pytest.raises(TigerError, match=said):
        make_config("TIGER", "tiny", {**settings, **more})
