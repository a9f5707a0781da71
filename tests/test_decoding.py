"""Trie, beam search and exact scorer equal enumeration and a reference implementation of the model."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from recbole_tiger.model.decoding import Allowed, beam_search, exact_scores, log_probs_of_levels, unconstrained_beam_search
from recbole_tiger.model.draw import Draw
from recbole_tiger.model.trie import Trie
from tests import reference

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
    return reference.small_network(**request.param)


@pytest.fixture(scope="module")
def users(network):
    return torch.tensor([0, 2, 1]) if network.users is not None else None


@pytest.fixture(scope="module")
def items():
    return torch.tensor([[0] * (6 - len(history)) + history for history in HISTORIES])


@pytest.fixture
def memory(network, items, users):
    return network.encode(items, users)


@pytest.fixture(scope="module")
def reference_log_probs(network, users):
    """Per history, the log-probabilities of every item's codes by the reference implementation, [n_items, levels]."""
    return [
        reference.log_probs(network, history, None if users is None else int(users[row]))
        for row, history in enumerate(HISTORIES)
    ]


def exact(network, items, users):
    return exact_scores(
        network, lambda rows: network.encode(items[rows], None if users is None else users[rows]), len(items)
    )


def test_exact_equals_the_reference(network, items, users, reference_log_probs):
    scores = exact(network, items, users)
    assert torch.isneginf(scores[:, 0]).all()
    expected = torch.stack([table.sum(dim=1) for table in reference_log_probs])
    torch.testing.assert_close(scores[:, 1:], expected, atol=1e-4, rtol=1e-4)


def test_exact_in_small_slices_is_the_same(network, items, users, monkeypatch):
    whole = exact(network, items, users)
    monkeypatch.setattr("recbole_tiger.model.decoding.EXACT_BUDGET", 5)
    monkeypatch.setattr("recbole_tiger.model.decoding.EXACT_CHILDREN", 7)
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
def test_beam_equals_a_beam_by_hand(network, memory, reference_log_probs, beam_size):
    """The beam keeps the best prefixes of each level, with the scores of the reference implementation."""
    found, scores = beam_search(network, memory, beam_size)
    codes = network.codes[1:].tolist()
    for row in range(len(HISTORIES)):
        table = reference_log_probs[row].tolist()
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
    """Items 1 to 4 share no code; 5 to 7 share two, so their third level is decoded after a skipped second one."""
    codes = [[0, 0, 0], [1, 1, 0], [2, 2, 0], [3, 3, 0], [4, 4, 0], [4, 4, 1], [4, 4, 2]]
    network = reference.small_network(codes=codes, trie_softmax=True)
    items = torch.tensor([[0, 2, 5], [1, 6, 7]])
    memory, decoded, step = network.encode(items), [], network.step

    def counting(memory, level, codes, past, rows):
        decoded.append((level, len(rows.users)))
        return step(memory, level, codes, past, rows)

    network.step = counting
    found, scores = beam_search(network, memory, 7)
    assert decoded == [(0, 2), (1, 2), (2, 2)]  # the root, then the one prefix that branches and the level it skipped
    del network.step
    torch.testing.assert_close(scores, exact(network, items, None).gather(1, found), atol=1e-5, rtol=1e-5)
    for row, history in enumerate(([2, 5], [1, 6, 7])):
        expected = reference.log_probs(network, history, None).sum(dim=1)
        torch.testing.assert_close(scores[row], expected[found[row] - 1], atol=1e-4, rtol=1e-4)


def test_a_prefix_without_allowed_items_costs_no_row_of_the_decoder():
    """Each level has one prefix that leads to allowed items."""
    codes = [[a, b, c] for a in range(3) for b in range(2) for c in range(2)]
    network = reference.small_network(codes=codes, trie_softmax=True)
    memory, rows, step = network.encode(torch.tensor([[0, 2, 5]])), [], network.step
    among = torch.zeros(13, dtype=torch.bool)
    among[[7, 8]] = True

    def counting(memory, level, codes, past, part):
        rows.append((level, len(part.users)))
        return step(memory, level, codes, past, part)

    network.step = counting
    found, scores = beam_search(network, memory, 2, Allowed.of(network.trie, among))
    del network.step
    assert rows == [(0, 1), (1, 1), (2, 1)]
    assert sorted(found[0].tolist()) == [7, 8]
    torch.testing.assert_close(scores, exact(network, memory.items, None).gather(1, found), atol=1e-5, rtol=1e-5)


