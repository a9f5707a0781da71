"""Random codes without semantics, for an ablation."""

import torch

from recbole_tiger.catalogue.quantizers.base import Arbitrary


class RandomCodes(Arbitrary):
    """Codes drawn uniformly, independent of the embeddings.

    Args:
        codebook_size, codebook_depth: number of codes per level, number of levels.
    """

    REVISION = 3

    def __init__(self, *, codebook_size, codebook_depth):
        super().__init__()
        self.codebook_size, self.codebook_depth = codebook_size, codebook_depth

    def fit(self, x, *, seed, show_progress=False):
        """Codes of ``x`` [n_items, dim], an int64 tensor [n_items, codebook_depth]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.codebook_size, (len(x), self.codebook_depth), generator=generator).to(x.device)
