"""The network equals a reference implementation; dropout and initialisation."""

import pytest
import torch

from recbole_tiger.model.decoding import Prefixes
from recbole_tiger.model.layers import Attention, DecoderLayer, Dropout, EncoderLayer, FeedForward
from recbole_tiger.model.seq2seq import PREFIX_SCALE, TEXT_SCALE
from recbole_tiger.model.softmax import PREFIX_GAIN
from tests.reference import level_states, small_network

VARIANTS = {
    "paper": {"bidirectional_encoder": True},
    "causal": {},
    "item tokens": {"encoder_tokens": "item"},
    "text on codes": {"text": True},
    "text on items": {"text": True, "encoder_tokens": "item", "bidirectional_encoder": True},
    "user token": {"n_user_tokens": 5},
    "user token, bidirectional": {"n_user_tokens": 5, "bidirectional_encoder": True},
    "prefixes": {"trie_softmax": True, "prefix_embedding": True},
    "prefixes of items": {"trie_softmax": True, "prefix_embedding": True, "encoder_tokens": "item"},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def network(request):
    return small_network(**request.param)


def users_of(network, n):
    return torch.arange(n) % 5 if network.users is not None else None


def test_last_target_equals_the_reference(network):
    """The batch has histories of different lengths, so padding must have no effect."""
    histories = [[3, 1, 4], [5, 9, 2, 6, 5, 3], [7]]
    targets = [8, 1, 2]
    items = torch.tensor([[0] * (6 - len(history)) + history for history in histories])
    users = users_of(network, 3)
    states = network.decode(network.encode(items, users), network.codes[torch.tensor(targets)].unsqueeze(1))
    for row, (history, target) in enumerate(zip(histories, targets, strict=True)):
        user = None if users is None else int(users[row])
        for level, expected in enumerate(level_states(network, history, target, user)):
            torch.testing.assert_close(states[row, 0, level], expected, atol=1e-4, rtol=1e-4)


def test_all_prefixes_at_once_equal_each_prefix_alone(network):
    if network.bidirectional:
        pytest.skip("a bidirectional encoder reads one prefix per row")
    sequences = torch.tensor([[3, 1, 4, 11, 5, 9, 2], [0, 0, 0, 8, 7, 6, 5]])
    users = users_of(network, 2)
    states = network.decode(network.encode(sequences[:, :-1], users), network.codes[sequences[:, 1:]])
    for row, sequence in enumerate(sequences.tolist()):
        items = [item for item in sequence if item]
        user = None if users is None else int(users[row])
        for place in range(1, len(items)):
            column = len(sequence) - len(items) + place - 1
            for level, expected in enumerate(level_states(network, items[:place], items[place], user)):
                torch.testing.assert_close(states[row, column, level], expected, atol=1e-4, rtol=1e-4)


def test_steps_equal_teacher_forcing(network):
    items = torch.tensor([[0, 3, 1, 4], [5, 9, 2, 6]])
    memory = network.encode(items, users_of(network, 2))
    targets = network.codes[torch.tensor([[10, 11, 12], [13, 14, 15]])]
    expected = network.decode(memory, targets, shared=True)
    prefixes = Prefixes(network, memory)
    for level in range(network.levels):
        _, states = prefixes.decode(level, None)
        states = states.view(2, -1, states.shape[-1])
        torch.testing.assert_close(states.expand(-1, 3, -1), expected[:, :, level], atol=1e-4, rtol=1e-4)
        parents = torch.arange(3) if level else torch.zeros(3, dtype=torch.long)
        prefixes.extend(parents.expand(2, -1), targets[..., level])


def test_levels_that_are_decoded_late_equal_teacher_forcing(network):
    """A level is skipped for some prefixes, and decoded later when a level below it needs it."""
    items = torch.tensor([[0, 3, 1, 4], [5, 9, 2, 6]])
    memory = network.encode(items, users_of(network, 2))
    targets = network.codes[torch.tensor([[10, 11, 12], [13, 14, 15]])]
    expected = network.decode(memory, targets, shared=True)
    wanted = [
        torch.tensor([[True], [False]]),
        torch.tensor([[True, False, False], [False, False, False]]),
        torch.tensor([[True, True, False], [False, True, True]]),
    ]
    prefixes = Prefixes(network, memory)
    for level in range(network.levels):
        rows, states = prefixes.decode(level, wanted[level])
        chosen = expected[:, :, level][wanted[level].expand(2, 3)]
        if level == 0:
            chosen = expected[:1, 0, 0]
        torch.testing.assert_close(states, chosen, atol=1e-4, rtol=1e-4)
        assert rows.users.tolist() == wanted[level].nonzero()[:, 0].tolist()
        parents = torch.arange(3) if level else torch.zeros(3, dtype=torch.long)
        prefixes.extend(parents.expand(2, -1), targets[..., level])


def test_result_does_not_depend_on_where_a_history_stands(network):
    history = torch.tensor([[3, 1, 4]])
    padded = torch.tensor([[0, 0, 0, 3, 1, 4]])
    target = network.codes[torch.tensor([[8]])]
    users = users_of(network, 1)
    here = network.decode(network.encode(history, users), target)
    there = network.decode(network.encode(padded, users), target)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_its_share_and_its_mean(p):
    torch.manual_seed(0)
    dropout = Dropout(p).train()
    x = torch.ones(1001, 3, 999)
    y = dropout(x)
    assert torch.equal(y, y[:, :1].expand_as(y))  # one mask a sequence
    y = y[:, 0]
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    share = (y == 0).float().mean().item()
    # Five standard deviations of a binomial share.
    assert abs(share - p) < 5 * (p * (1 - p) / y.numel()) ** 0.5
    neighbours = ((y[:, :-1] == 0) & (y[:, 1:] == 0)).float().mean().item()
    assert abs(neighbours - p * p) < 0.005
    assert not torch.equal(dropout(x)[:, 0], y)
    assert dropout.eval()(x) is x


def test_dropout_passes_the_gradient_of_what_it_keeps():
    x = torch.ones(8, 8, 64, requires_grad=True)
    y = Dropout(0.3).train()(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_codes_are_hidden_from_the_encoder_in_training_only():
    network = small_network(code_dropout_prob=0.5)
    items = torch.tensor([[1, 2, 3, 4, 5]])
    target = network.codes[torch.tensor([[8]])]

    def states():
        return network.decode(network.encode(items), target)

    assert torch.equal(states(), states())
    network.train()
    assert not torch.equal(states(), states())


def test_whole_codes_are_hidden_at_their_share():
    network, seen = small_network(code_dropout_prob=0.2).train(), []
    network.encoder[0].register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        network.code_embedding.weight.fill_(1)
        network.encode(torch.randint(1, 31, (2000, 5)))
    hidden = seen[0] == 0
    assert torch.equal(hidden.all(dim=-1), hidden.any(dim=-1))
    assert hidden.float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_initial_weights_and_shares_of_dropout():
    """Outputs are divided by the root of the number of branches that add to the residual stream."""
    sizes = {"hidden_size": 64, "n_heads": 4, "head_size": 16, "inner_size": 128}
    shares = {"hidden_dropout_prob": 0.4, "attn_dropout_prob": 0.2}
    network = small_network(trie_softmax=True, prefix_embedding=True, **sizes, **shares)
    for module, deviation in (
        (network.code_embedding, 0.3),
        (network.encoder[0].attention.output, 0.3 / 4**0.5),  # two layers of two branches
        (network.decoder[1].feed_forward.output, 0.3 / 6**0.5),  # two layers of three branches
        (network.softmax.prefixes.table, 0.3 * PREFIX_SCALE / PREFIX_GAIN),
    ):
        assert module.weight.std().item() == pytest.approx(deviation, rel=0.06)
    layers = (EncoderLayer, DecoderLayer, FeedForward)
    assert {module.dropout.p for module in network.modules() if isinstance(module, Attention)} == {0.2}
    assert {module.dropout.p for module in network.modules() if isinstance(module, layers)} == {0.4}


def reference_directions(text, prefixes, labels):
    """Per label the mean of the items' text minus the mean text of the items with the same prefix, in plain loops."""

    def mean(rows):
        return sum(text[row] for row in rows) / len(rows)

    def together(keys, key):
        return [row for row, other in enumerate(keys) if other == key]

    rest = [text[row] - mean(together(prefixes, prefixes[row])) for row in range(len(text))]
    return {label: sum(rest[row] for row in together(labels, label)) / labels.count(label) for label in set(labels)}


def test_codes_and_prefixes_start_from_the_text_of_their_items():
    """The added weights are the directions times one random matrix, scaled to a fixed standard deviation."""
    network = small_network(n_items=30, trie_softmax=True, prefix_embedding=True)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    text = torch.randn(31, 5, generator=torch.Generator().manual_seed(3))
    text[1:] -= text[1:].mean(dim=0)
    torch.manual_seed(4)
    network.start_from_text(text)
    torch.manual_seed(4)
    projection = torch.randn(5, 12)
    added = {name: parameter - before[name] for name, parameter in network.named_parameters()}

    codes = network.codes[1:].tolist()
    for level in range(network.levels):
        prefixes = [tuple(row[:level]) for row in codes]
        rests = reference_directions(text[1:], prefixes, [row[level] for row in codes])
        rows = torch.zeros(network.widths[level], 5)
        for code, rest in rests.items():
            rows[code] = rest
        expected = rows @ projection
        expected = expected / expected.std()
        begin = int(network.offsets[level])
        of_codes = added["code_embedding.weight"][begin : begin + len(rows)]
        torch.testing.assert_close(of_codes, TEXT_SCALE * expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(added[f"softmax.classifiers.{level}.weight"], 0.3 * expected, atol=1e-5, rtol=1e-4)

        if level:
            paths = [tuple(row[: level + 1]) for row in codes]
            rests = reference_directions(text[1:], prefixes, paths)
            expected = torch.stack([rests[path] for path in sorted(rests)]) @ projection
            of_prefixes = PREFIX_GAIN * added["softmax.prefixes.table.weight"][network.softmax.prefixes.rows(level)]
            torch.testing.assert_close(of_prefixes, 0.3 * expected / expected.std(), atol=1e-5, rtol=1e-4)
    changed = ("code_embedding", "softmax.classifiers", "softmax.prefixes")
    unchanged = [name for name in added if not name.startswith(changed)]
    assert all(not added[name].any() for name in unchanged)
    assert not any(added[f"softmax.classifiers.{level}.bias"].any() for level in range(network.levels))
