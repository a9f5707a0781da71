"""CatalogueDataset: RecBole's rows made faster, the text of the items, and windows that count every target once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_tiger.catalogue.item_text import read_item_text, text_of_items
from recbole_tiger.runs import experiment
from recbole_tiger.training.dataset import CatalogueDataset, Rows, training_windows
from tests.conftest import write_dataset

LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
RATIO = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "mode": "full"}
# By ratio over all users together: rows of one user lie far apart, and validation rows begin late in a history.
RATIO_OF_ALL = {"split": {"RS": [0.5, 0.4, 0.1]}, "group_by": None, "order": "TO", "mode": "full"}


def config_of(settings, dataset="tiny", **more):
    config = Config(model="TIGER", dataset=dataset, config_dict={**settings, **more})
    init_seed(config["seed"], config["reproducibility"])
    return config


# --- rows ---


def write_rich_interactions(folder):
    """A dataset whose interactions have every kind of column; histories of 1 to 30 items without repeats."""
    rng = np.random.default_rng(1)
    path = folder / "rich"
    path.mkdir()
    items = [f"i{i}" for i in range(60)]
    (path / "rich.item").write_text("item_id:token\ttitle:token\n" + "".join(f"{i}\tItem {i}\n" for i in items))
    lines = ["user_id:token\titem_id:token\trating:float\ttags:token_seq\tplace:float_seq\ttimestamp:float"]
    for user in range(40):
        history = rng.permutation(items)[: rng.integers(2, 31)]
        for step, item in enumerate(history):
            tags = " ".join(rng.choice(list("abcd"), rng.integers(1, 4), replace=False))
            place = f"{rng.random():.3f} {rng.random():.3f}"
            lines.append(f"u{user}\t{item}\t{rng.integers(1, 6)}\t{tags}\t{place}\t{step}")
    (path / "rich.inter").write_text("\n".join([lines[0], *rng.permutation(lines[1:])]) + "\n")
    np.savez(path / "embeddings.npz", items=np.array(items), embeddings=rng.normal(size=(60, 16)))


@pytest.fixture(scope="module")
def rich_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich")
    write_rich_interactions(folder)
    return folder


@pytest.fixture
def rich(settings, rich_path):
    """Settings for the dataset of histories without repeats."""
    embeddings = str(rich_path / "rich" / "embeddings.npz")
    return {**settings, "data_path": str(rich_path), "item_embeddings": embeddings}


def same_rows(ours, theirs):
    """Assert that two datasets have the same rows: fields, their order, types and values."""
    assert list(ours.inter_feat.columns) == list(theirs.inter_feat.columns)
    for field in theirs.inter_feat:
        assert ours.inter_feat[field].dtype == theirs.inter_feat[field].dtype, field
        assert torch.equal(ours.inter_feat[field], theirs.inter_feat[field]), field
    assert ours.field2seqlen == theirs.field2seqlen
    assert ours.field2type == theirs.field2type


@pytest.mark.parametrize("longest", [5, 20])
def test_rows_are_those_of_recboles_sequential_dataset(settings, longest):
    ours = create_dataset(config_of(settings, MAX_ITEM_LIST_LENGTH=longest))
    assert type(ours) is CatalogueDataset
    theirs = SequentialDataset(config_of(settings, MAX_ITEM_LIST_LENGTH=longest, load_col=ours.config["load_col"]))
    # before the augmentation's presets the fields are the same; build() only splits
    for dataset in (ours, theirs):
        dataset._change_feat_format()
    assert (ours.inter_feat["item_length"] == longest).any() == (longest == 5)
    same_rows(ours, theirs)


@pytest.mark.parametrize("numerical", [[], ["rating"]])
def test_rows_with_every_kind_of_column(rich, numerical):
    load_col = {"inter": ["user_id", "item_id", "rating", "tags", "place", "timestamp"], "item": ["item_id", "title"]}
    more = {"MAX_ITEM_LIST_LENGTH": 5, "load_col": load_col, "numerical_features": numerical}
    ours, theirs = CatalogueDataset(config_of(rich, "rich", **more)), SequentialDataset(config_of(rich, "rich", **more))
    for dataset in (ours, theirs):
        dataset._change_feat_format()
    assert {"rating_list", "tags_list", "place_list"} <= set(ours.inter_feat.columns)
    same_rows(ours, theirs)


@pytest.mark.parametrize(
    "index",
    [[3, 1, 1], [], [True, False] * 3, np.array([5, 0]), torch.tensor([2]), torch.arange(6) > 2, slice(1, 4), 2],
    ids=repr,
)
def test_rows_by_any_index(index):
    columns = {"item_id": torch.arange(6), "item_id_list": torch.arange(12).view(6, 2)}
    ours, theirs = Rows(columns)[index], Interaction(columns)[index]
    for name in columns:
        assert torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype


# --- columns and text ---


def test_columns_are_derived_from_the_header(settings):
    expected = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "brand", "price"]}
    assert CatalogueDataset(config_of(settings)).config["load_col"] == expected
    config = config_of(settings, text_fields=["price", "absent", "title"])
    assert CatalogueDataset(config).config["load_col"]["item"] == ["item_id", "price", "title"]


def test_every_model_loads_the_same_columns(settings):
    own = {key: settings[key] for key in ("data_path", "checkpoint_dir")}
    expected = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "brand", "price"]}
    assert experiment.prepare("SASRec", "tiny", own)["load_col"] == expected
    assert experiment.prepare("TIGER", "tiny", settings)["load_col"] == expected


ITEMS = """item_id:token\tcategories:token_seq\tprice:float\ttitle:token\tstock:float
a\tHair Care|Nail\t19.990\tNone\t1
b\t\t\tNA\t2
c\tSoap\t5\tBig "Quoted" & co\t3
d\tBath|Soap\t1e2\t\t4
e\tBath\t7.5\t  nan  \t5
"""


@pytest.fixture
def hand(tmp_path):
    """Settings of a dataset whose item file is written by hand, with semantic IDs by hand too."""
    path = tmp_path / "hand"
    path.mkdir()
    (path / "hand.item").write_text(ITEMS)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{user}\t{'abcde'[(user + step) % 5]}\t{step}" for user in range(6) for step in range(4)]
    (path / "hand.inter").write_text("\n".join(lines) + "\n")
    ids = ["item\tcode_1\tcollision", *(f"{item}\t{i // 2}\t{i % 2}" for i, item in enumerate("abcde"))]
    (path / "ids.tsv").write_text("\n".join(ids) + "\n")
    return {
        "data_path": str(tmp_path),
        "checkpoint_dir": str(tmp_path / "saved"),
        "semantic_ids": str(path / "ids.tsv"),
        "text_fields": ["title", "categories", "price"],
        "seq_separator": "|",
        "topk": [2],
        "valid_metric": "NDCG@2",
        "beam_size": 3,
    }


def test_item_text(hand):
    texts, titles, _ = text_of_items(config_of(hand, "hand"), ["a", "b", "c", "d", "e"])
    assert texts == [
        "None, Hair Care Nail, 19.990",
        "NA",
        'Big "Quoted" & co, Soap, 5',
        "Bath Soap, 1e2",
        "nan, Bath, 7.5",
    ]
    # The title is the first field that the item has.
    assert titles == ["None", "NA", 'Big "Quoted" & co', "Bath Soap", "nan"]


def test_item_text_follows_the_order_of_text_fields_and_of_the_items(hand):
    config = config_of(hand, "hand", text_fields=["price", "absent", "categories", "title"])
    texts, titles, _ = text_of_items(config, ["c", "a"])
    assert texts == ['5, Soap, Big "Quoted" & co', "19.990, Hair Care Nail, None"]
    assert titles == ["5", "19.990"]


def test_a_separator_of_two_characters(hand):
    """Which pandas reads as a regular expression, by another parser."""
    usual = CatalogueDataset(config_of(hand, "hand"))
    for file in (Path(hand["data_path"]) / "hand").glob("hand.*"):
        file.write_text(file.read_text().replace("\t", "~~"))
    other = CatalogueDataset(config_of(hand, "hand", field_separator="~~"))
    for dataset in (usual, other):
        dataset._change_feat_format()
    same_rows(other, usual)


def test_another_separator_leaves_the_values_whole(hand):
    config = config_of(hand, "hand", seq_separator=" ")
    assert read_item_text(config).loc["a", "text"] == "None, Hair Care|Nail, 19.990"


def test_text_is_taken_before_recbole_fills_and_rescales(hand):
    dataset = CatalogueDataset(config_of(hand, "hand", normalize_all=True))
    titles = dict(zip(dataset.catalogue.items, dataset.catalogue.titles, strict=True))
    assert titles == {"a": "None", "b": "NA", "c": 'Big "Quoted" & co', "d": "Bath Soap", "e": "nan"}
    # Item i + 1 of RecBole is row i of the catalogue, whatever the order of the file.
    assert list(dataset.catalogue.items) == dataset.field2id_token["item_id"][1:].tolist()
    by_hand = {item: [i // 2, i % 2] for i, item in enumerate("abcde")}
    codes = dataset.catalogue.semantic_ids.codes.tolist()
    assert codes == [by_hand[item] for item in dataset.catalogue.items]


# --- windows ---


def rows_of(dataset):
    """(user, visible history, target) of every training row."""
    rows = dataset.inter_feat
    columns = (rows[name].tolist() for name in ("user_id", "item_id_list", "item_length", "item_id"))
    return [(user, tuple(history[:n]), target) for user, history, n, target in zip(*columns, strict=True)]


def targets_of(windows):
    """(user, visible history, target) of every target of every window, as the model sees them."""
    found = []
    for items, n, length, user in zip(
        windows.items.tolist(), windows.n_targets.tolist(), windows.lengths.tolist(), windows.users.tolist(), strict=True
    ):
        assert items[: len(items) - length] == [0] * (len(items) - length)
        sequence = items[len(items) - length :]
        assert 0 not in sequence
        found += [(user, tuple(sequence[:t]), sequence[t]) for t in range(length - n, length)]
    return found


def split_data(config):
    return data_preparation(config, create_dataset(config))


@pytest.mark.parametrize("eval_args", [LEAVE_ONE_OUT, RATIO, RATIO_OF_ALL], ids=["LS", "RS", "RS of all"])
@pytest.mark.parametrize("longest", [5, 20])
def test_one_window_a_row_is_the_row(settings, eval_args, longest):
    train_data, _, _ = split_data(config_of(settings, eval_args=eval_args, MAX_ITEM_LIST_LENGTH=longest))
    windows = training_windows(train_data._dataset, one_target=True)
    assert Counter(targets_of(windows)) == Counter(rows_of(train_data._dataset))


@pytest.mark.parametrize("eval_args", [LEAVE_ONE_OUT, RATIO, RATIO_OF_ALL], ids=["LS", "RS", "RS of all"])
@pytest.mark.parametrize("part", [0, 1], ids=["train", "validation"])
def test_all_prefixes_of_short_sequences_are_the_rows(settings, eval_args, part):
    dataset = split_data(config_of(settings, eval_args=eval_args))[part]._dataset
    windows = training_windows(dataset, one_target=False)
    assert Counter(targets_of(windows)) == Counter(rows_of(dataset))
    if part == 0:
        assert len(windows.items) == len(set(windows.users.tolist()))  # a window a user


@pytest.mark.parametrize("eval_args", [LEAVE_ONE_OUT, RATIO, RATIO_OF_ALL], ids=["LS", "RS", "RS of all"])
@pytest.mark.parametrize("part", [0, 1], ids=["train", "validation"])
@pytest.mark.parametrize("longest", [1, 2, 5, 6])
def test_windows_of_long_sequences(rich, eval_args, part, longest):
    dataset = split_data(config_of(rich, "rich", eval_args=eval_args, MAX_ITEM_LIST_LENGTH=longest))[part]._dataset
    rows = {(user, target): history for user, history, target in rows_of(dataset)}
    assert len(rows) == len(dataset)  # no user has an item twice, so the target says which row it is
    found = targets_of(training_windows(dataset, one_target=False))
    assert Counter((user, target) for user, _, target in found) == Counter(list(rows))
    for user, visible, target in found:
        history = rows[user, target]
        assert visible == history[len(history) - len(visible) :]  # the items right before the target
        assert min(len(history), -(-longest // 2)) <= len(visible) <= longest
    if part == 0 and eval_args is not RATIO_OF_ALL:
        # Half a window is at least one item, so shorter windows move on item by item.
        assert any(len(visible) < len(rows[user, target]) for user, visible, target in found) == (longest > 2)


def test_batches_hold_every_window_once(rich):
    train_data, _, _ = split_data(config_of(rich, "rich", MAX_ITEM_LIST_LENGTH=5))
    windows = training_windows(train_data._dataset, one_target=False)
    epochs = [windows.batches(64, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1, 2)]
    for batches in epochs:
        assert sorted(torch.cat(batches).tolist()) == list(range(len(windows.items)))
        counts = [int(windows.n_targets[batch].sum()) for batch in batches]
        assert max(counts) <= 64 + 5
        assert len(batches) == -(-int(windows.n_targets.sum()) // 64)
    same, again, other, _ = ([batch.tolist() for batch in batches] for batches in epochs)
    assert same == again
    assert same != other
    assert sorted(map(sorted, same)) != sorted(map(sorted, other))  # other company, not just another order


def test_a_batch_has_windows_of_about_one_length(rich):
    train_data, _, _ = split_data(config_of(rich, "rich"))
    windows = training_windows(train_data._dataset, one_target=False)
    batches = windows.batches(64, torch.Generator().manual_seed(0))
    width = sum(len(batch) * int(windows.lengths[batch].max()) for batch in batches)
    shuffled = torch.randperm(len(windows.items), generator=torch.Generator().manual_seed(0))
    unsorted = sum(len(b) * int(windows.lengths[b].max()) for b in shuffled.split(-(-len(shuffled) // len(batches))))
    assert int(windows.lengths.sum()) <= width < unsorted


@pytest.mark.parametrize("reverse", [False, True])
def test_times_that_float32_cannot_tell_apart(tmp_path, caplog, reverse):
    """Seconds of today are exact to 128: what is nearer stands as in the file."""
    caplog.set_level("WARNING")  # whatever a run before left of RecBole's logging
    folder = write_dataset(tmp_path / "own")
    rows = [(f"u{user}", f"i{step}", 1_700_000_000 + 20 * step) for user in range(3) for step in range(5)]
    if reverse:
        rows.reverse()
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (folder / "tiny.inter").write_text("\n".join(lines) + "\n")
    experiment.prepare("SASRec", "tiny", {"data_path": str(tmp_path / "own")})
    assert ("of 3 users keep the order of the file" in caplog.text) == reverse


def test_several_rows_of_an_item(tmp_path, caplog):
    """Those that repeat one say nothing new."""
    caplog.set_level("WARNING")
    folder = write_dataset(tmp_path / "data")
    settings = {"data_path": str(tmp_path / "data")}
    rows = (folder / "tiny.item").read_text()
    for more, told in ((rows.splitlines()[3], False), ("i7\tAnother soap\tAcme\t3", True)):
        (folder / "tiny.item").write_text(rows + more + "\n")
        caplog.clear()
        texts = read_item_text(experiment.prepare("TIGER", "tiny", settings))["title"]
        assert texts["i7"] != "Another soap"
        assert ("1 items have several rows of different text: i7; the first one counts" in caplog.text) == told
