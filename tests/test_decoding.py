"""Trie, beam and exact scorer, against enumeration and a plain reading of the model."""

import numpy as np
import pytest
import torch

from recbole_tiger.model.decoding import beam_search, exact_scores, log_likelihood
from recbole_tiger.trie import Trie
from tests import plain

HISTORIES = [[3, 1, 4], [5, 9, 2, 6, 5, 3], [7]]


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"encoder_tokens": "item", "text": True},
        {"bidirectional_encoder": True, "n_user_tokens": 3},
        {"trie_softmax": True},
        {"trie_softmax": True, "prefix_embedding": True, "encoder_tokens": "item"},
        {"trie_softmax": True, "history_bias": True},
    ],
    ids=["causal", "text", "bidirectional", "trie softmax", "prefixes", "history"],
)
def network(request):
    return plain.small_network(**request.param)


@pytest.fixture(scope="module")
def users(network):
    return torch.tensor([0, 2, 1]) if network.user_embedding is not None else None


@pytest.fixture(scope="module")
def items():
    return torch.tensor([[0] * (6 - len(history)) + history for history in HISTORIES])


@pytest.fixture
def memory(network, items, users):
    return network.encode(items, users)


@pytest.fixture(scope="module")
def plain_log_probs(network, users):
    """Per history, the log-probabilities of every item's codes by the plain reading, [n_items, levels]."""
    return [
        plain.log_probs(network, history, None if users is None else int(users[row]))
        for row, history in enumerate(HISTORIES)
    ]


def exact(network, items, users):
    return exact_scores(
        network, lambda rows: network.encode(items[rows], None if users is None else users[rows]), len(items)
    )


def test_exact_equals_plain_reading(network, items, users, plain_log_probs):
    scores = exact(network, items, users)
    assert torch.isneginf(scores[:, 0]).all()
    expected = torch.stack([table.sum(dim=1) for table in plain_log_probs])
    torch.testing.assert_close(scores[:, 1:], expected, atol=1e-4, rtol=1e-4)


def test_exact_in_small_slices_is_the_same(network, items, users, monkeypatch):
    whole = exact(network, items, users)
    monkeypatch.setattr("recbole_tiger.model.decoding.EXACT_BUDGET", 5)
    torch.testing.assert_close(exact(network, items, users), whole, atol=1e-5, rtol=1e-5)