def drawn_codes(seed):
    """Distinct codes of a trie in which some levels are constant and some nodes have one child."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, generator.choice([1, 2, 4], 3), (12, 3)) * generator.integers(0, 2, (12, 3))
    return np.unique(codes, axis=0).tolist()


@pytest.mark.parametrize(
    "codes",
    [
        [[0, b, c] for b in range(3) for c in range(2)],
        [[0, 0, c] for c in range(4)] + [[1, b, c] for b in range(3) for c in range(2)],
        *map(drawn_codes, range(20)),
    ],
    ids=["a constant code", "a skipped level", *map(str, range(20))],
)
def test_a_skipped_level_is_decoded_where_every_prefix_branches_below(codes):
    network = reference.small_network(codes=codes, trie_softmax=True)
    items = torch.tensor([[0, 1, 2], [2, 1, 1]])
    expected = exact(network, items, None)
    for beam_size in range(1, len(codes) + 1):
        found, scores = beam_search(network, network.encode(items), beam_size)
        torch.testing.assert_close(scores, expected.gather(1, found), atol=1e-4, rtol=1e-4)
    assert (found.sort(dim=1).values == torch.arange(1, len(codes) + 1)).all()


def test_every_beam_is_full_of_distinct_items(network, memory):
    for beam_size in range(1, len(network.codes)):
        found, scores = beam_search(network, memory, beam_size)
        assert found.shape == (3, beam_size)
        assert torch.isfinite(scores).all()
        assert found.min() >= 1
        assert all(len(set(row)) == beam_size for row in found.tolist())
        assert (scores.diff(dim=1) <= 0).all()


SETS = {"one": [7], "few": [1, 5, 9, 30], "half": range(2, 31, 2), "all": range(1, 31)}


@pytest.mark.parametrize("among", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize(
    "left_out",
    [None, [[5, 9, 1], [0, 0, 30], [2, 4, 6]]],
    ids=["", "less some"],
)
def test_a_beam_among_some_items_ranks_as_the_exact_scorer(network, items, users, memory, among, left_out):
    """This holds for any number of items, at any rank."""
    expected = exact(network, items, users)
    chosen = torch.zeros(31, dtype=torch.bool)
    chosen[list(among)] = True
    each = [set(among) - set(left_out[row] if left_out else []) for row in range(3)]
    allowed = Allowed.of(network.trie, chosen, None if left_out is None else torch.tensor(left_out))
    found, scores = beam_search(network, memory, 30, allowed)
    narrow, narrow_scores = beam_search(network, memory, 3, allowed)
    for row in range(3):
        best = sorted(each[row], key=lambda item: -expected[row, item])
        finite = torch.isfinite(scores[row])
        assert found[row][finite].tolist() == best
        torch.testing.assert_close(scores[row][finite], expected[row, best], atol=1e-4, rtol=1e-4)
        filled = narrow[row][torch.isfinite(narrow_scores[row])].tolist()
        assert len(set(filled)) == len(filled) == min(3, len(best))
        assert set(filled) <= each[row]


def test_left_out_items_in_small_parts(network, memory, monkeypatch):
    allowed = Allowed.of(network.trie, left_out=torch.tensor([[5, 9, 1], [0, 0, 30], [2, 4, 6]]))
    whole = beam_search(network, memory, 8, allowed)
    monkeypatch.setattr("recbole_tiger.model.decoding.LEFT_OUT_TABLE", 1)
    for part, expected in zip(beam_search(network, memory, 8, allowed), whole, strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("among", [[2], [1, 2]])
@pytest.mark.parametrize("trie_softmax", [False, True])
def test_a_beam_of_more_places_than_the_allowed_nodes_have_children(trie_softmax, among):
    """The other places of the beam hold nodes that are not allowed, some of them twice, and miss those with children."""
    codes = torch.tensor([[0, 0, 0], [1, 0, 0], *([1, 1, i] for i in range(10))])
    network = reference.small_network(codes=codes, trie_softmax=trie_softmax)
    chosen = torch.zeros(13, dtype=torch.bool)
    chosen[among] = True
    items = torch.tensor([[1, 2, 3]])
    found, scores = beam_search(network, network.encode(items), 12, Allowed.of(network.trie, chosen))
    assert found[torch.isfinite(scores)].sort().values.tolist() == among


def tempered(network, history, user, temperature, among):
    """Probabilities of items at a temperature, by the reference implementation; choices lead to an item of ``among``."""
    codes, found = network.codes.tolist(), {}
    table = dict(zip(range(1, 31), reference.log_probs(network, history, user).tolist(), strict=True))
    for item in among:
        probability = 1.0
        for level in range(network.levels):
            beside = {codes[i][level]: table[i][level] for i in among if codes[i][:level] == codes[item][:level]}
            weights = {code: math.exp(log_prob / temperature) for code, log_prob in beside.items()}
            probability *= weights[codes[item][level]] / sum(weights.values())
        found[item] = probability
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_items_follow_the_distribution(temperature):
    """Chi-square test of 20,000 drawn pairs of distinct items, in the order drawn."""
    network, history = reference.small_network(trie_softmax=True), [3, 1, 4]
    among = [2, 3, 5, 8, 13, 21]
    chosen = torch.zeros(31, dtype=torch.bool)
    chosen[among] = True
    probabilities = tempered(network, history, None, temperature, among)
    assert sum(probabilities.values()) == pytest.approx(1)
    expected = {(i, j): probabilities[i] * probabilities[j] / (1 - probabilities[i]) for i in among for j in among if i != j}
    memory, counts, n = network.encode(torch.tensor([history] * 500)), Counter(), 20000
    for seed in range(n // 500):
        # Rows with the same history have the same key, so give each row its own key.
        draw = Draw(temperature, torch.arange(500) * 7919 + seed * 104729)
        found, scores = beam_search(network, memory, 2, Allowed.of(network.trie, chosen), draw)
        counts.update(map(tuple, found.tolist()))
    assert set(counts) <= set(expected)
    assert chisquare([counts[pair] for pair in expected], [n * p for p in expected.values()]).pvalue > 0.001
    table = exact(network, torch.tensor([history]), None)[0]
    torch.testing.assert_close(scores, table[found], atol=1e-4, rtol=1e-4)  # scores do not depend on the temperature


def test_a_draw_as_wide_as_the_catalogue_holds_every_item(network, memory, items):
    draw = Draw.of(1.0, 5, items)
    found, scores = beam_search(network, memory, 30, None, draw)
    assert [set(row) for row in found.tolist()] == [set(range(1, 31))] * 3
    assert torch.isfinite(scores).all()
    narrow, _ = beam_search(network, memory, 4, None, draw)
    assert torch.equal(narrow, found[:, :4])  # the best leaves lie below the best nodes of each level
    other, _ = beam_search(network, memory, 30, None, Draw.of(1.0, 6, items))
    assert not torch.equal(other, found)


def test_noise_is_of_the_gumbel_distribution():
    draw = Draw.of(1.0, 3, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    noise = draw.gumbel(1, torch.arange(50000).expand(2, -1))
    for row in noise:
        assert kstest(row.numpy(), "gumbel_r").pvalue > 0.001
    assert abs(np.corrcoef(noise.numpy())[0, 1]) < 0.02
    assert torch.equal(noise[1:], Draw.of(1.0, 3, torch.tensor([[0, 0, 3, 4, 5]])).gumbel(1, torch.arange(50000)[None]))


def test_given_items_score_as_in_the_exact_scorer(network, items, users, memory):
    wanted = torch.tensor([[1, 2, 3, 30], [4, 4, 5, 6], [7, 8, 9, 10]])
    expected = exact(network, items, users).gather(1, wanted)
    torch.testing.assert_close(log_probs_of_levels(network, memory, wanted).sum(dim=-1), expected, atol=1e-4, rtol=1e-4)


def test_probabilities_of_all_items(network, items, users):
    """They sum to one with a softmax over the trie, and to less over all codes, because of IDs without an item."""
    total = exact(network, items, users).exp().sum(dim=1)
    if network.softmax.over_children:
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


def test_a_beam_over_all_codes_knows_which_have_no_item():
    network = reference.small_network(n_items=30)
    items = torch.tensor([[0, 3, 1, 4], [5, 9, 2, 6]])
    memory = network.encode(items)
    n_ids = network.widths[0] * network.widths[1] * network.widths[2]
    found, scores = unconstrained_beam_search(network, memory, n_ids)
    assert scores.shape == (2, n_ids)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2))
    exact = exact_scores(network, lambda rows: network.encode(items[rows]), 2)
    for row in range(2):
        assert sorted(found[row][found[row] > 0].tolist()) == list(range(1, 31))
        valid = found[row] > 0
        torch.testing.assert_close(scores[row][valid], exact[row][found[row][valid]])
    assert (scores.diff(dim=1) <= 0).all()
    narrow, best = unconstrained_beam_search(network, memory, 7)
    assert narrow.shape == (2, 7)
    assert (best[:, 0] <= scores[:, 0] + 1e-5).all()
