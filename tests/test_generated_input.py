"""Inputs that Hypothesis makes, a few of each kind; ``benchmarks/fuzz.py`` makes as many as one likes."""

import pytest

from tests.test_benchmarks import script

KINDS = ["atomic files", "semantic IDs", "embeddings", "histories", "settings", "checkpoints"]


@pytest.fixture(scope="module")
def fuzz():
    return script("fuzz")


@pytest.fixture(scope="module")
def searches(fuzz, tmp_path_factory):
    return fuzz.searches(tmp_path_factory.mktemp("trained"))


def test_every_kind_is_searched(searches):
    assert list(searches) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_generated(fuzz, searches, kind):
    """Right, as an independent reading says, or refused in a sentence; the same inputs every time."""
    counts = fuzz.search(*searches[kind], examples=40, seed=None)
    assert counts["right"] and counts["refused"]


def test_what_ends_otherwise_is_found(fuzz, searches):
    """A check that holds what is right for a fault fails, and shows its smallest example."""
    strategy, check = searches["checkpoints"]

    def never_right(changes):
        if check(changes) == "right":
            raise fuzz.Fault(changes)

    with pytest.raises(fuzz.Fault, match=r"^\[\]"):
        fuzz.search(strategy, never_right, examples=40, seed=None)
