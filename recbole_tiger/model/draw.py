"""Noise by which items are drawn instead of the best being taken."""

from typing import NamedTuple

import torch


class Draw(NamedTuple):
    """Noise by which a beam draws items instead of taking the best: the same for a seed, a history and a node of the trie.

    So a list depends neither on the other rows of a batch nor on the device.

    Attributes:
        temperature: by which log-probabilities are divided, above 0.
        key: int64 tensor [batch], of the seed and the history.
    """

    temperature: float
    key: torch.Tensor

    @classmethod
    def of(cls, temperature, seed, histories):
        """That of a whole number ``seed`` and of histories [batch, n], padded with zeros on the left."""
        key = torch.full_like(histories[:, 0], _mixed(torch.tensor(_signed(seed))).item())
        for items in histories.T:
            key = torch.where(items > 0, _mixed(key ^ items), key)
        return cls(temperature, key)

    def part(self, rows):
        """The same for some of the histories."""
        return self._replace(key=self.key[rows])

    def gumbel(self, level, child):
        """A draw from the standard Gumbel distribution for each node ``child`` [batch, ...] of a level, in float64."""
        key = _mixed(self.key + level + 1).view(-1, *[1] * (child.dim() - 1))
        bits = (_mixed(key ^ child) >> 11) & (2**53 - 1)
        uniform = (bits.double() + 0.5) / 2**53
        return -(-uniform.log()).log()


def _signed(number):
    """A whole number as int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63


def _mixed(x):
    """An int64 tensor whose bits all depend on all bits of ``x`` (SplitMix64's finalizer)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & (2**33 - 1))
