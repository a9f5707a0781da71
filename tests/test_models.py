"""Tests that every model of MODELS passes, two recipes, and a model from outside the package."""

import json
import math
from pathlib import Path

import pytest
import torch

from recbole_tiger import Recommender
from recbole_tiger.catalogue.quantizers import QUANTIZERS
from recbole_tiger.cli import main
from recbole_tiger.model import MODELS
from recbole_tiger.registry import import_file
from recbole_tiger.runs import experiment
from recbole_tiger.settings.properties import model_of, property_file, unread
from tests.conftest import data_of, small_settings
from tests.test_new_items import scores_of, write_new
from tests.test_recbole import built

from recbole.quick_start import load_data_and_model  # isort: skip - after the plugin's import, as users have it
from recbole.utils.case_study import full_sort_topk  # isort: skip

OPQ = {"quantizer": "opq", "codebook_size": 8, "codebook_depth": 4}
# Settings of each model that make it small, in addition to the shared ones.
SMALL = {"TIGER": {}, "TIGER-text": {}, "VQRec": OPQ, "VQRec-text": OPQ, "Toy": {}}
# An invalid setting of each model.
WRONG = {"TIGER": ("n_heads", 0), "VQRec": ("n_heads", 7), "Toy": ("codebook_size", 0)}


@pytest.fixture(params=list(SMALL), autouse=True)
def name(request, own_folder):
    if request.param == "Toy":
        import_file(Path(__file__).with_name("toy.py"))
    return request.param


@pytest.fixture
def settings(name, tmp_path, data_path):
    shared = small_settings(tmp_path, data_path)
    shared = {key: value for key, value in shared.items() if key not in unread(name, shared)}
    recipe = {key: value for key, value in property_file("recipe", name).items() if key != "model"}
    return {**recipe, **shared, **SMALL[name]}


def test_every_model_is_tested():
    assert set(SMALL) >= set(MODELS) - {"Shallow"}  # the other model of toy.py


def trained(name, settings, **more):
    """The result and the checkpoint of a run."""
    config = experiment.prepare(name, "tiny", {**settings, **more})
    result = experiment.run(config, Path("results"))
    return result, result["checkpoint"]


def batch_of(dataset, rows):
    return dataset.inter_feat[torch.as_tensor(rows)]


def test_scores_depend_on_the_history_alone(name, settings):
    _, (_, _, test_data), model, _ = built(settings, model_of(name))
    model.eval()
    rows = range(12)
    together = model.full_sort_predict(batch_of(test_data.dataset, rows)).view(12, -1)
    for row in rows:
        alone = model.full_sort_predict(batch_of(test_data.dataset, [row])).view(1, -1)
        finite = alone.isfinite() & together[row].isfinite()
        assert finite[:, 1:].sum() >= 20
        torch.testing.assert_close(alone[finite], together[row : row + 1][finite], atol=1e-4, rtol=1e-4)


