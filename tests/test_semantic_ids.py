"""The table of semantic IDs: collision level, statistics, save and load."""

import numpy as np
import pytest

from recbole_tiger import SemanticIDs
from recbole_tiger.catalogue.semantic_ids import add_collision_level
from recbole_tiger.errors import TigerError


@pytest.fixture
def ids():
    codes = np.array([[1, 0], [0, 2], [1, 0], [1, 1], [1, 0]])
    return SemanticIDs(["a", "b", "c", "d", "e"], add_collision_level(codes))


def test_collision_level_numbers_a_group_in_the_order_of_the_items(ids):
    assert ids.codes.tolist() == [[1, 0, 0], [0, 2, 0], [1, 0, 1], [1, 1, 0], [1, 0, 2]]


def test_collision_level_equals_counting():
    codes = np.random.default_rng(0).integers(0, 3, (200, 3))
    seen = {}
    expected = []
    for row in map(tuple, codes.tolist()):
        expected.append(seen.get(row, 0))
        seen[row] = expected[-1] + 1
    assert add_collision_level(codes)[:, -1].tolist() == expected


def test_statistics_by_hand(ids):
    statistics = ids.statistics()
    assert statistics["items"] == 5
    assert statistics["used_codes"] == [2, 3]
    assert statistics["distinct_prefixes"] == [2, 3]
    assert statistics["distinct_ids"] == 3
    assert statistics["collision_rate"] == 0.6
    assert statistics["largest_group"] == 3
    # exp of the entropy of (4/5, 1/5) and of (3/5, 1/5, 1/5)
    assert statistics["perplexity"] == [1.65, 2.59]


def test_item_of(ids):
    assert ids.item_of((1, 0, 1)) == "c"
    assert ids.item_of(np.array([0, 2, 0])) == "b"
    with pytest.raises(KeyError):
        ids.item_of((9, 9, 9))


def test_a_table_cannot_hold_items_with_tabs(tmp_path):
    ids = SemanticIDs(["a\tb", "c"], np.array([[0, 0], [1, 0]]))
    with pytest.raises(TigerError, match=r"1 items have a tab, which separates the columns of .*ids.tsv: a\tb; rename them"):
        ids.save(tmp_path / "ids.tsv")
    assert not list(tmp_path.iterdir())


def test_save_and_load_in_a_form_people_can_read(ids, tmp_path):
    ids.save(tmp_path / "ids.tsv")
    assert (tmp_path / "ids.tsv").read_text().splitlines()[:3] == [
        "item\tcode_1\tcode_2\tcollision",
        "a\t1\t0\t0",
        "b\t0\t2\t0",
    ]
    again = SemanticIDs.load(tmp_path / "ids.tsv")
    assert again.items == ids.items
    assert np.array_equal(again.codes, ids.codes)


def test_a_table_with_a_byte_order_mark(ids, tmp_path):
    """Spreadsheets write such files."""
    ids.save(tmp_path / "ids.tsv")
    (tmp_path / "marked.tsv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "ids.tsv").read_bytes())
    assert SemanticIDs.load(tmp_path / "marked.tsv").items == ids.items


def test_item_tokens_with_line_separators_of_unicode_come_back(tmp_path):
    items = ["a\u2028b", "a\x85", "\x0c", "a\rb"]
    SemanticIDs(items, np.array([[0, 0], [1, 0], [1, 1], [2, 0]])).save(tmp_path / "ids.tsv")
    assert SemanticIDs.load(tmp_path / "ids.tsv").items == tuple(items)


def test_is_frozen(ids):
    with pytest.raises(ValueError, match="read-only"):
        ids.codes[0, 0] = 5
    with pytest.raises(AttributeError):
        ids.items = ()


def test_reordered(ids):
    again = ids.reordered(["e", "d", "c", "b", "a"], "here")
    assert again.items == ("e", "d", "c", "b", "a")
    assert all(again.item_of(codes) == ids.item_of(codes) for codes in ids.codes)
