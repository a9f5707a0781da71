"""Locality-sensitive hashing with random hyperplanes, for an ablation (paper section 4.3)."""

import torch

from recbole_tiger.catalogue.quantizers.base import Quantizer
from recbole_tiger.errors import TigerError


class LSH(Quantizer):
    """Each bit of a code is the side of a random hyperplane through the mean of the embeddings.

    Args:
        codebook_size: number of codes per level, a power of two: one hyperplane per bit.
        codebook_depth: number of levels, each with its own hyperplanes.
    """

    REVISION = 3

    def __init__(self, *, codebook_size, codebook_depth):
        super().__init__()
        self.bits = codebook_size.bit_length() - 1
        if codebook_size != 2**self.bits:
            raise TigerError(f"codebook_size {codebook_size} is not a power of two, which quantizer lsh needs; try 256")
        self.codebook_size, self.codebook_depth = codebook_size, codebook_depth

    def fit(self, x, *, seed, show_progress=False):
        """Codes of ``x`` [n_items, dim], an int64 tensor [n_items, codebook_depth]."""
        generator = torch.Generator().manual_seed(seed)
        normals = torch.randn(x.shape[1], self.codebook_depth * self.bits, generator=generator)
        self.learnt = {"mean": x.mean(dim=0), "normals": normals}
        return self.encode(x)

    def encode_part(self, x):
        """Codes of the rows of ``x``."""
        sides = (x - self.learnt["mean"]) @ self.learnt["normals"] > 0
        values = 2 ** torch.arange(self.bits, device=x.device)
        return (sides.view(len(x), self.codebook_depth, self.bits) * values).sum(dim=2)
