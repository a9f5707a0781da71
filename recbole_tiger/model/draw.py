"""Gumbel noise for drawing items instead of taking the best."""

from typing import NamedTuple

import torch


class Draw(NamedTuple):
    """Noise with which items are drawn: a function of the seed, the history, and the node of the trie or the item.

    So the noise depends neither on the other rows of a batch nor on the device.

    Attributes:
        temperature: divisor of the log-probabilities, above 0.
        key: int64 tensor [batch], a hash of the seed and the history.
    """

    temperature: float
    key: torch.Tensor

    @classmethod
    def of(cls, temperature, seed, histories):
        """The noise of an integer ``seed`` and of histories [batch, n], padded with zeros on the left."""
        key = torch.full_like(histories[:, 0], _mix_bits(torch.tensor(_signed(seed))).item())
        for items in histories.T:
            key = torch.where(items > 0, _mix_bits(key ^ items), key)
        return cls(temperature, key)

    def part(self, rows):
        """The noise of a subset of the histories."""
        return self._replace(key=self.key[rows])

    def gumbel(self, level, child):
        """Standard Gumbel noise for each node ``child`` [batch, ...] of a level, a float64 tensor of the same shape."""
        key = _mix_bits(self.key + level + 1).view(-1, *[1] * (child.dim() - 1))
        bits = (_mix_bits(key ^ child) >> 11) & (2**53 - 1)
        uniform = (bits.double() + 0.5) / 2**53
        return -(-uniform.log()).log()


def _signed(number):
    """An integer wrapped to the range of int64."""
    return (number + 2**63) % 2**64 - 2**63


def _mix_bits(x):
    """An int64 tensor whose bits all depend on all bits of ``x`` (SplitMix64's finalizer)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & (2**33 - 1))
