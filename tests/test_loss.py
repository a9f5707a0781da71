"""The training loss against the sum of what a plain reading of the model says of every target."""

import pytest
import torch

from tests import plain
from tests.test_recbole import built

VARIANTS = {
    "paper": {"bidirectional_encoder": True},
    "causal": {},
    "trie softmax": {"trie_softmax": True},
    "prefixes": {"trie_softmax": True, "prefix_embedding": True, "encoder_tokens": "item"},
    "history": {"trie_softmax": True, "prefix_embedding": True, "encoder_tokens": "item", "history_bias": True},
}


def plain_loss(network, history, target, smoothing):
    """Mean over the levels of the target's negative log-probability, smoothed over what the softmax is over."""
    states = plain.level_states(network, history, target)
    codes = network.codes[target].tolist()
    losses = []
    for level, state in enumerate(states):
        log_probs = plain.choices(network, state, codes[:level], history)
        spread = sum(log_probs.values()) / len(log_probs)
        losses.append(-(1 - smoothing) * log_probs[codes[level]] - smoothing * spread)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_loss_by_hand(settings, variant, smoothing):
    _, _, model, _ = built(settings)
    model.network, model.label_smoothing = plain.small_network(**variant), smoothing
    sequences, n_targets = [[3, 1, 4, 11], [5, 9, 2, 6, 5, 3]], [3, 2]
    if model.network.bidirectional:
        n_targets = [1, 1]
    expected = [
        plain_loss(model.network, sequence[:end], sequence[end], smoothing)
        for sequence, n in zip(sequences, n_targets, strict=True)
        for end in range(len(sequence) - n, len(sequence))
    ]
    items = torch.tensor([[0] * (6 - len(sequence)) + sequence for sequence in sequences])
    loss = model.window_loss(items, torch.tensor(n_targets))
    assert loss.item() == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    loss.backward()
    gradients = [parameter.grad for parameter in model.network.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
