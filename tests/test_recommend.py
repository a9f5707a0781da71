"""Recommender: from a checkpoint alone, the same as the trained model says."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from recbole_tiger import Recommender
from recbole_tiger.cli import main
from recbole_tiger.commands.recommend import read_history
from recbole_tiger.errors import TigerError
from recbole_tiger.model import base
from recbole_tiger.runs import experiment
from tests.conftest import data_of, small_settings
from tests.test_command_line import rows_of

VARIANTS = {
    "paper": {},
    "text": {
        "encoder_tokens": "item",
        "encoder_text": True,
        "trie_softmax": True,
        "prefix_embedding": True,
        "history_bias": True,
    },
    "users": {"n_user_tokens": 7, "bidirectional_encoder": True},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def trained(request, data_path, tmp_path_factory):
    """A checkpoint, and what the model that wrote it says of three test users."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = experiment.prepare("TIGER", "tiny", {**small_settings(folder, data_path), **request.param})
        result = experiment.run(config, folder / "results")
        from recbole.quick_start import load_data_and_model

        _, model, dataset, _, _, test_data = load_data_and_model(str(folder / result["checkpoint"]))
    model.eval()
    rows = test_data._dataset[[0, 5, 9]]
    tokens = dataset.field2id_token
    lengths = rows["item_length"].tolist()
    histories = [
        [str(tokens["item_id"][item]) for item in row[:length]]
        for row, length in zip(rows["item_id_list"].tolist(), lengths, strict=True)
    ]
    users = [str(tokens["user_id"][user]) for user in rows["user_id"].tolist()]
    model.scoring = "exact"
    return {
        "checkpoint": folder / result["checkpoint"],
        "scores": model.full_sort_predict(rows.to(model.device)).cpu(),
        "histories": histories,
        "users": users if request.param.get("n_user_tokens") else None,
        "tokens": [str(token) for token in tokens["item_id"]],
    }


@pytest.fixture
def recommender(trained, tmp_path):
    """Loaded from a copy of the file elsewhere: nothing else of the run is at hand."""
    return Recommender.load(shutil.copy(trained["checkpoint"], tmp_path / "copy.pth"))


def test_exact_scores_are_those_of_the_trained_model(trained, recommender):
    found = recommender.recommend(trained["histories"], k=60, scoring="exact", user=trained["users"])
    for row, recommendations in enumerate(found):
        scores = {r["item"]: r["score"] for r in recommendations}
        expected = dict(zip(trained["tokens"][1:], trained["scores"][row, 1:].tolist(), strict=True))
        assert scores == pytest.approx(expected, abs=1e-4)
        values = [r["score"] for r in recommendations]
        assert values == sorted(values, reverse=True)


def test_beam_of_the_catalogue_agrees_and_a_batch_is_its_rows(trained, recommender):
    users = trained["users"] or [None] * 3
    together = recommender.recommend(trained["histories"], k=10, beam_size=60, user=trained["users"])
    exact = recommender.recommend(trained["histories"], k=10, scoring="exact", user=trained["users"])
    for row, (history, user) in enumerate(zip(trained["histories"], users, strict=True)):
        alone = recommender.recommend(history, k=10, beam_size=60, user=user)
        assert [r["item"] for r in alone] == [r["item"] for r in together[row]] == [r["item"] for r in exact[row]]
        assert [r["score"] for r in alone] == pytest.approx([r["score"] for r in exact[row]], abs=1e-4)


def test_titles_and_excluded_history(trained, recommender):
    history = trained["histories"][0]
    user = trained["users"] and trained["users"][0]
    kept = recommender.recommend(history, k=40, scoring="exact", user=user)
    assert set(history) & {r["item"] for r in kept}
    excluded = recommender.recommend(history, k=40, scoring="exact", exclude_history=True, user=user)
    everything = recommender.recommend(history, k=60, scoring="exact", user=user)
    assert [r["item"] for r in excluded] == [r["item"] for r in everything if r["item"] not in history][:40]
    assert all(r["title"].startswith("The ") and r["title"].endswith(f" {r['item'][1:]}") for r in kept)


def test_other_kinds_of_numbers_and_lists(trained, recommender):
    options = {"k": 3, "among": ["i7", "i8", "i9"], "user": 5 if trained["users"] else None}
    expected = recommender.recommend(["i3", "i9"], **options)
    others = {"k": np.int64(3), "among": (item for item in ("i7", "i8", "i9"))}
    assert recommender.recommend(["i3", "i9"], **{**options, **others}) == expected
    for row, other in zip(recommender.recommend([("i3", "i9")], **options)[0], expected, strict=True):
        assert (row["item"], row["score"]) == (other["item"], pytest.approx(other["score"], abs=1e-5))


@pytest.mark.parametrize("trained", [VARIANTS["users"]], ids=["users"], indirect=True)
def test_users_of_several_histories_may_be_an_array(trained, recommender):
    listed = recommender.recommend(trained["histories"], k=3, user=trained["users"])
    assert recommender.recommend(trained["histories"], k=3, user=np.array(trained["users"])) == listed
    one = recommender.recommend(trained["histories"], k=3, user=5)
    assert recommender.recommend(trained["histories"], k=3, user=np.int64(5)) == one
    with pytest.raises(TigerError, match=r"a user is a token, a string or a whole number, not \['u1'\]"):
        recommender.recommend(trained["histories"][0], k=3, user=["u1"])