def test_beam_as_wide_as_the_catalogue_ranks_as_the_exact_scorer(network, items, users, memory):
    n_items = len(network.codes) - 1
    found, scores = beam_search(network, memory, n_items)
    expected = exact(network, items, users)
    order = expected.argsort(dim=1, descending=True, stable=True)[:, :n_items]
    torch.testing.assert_close(scores, expected.gather(1, order), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(expected.gather(1, found), scores, atol=1e-4, rtol=1e-4)
    assert [set(row) for row in found.tolist()] == [set(range(1, n_items + 1))] * len(HISTORIES)


@pytest.mark.parametrize("beam_size", [1, 3, 8, 20])
def test_beam_equals_a_beam_by_hand(network, memory, plain_log_probs, beam_size):
    """The beam keeps the best prefixes level by level, where a prefix's score comes from the plain reading."""
    found, scores = beam_search(network, memory, beam_size)
    codes = network.codes[1:].tolist()
    for row in range(len(HISTORIES)):
        table = plain_log_probs[row].tolist()
        alive = {()}
        for level in range(network.levels):
            candidates = {
                tuple(codes[i][: level + 1]): sum(table[i][: level + 1])
                for i in range(len(codes))
                if tuple(codes[i][:level]) in alive
            }
            alive = set(sorted(candidates, key=candidates.get, reverse=True)[:beam_size])
        best = sorted(alive, key=candidates.get, reverse=True)
        assert [tuple(codes[item - 1]) for item in found[row].tolist()] == best
        np.testing.assert_allclose(scores[row].tolist(), [candidates[prefix] for prefix in best], atol=1e-4)


def test_a_prefix_with_one_child_costs_no_row_of_the_decoder():
    """Items 1 to 4 share no code; 5 to 7 share two, so that their third level is decoded behind an undecoded second."""
    codes = [[0, 0, 0], [1, 1, 0], [2, 2, 0], [3, 3, 0], [4, 4, 0], [4, 4, 1], [4, 4, 2]]
    network = plain.small_network(codes=codes, trie_softmax=True)
    items = torch.tensor([[0, 2, 5], [1, 6, 7]])
    memory, decoded, step = network.encode(items), [], network.step

    def counting(memory, level, codes, past, rows):
        decoded.append((level, len(rows.users)))
        return step(memory, level, codes, past, rows)

    network.step = counting
    found, scores = beam_search(network, memory, 7)
    assert decoded == [(0, 2), (1, 2), (2, 2)]  # the root, then the one prefix that branches and what it passed over
    del network.step
    torch.testing.assert_close(scores, exact(network, items, None).gather(1, found), atol=1e-5, rtol=1e-5)
    for row, history in enumerate(([2, 5], [1, 6, 7])):
        expected = plain.log_probs(network, history, None).sum(dim=1)
        torch.testing.assert_close(scores[row], expected[found[row] - 1], atol=1e-4, rtol=1e-4)


def test_every_beam_is_full_of_distinct_items(network, memory):
    for beam_size in range(1, len(network.codes)):
        found, scores = beam_search(network, memory, beam_size)
        assert found.shape == (3, beam_size)
        assert torch.isfinite(scores).all()
        assert found.min() >= 1
        assert all(len(set(row)) == beam_size for row in found.tolist())
        assert (scores.diff(dim=1) <= 0).all()


def test_given_items_score_as_in_the_exact_scorer(network, items, users, memory):
    wanted = torch.tensor([[1, 2, 3, 30], [4, 4, 5, 6], [7, 8, 9, 10]])
    expected = exact(network, items, users).gather(1, wanted)
    torch.testing.assert_close(log_likelihood(network, memory, wanted), expected, atol=1e-4, rtol=1e-4)


def test_probabilities_of_all_items(network, items, users):
    """They sum to one with a softmax over the trie; with one over all codes, items share what impossible IDs leave."""
    total = exact(network, items, users).exp().sum(dim=1)
    if network.trie_softmax:
        torch.testing.assert_close(total, torch.ones(3))
    else:
        assert (total < 0.9).all()


def random_codes(n_items, levels, size, seed):
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, size, (n_items * 2, levels)), axis=0)
    return torch.from_numpy(np.vstack([np.zeros((1, levels), int), rng.permutation(codes)[:n_items]]))


@pytest.mark.parametrize(("n_items", "levels", "size"), [(1, 2, 3), (5, 1, 9), (200, 3, 7), (500, 4, 5)])
def test_trie_holds_exactly_the_catalogue(n_items, levels, size):
    codes = random_codes(n_items, levels, size, seed=1)
    trie = Trie(codes)
    paths = {(): 0}
    for level in range(levels):
        following = {}
        for prefix, node in paths.items():
            child, code, exists = trie.expand(torch.tensor(node), level)
            for c, k, e in zip(child.tolist(), code.tolist(), exists.tolist(), strict=True):
                if e:
                    following[(*prefix, k)] = c
        paths = following
        assert set(paths) == {tuple(row[: level + 1]) for row in codes[1:].tolist()}
        assert trie.n_nodes(level) == len(paths)
        parents, node_codes = trie.all_nodes(level)
        assert len(parents) == len(node_codes) == len(paths)
    for item, row in enumerate(codes.tolist()):
        below = [paths[tuple(row)] if item else 0]
        for level in reversed(range(1, levels)):
            below.insert(0, trie.all_nodes(level)[0][below[0]].item() if item else 0)
        assert trie.paths()[item].tolist() == below
    for path, leaf in paths.items():
        assert tuple(codes[trie.item_of[leaf]].tolist()) == path


def test_trie_is_small():
    codes = random_codes(20000, 4, 40, seed=2)
    assert Trie(codes).bytes() < 100 * 20000
