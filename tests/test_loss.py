"""The training loss equals the mean over all targets of a reference implementation."""

import pytest
import torch

from recbole_tiger.training.dataset import target_positions
from tests import reference
from tests.test_recbole import built

VARIANTS = {
    "paper": {"bidirectional_encoder": True},
    "causal": {},
    "trie softmax": {"trie_softmax": True},
    "prefixes": {"trie_softmax": True, "prefix_embedding": True, "encoder_tokens": "item"},
    "history": {"trie_softmax": True, "prefix_embedding": True, "encoder_tokens": "item", "history_bias": True},
}


def reference_loss(network, history, target, smoothing):
    """Mean over the levels of the target's negative log-probability, smoothed over the choices of the softmax.

    The history bias is left out of it; with a history bias, the loss with the bias and without smoothing is added.
    """
    states = reference.level_states(network, history, target)
    codes = network.codes[target].tolist()
    losses = []
    for level, state in enumerate(states):
        log_probs = reference.choices(network, state, codes[:level], [])
        spread = sum(log_probs.values()) / len(log_probs)
        loss = -(1 - smoothing) * log_probs[codes[level]] - smoothing * spread
        if network.softmax.history_bias is not None:
            loss -= reference.choices(network, state, codes[:level], history)[codes[level]]
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_loss_by_hand(settings, variant, smoothing):
    _, _, model, _ = built(settings)
    model.network, model.label_smoothing = reference.small_network(**variant), smoothing
    sequences, n_targets = [[3, 1, 4, 11], [5, 9, 2, 6, 5, 3]], [3, 2]
    if model.network.bidirectional:
        n_targets = [1, 1]
    expected = [
        reference_loss(model.network, sequence[:end], sequence[end], smoothing)
        for sequence, n in zip(sequences, n_targets, strict=True)
        for end in range(len(sequence) - n, len(sequence))
    ]
    items = torch.tensor([[0] * (6 - len(sequence)) + sequence for sequence in sequences])
    loss = model.window_loss(items, *target_positions(torch.tensor(n_targets)))
    assert loss.item() == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    loss.backward()
    gradients = [parameter.grad for parameter in model.network.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_history_bias_learns_and_the_rest_does_not_notice(settings):
    """The other gradients equal those of the network without the bias; those of the bias are not zero."""
    _, _, model, _ = built(settings)
    items = torch.tensor([[5, 9, 2, 6, 5, 3], [3, 1, 3, 2, 8, 1]])
    gradients = {}
    for with_bias in (False, True):
        model.network = reference.small_network(trie_softmax=True, prefix_embedding=True, history_bias=True)
        if not with_bias:
            model.network.softmax.history_bias = None
        model.window_loss(items, 5).backward()
        gradients[with_bias] = {name: parameter.grad for name, parameter in model.network.named_parameters()}
    bias = {name: gradient for name, gradient in gradients[True].items() if name.startswith("softmax.history_bias")}
    assert set(gradients[True]) == set(gradients[False]) | set(bias)
    for name, gradient in gradients[False].items():
        if gradient is None:
            assert gradients[True][name] is None
        else:
            torch.testing.assert_close(gradients[True][name], gradient)
    assert all(gradient.abs().max() > 1e-4 for gradient in bias.values())