def test_a_list_longer_than_the_beam_widens_it(trained, recommender):
    user = trained["users"] and trained["users"][0]
    assert len(recommender.recommend(trained["histories"][0], k=45, user=user)) == 45


def test_a_list_among_some_items(trained, recommender):
    """As exact scores of the set, for a beam however narrow; of a set and histories of any size."""
    users = trained["users"]
    everything = recommender.recommend(trained["histories"], k=60, scoring="exact", user=users)
    for among in (["i7"], [f"i{i}" for i in range(0, 60, 6)], list(recommender.items)):
        k = min(5, len(among))
        for scoring, beam_size in (("beam", 60), ("exact", None)):
            found = recommender.recommend(
                trained["histories"], k=k, scoring=scoring, beam_size=beam_size, among=among, user=users
            )
            for row, whole in zip(found, everything, strict=True):
                assert [r["item"] for r in row] == [r["item"] for r in whole if r["item"] in among][:k]
        narrow = recommender.recommend(trained["histories"], k=k, beam_size=k, among=among, user=users)
        assert all(len({r["item"] for r in row} & set(among)) == k for row in narrow)


@pytest.mark.parametrize("decode_batch", [128, 2])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.5, "seed": 4}], ids=["best", "drawn"])
def test_a_list_depends_on_its_history_alone(trained, recommender, how, decode_batch, monkeypatch):
    monkeypatch.setattr("recbole_tiger.model.tiger.DECODE_BATCH", decode_batch)
    histories = [trained["histories"][0], recommender.items[:30], ["i7"], recommender.items[:57]]
    users = trained["users"] and ["u1", "u2", "u3", "u4"]
    options = {"k": 10, "exclude_history": True, **how}
    together = recommender.recommend(histories, user=users, **options)
    assert [len(row) for row in together] == [10, 10, 10, 3]  # three items are left for the last
    for i, history in enumerate(histories):
        (alone,) = recommender.recommend([history, ["i2"]], user=users and [users[i], "u9"], **options)[:1]
        assert [r["item"] for r in alone] == [r["item"] for r in together[i]]
        assert [r["score"] for r in alone] == pytest.approx([r["score"] for r in together[i]], abs=1e-4)
        assert not {r["item"] for r in alone} & set(history)


def test_a_temperature_draws_and_zero_does_not(trained, recommender):
    user = trained["users"] and trained["users"][0]
    history = trained["histories"][0]
    best = recommender.recommend(history, k=10, user=user)
    assert recommender.recommend(history, k=10, temperature=0, user=user) == best
    drawn = [recommender.recommend(history, k=10, temperature=2.0, seed=seed, user=user) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    scores = {r["item"]: r["score"] for r in recommender.recommend(history, k=60, scoring="exact", user=user)}
    assert all(r["score"] == pytest.approx(scores[r["item"]], abs=1e-4) for r in drawn[2])


def test_drawn_from_exact_scores(trained, recommender):
    user = trained["users"] and trained["users"][0]
    options = {"scoring": "exact", "user": user}
    scores = {r["item"]: r["score"] for r in recommender.recommend(["i3", "i9"], k=60, **options)}
    weight = {item: math.exp(score / 0.3) for item, score in scores.items()}
    drawn = [recommender.recommend(["i3", "i9"], k=2, temperature=0.3, seed=seed, **options) for seed in range(400)]
    firsts = Counter(pair[0]["item"] for pair in drawn)
    likely = [item for item in scores if 400 * weight[item] / sum(weight.values()) >= 5]
    expected = [400 * weight[item] / sum(weight.values()) for item in likely]
    observed = [firsts[item] for item in likely]
    rest = [400 - sum(observed)], [400 - sum(expected)]
    found = chisquare([*observed, *rest[0]], [*expected, *rest[1]]) if rest[1][0] > 1e-6 else chisquare(observed, expected)
    assert found.pvalue > 0.001
    assert all(pair[0]["item"] != pair[1]["item"] for pair in drawn)
    assert all(r["score"] == scores[r["item"]] for pair in drawn for r in pair)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.5, "seed": 4}], ids=["best", "drawn"])
def test_exact_scores_of_many_histories_are_made_in_parts(trained, recommender, how, monkeypatch):
    histories = [trained["histories"][0], recommender.items[:30], ["i7"], recommender.items[:50], ["i9", "i2"]]
    users = trained["users"] and ["u1", "u2", "u3", "u4", "u5"]
    options = {"k": 10, "exclude_history": True, "scoring": "exact", "user": users, **how}
    whole, sizes, exact = recommender.recommend(histories, **options), [], recommender.model.exact
    monkeypatch.setattr(base, "SCORE_MATRIX", 2 * 61)
    monkeypatch.setattr(recommender.model, "exact", lambda rows, slots: sizes.append(len(rows)) or exact(rows, slots))
    for one, other in zip(recommender.recommend(histories, **options), whole, strict=True):
        assert [row["item"] for row in one] == [row["item"] for row in other]
        assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], abs=1e-5)
    assert sizes == [2, 2, 1]