def test_predict_is_the_score_of_the_item(name, settings):
    _, (_, _, test_data), model, _ = built({**settings, **({"scoring": "exact"} if "TIGER" in name else {})}, model_of(name))
    model.eval()
    batch = batch_of(test_data.dataset, range(20))
    scores = model.full_sort_predict(batch).view(20, -1)
    expected = scores.gather(1, batch[model.ITEM_ID].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(model.predict(batch), expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_recommends_what_the_model_did(name, settings):
    _, file = trained(name, settings)
    config, model, dataset, _, _, test_data = load_data_and_model(file)
    users = torch.tensor([1, 2, 3])
    _, found = full_sort_topk(users, model, test_data, k=5, device=config["device"])
    rows = [test_data.dataset.inter_feat[test_data.dataset.inter_feat[dataset.uid_field] == user] for user in users]
    field = dataset.iid_field + config["LIST_SUFFIX"]
    histories = [
        [item for item in dataset.id2token(dataset.iid_field, row[field][0].numpy()) if item != "[PAD]"] for row in rows
    ]
    lists = Recommender.load(file, "cpu").recommend(histories, k=5)
    expected = [list(dataset.id2token(dataset.iid_field, row.cpu().numpy())) for row in found]
    assert [[row["item"] for row in one] for one in lists] == expected


def test_a_setting_that_cannot_work_is_one_sentence(name, settings, capsys):
    key, value = WRONG[model_of(name)]
    arguments = [f"--{other}={json.dumps(given)}" for other, given in {**settings, key: value, "state": "ERROR"}.items()]
    assert main(["run", f"--model={name}", "--dataset=tiny", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recbole-tiger: error: ")
    assert key in line


def test_a_killed_run_ends_as_one_that_was_not(name, settings, monkeypatch):
    expected, _ = trained(name, settings, epochs=3)
    for file in Path("results").iterdir():
        file.unlink()
    evaluations = []

    def failing(trainer, max_minutes, original=experiment.time_epochs):
        original(trainer, max_minutes)
        valid = trainer._valid_epoch

        def twice(*args, **kwargs):
            evaluations.append(1)
            if len(evaluations) == 2:
                raise KeyboardInterrupt
            return valid(*args, **kwargs)

        trainer._valid_epoch = twice

    monkeypatch.setattr(experiment, "time_epochs", failing)
    with pytest.raises(KeyboardInterrupt):
        trained(name, settings, epochs=3)
    result, _ = trained(name, settings, epochs=3, resume=True)
    assert result["test_result"] == expected["test_result"]
    assert [epoch["valid_result"] for epoch in result["epoch_log"]] == [
        epoch["valid_result"] for epoch in expected["epoch_log"]
    ]


@pytest.mark.parametrize("quantizer", list(QUANTIZERS))
def test_every_quantizer_serves_every_model(name, settings, quantizer):
    depths = {"atomic": 1, "string": 2, "vq": 1}
    more = {"quantizer": quantizer, "codebook_size": 8, "rq_vae_steps": 150, "rq_vae_warmup_steps": 50, "epochs": 1}
    more |= {"codebook_depth": 2, "hierarchical_branches": 4, "hierarchical_leaf_size": 14}
    if name == "VQRec-text" and quantizer != "opq":
        pytest.skip("its embeddings start from the codebooks of opq")
    result, file = trained(name, settings, **more)
    recommender = Recommender.load(file, "cpu")
    assert len(recommender.semantic_ids.items) == result["semantic_ids"]["items"] == 60
    assert recommender.semantic_ids.depth == depths.get(quantizer, 2)
    exact = scores_of(recommender, ["i3", "i9"])
    assert len(exact) == 60
    if "beam" in recommender.model.scorings:
        beam = recommender.recommend(["i3", "i9"], k=60, beam_size=60)
        assert {row["item"]: row["score"] for row in beam} == pytest.approx(exact, abs=1e-4)


def test_lists_have_what_is_asked_for(name, settings):
    _, file = trained(name, settings, epochs=1)
    recommender, history = Recommender.load(file, "cpu"), ["i3", "i9"]
    scores = scores_of(recommender, history)
    assert sum(map(math.exp, scores.values())) < 1 + 1e-4  # TIGER's softmax has codes that lead to no item, too
    among = recommender.items[::3]
    options = {"among": among, "exclude_history": True, "scoring": "exact"}
    found = [row["item"] for row in recommender.recommend(history, k=10, **options)]
    assert found == [item for item in scores if item in among and item not in history][:10]
    drawn = [recommender.recommend(history, k=10, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({row["item"] for row in drawn[2]}) == 10
    assert all(row["score"] == pytest.approx(scores[row["item"]], abs=1e-4) for row in drawn[2])
    both = recommender.recommend([history, ["i7"]], k=5)
    for alone, together in zip((recommender.recommend(one, k=5) for one in (history, ["i7"])), both, strict=True):
        assert [row["item"] for row in alone] == [row["item"] for row in together]
    if levels := recommender.log_probs_of_levels([history], [["i5", "i6"]]):
        assert list(map(sum, levels[0])) == pytest.approx([scores["i5"], scores["i6"]], abs=1e-4)


def test_new_items_stay_with_a_saved_model(name, settings, data_path):
    _, file = trained(name, settings, epochs=1)
    before = Recommender.load(file, "cpu")
    after = before.add_items(*write_new(data_path, ["i3", "i8"]))
    after.save("more.pth")
    saved = Recommender.load("more.pth", "cpu")
    assert saved.items == [*before.items, "n0", "n1"]
    assert (saved.semantic_ids.codes[:60] == before.semantic_ids.codes).all()
    assert scores_of(saved, ["n0", "i8"]) == pytest.approx(scores_of(after, ["n0", "i8"]), abs=1e-6)
    made_by = experiment.prepare(name, "tiny", {**settings, "epochs": 1})
    assert saved.config["text_initializer"] == before.config["text_initializer"] == made_by["text_initializer"]
    assert main(["recommend", "--checkpoint=more.pth", "--history=n0,i8", "--k=62", "--html=page.html"]) == 0
    (shown,) = data_of("page.html")["histories"]
    assert sorted(shown["items"]) == sorted(saved.items)