def test_semantic_ids_come_along(trained, recommender):
    """Those that the run made, where they need no collision level with a zero there."""
    ids = recommender.semantic_ids
    (cache,) = trained["checkpoint"].parents[1].glob("cache/quantized-*.npz")
    assert np.array_equal(ids.codes, np.load(cache)["semantic_ids"])
    assert recommender.items == trained["tokens"][1:]
    assert ids.item_of(ids.codes[3]) == recommender.items[3]


def test_a_user_that_the_model_does_not_read_is_refused(trained, recommender):
    if trained["users"]:
        pytest.skip("this model has user tokens")
    with pytest.raises(TigerError, match="without user tokens"):
        recommender.recommend(trained["histories"][0], user="u1")


def test_users_are_asked_for_where_the_model_reads_them(trained, recommender):
    if trained["users"] is None:
        pytest.skip("this model has no user token")
    with pytest.raises(TigerError, match="give a user"):
        recommender.recommend(trained["histories"][0])
    first = trained["histories"][0]
    together = recommender.recommend([first, first], scoring="exact", user="12")
    alone = [r["score"] for r in recommender.recommend(first, scoring="exact", user="12")]
    for recommendations in together:  # of one user, not of "1" and "2"
        assert [r["score"] for r in recommendations] == pytest.approx(alone, abs=1e-4)
    one, two = (recommender.recommend(trained["histories"][0], scoring="exact", user=user) for user in ("u1", "u2"))
    assert [r["score"] for r in one] != [r["score"] for r in two]


def test_levels_sum_to_the_score(trained, recommender):
    user = trained["users"] and trained["users"][0]
    rows = recommender.recommend(trained["histories"][0], k=5, user=user)
    (levels,) = recommender.log_probs_of_levels(trained["histories"][:1], [[row["item"] for row in rows]], user)
    assert list(map(sum, levels)) == pytest.approx([row["score"] for row in rows], abs=1e-4)


def test_commands_with_a_user(trained, recommender, capsys):
    if trained["users"] is None:
        pytest.skip("this model has no user token")
    Path("histories").write_text("i3,i9\n")
    call = ["recommend", f"--checkpoint={trained['checkpoint']}", "--k=3"]
    for user in ("u1", "u2"):
        expected = recommender.recommend(["i3", "i9"], k=3, user=user)
        assert main([*call, "--histories=histories", f"--user={user}", "--html=page.html"]) == 0
        line = json.loads(capsys.readouterr().out)
        assert [row["item"] for row in line["recommendations"]] == [row["item"] for row in expected]
        assert main([*call, "--history=i3,i9", f"--user={user}"]) == 0
        shown = rows_of(capsys.readouterr().out)
        assert [shown[str(place)][0] for place in (1, 2, 3)] == [row["item"] for row in expected]
        (history,) = data_of("page.html")["histories"]
        assert [sum(levels) for levels in history["parts"]] == pytest.approx(history["scores"], abs=1e-3)


def test_histories_are_read_as_csv():
    assert read_history(' i1, "a, ""3""" ,i2,,') == ["i1", 'a, "3"', "i2"]
    assert read_history("") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(trained):
    with pytest.raises(TigerError, match="device 'cuda': PyTorch finds no GPU; give 'cpu'"):
        Recommender.load(trained["checkpoint"], device="cuda")


def test_items_with_words_in_a_column(trained, recommender):
    soaps = recommender.items_where("title", "the SOAP")
    titles = dict(zip(recommender.items, recommender.titles, strict=True))
    assert set(soaps) == {item for item, title in titles.items() if title.startswith("The soap ")}
    assert recommender.items_where("title", "number 1") == [item for item in titles if titles[item].endswith("number 1")]
    acme = set(recommender.items_where("brand", "Acme"))
    assert acme == {item for item in titles if int(item[1:]) % 2}
    user = trained["users"] and trained["users"][0]
    found = recommender.recommend(["i3"], k=5, among=soaps, user=user)
    assert {row["item"] for row in found} <= set(soaps)
    for column, words, said in (("colour", "red", "keeps no column colour"), ("title", "soa", "no item has 'soa'")):
        with pytest.raises(TigerError, match=said):
            recommender.items_where(column, words)


def test_conditions_of_the_command(trained, capsys):
    if trained["users"]:
        pytest.skip("one model will do")
    call = ["recommend", f"--checkpoint={trained['checkpoint']}", "--history=i3", "--k=3", "--where=title=shampoo"]
    assert main([*call, "--where=brand=acme"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "The " in line]
    assert len(rows) == 3
    assert all("The shampoo" in row for row in rows)
    assert main([*call, "--where=title=brush"]) == 2
    assert "no item fits --where=title=brush" in capsys.readouterr().err
    assert main([*call, "--where=soap"]) == 2
    assert "is not a condition" in capsys.readouterr().err
