"""Residual k-means: each level clusters the residuals of the levels before."""

import torch
from tqdm import tqdm

from recbole_tiger.catalogue.quantizers.base import Quantizer
from recbole_tiger.catalogue.quantizers.kmeans import assign, kmeans


def residual_codes(x, codebooks):
    """Codes and final residuals of residual quantization.

    Args:
        x: float tensor [n, dim], which is overwritten. codebooks: float tensors [codebook_size, dim].

    Returns:
        list of int64 tensors [n], one per codebook; float tensor [n, dim].
    """
    codes = []
    for codebook in codebooks:
        codes.append(assign(x, codebook)[0])
        x -= codebook[codes[-1]]
    return codes, x


class RQKMeans(Quantizer):
    """Residual quantization by k-means, level by level.

    Args:
        codebook_size, codebook_depth: number of codes per level, number of levels.
        kmeans_iterations: maximal number of Lloyd steps per level.
        kmeans_sample: number of random rows that a level is fitted on if the catalogue is larger.
    """

    REVISION = 3

    def __init__(self, *, codebook_size, codebook_depth, kmeans_iterations, kmeans_sample):
        super().__init__()
        self.codebook_size, self.codebook_depth = codebook_size, codebook_depth
        self.iterations, self.sample = kmeans_iterations, kmeans_sample

    def fit(self, x, *, seed, show_progress=False):
        """Codes of ``x`` [n_items, dim], an int64 tensor [n_items, codebook_depth]."""
        generator = torch.Generator().manual_seed(seed)
        mean, codebooks = x.mean(dim=0), []
        for _ in tqdm(range(self.codebook_depth), desc="RQ-KMeans level", disable=not show_progress):
            sample = x
            if len(x) > self.sample:
                sample = x[torch.randperm(len(x), generator=generator)[: self.sample].to(x.device)]
            _, residuals = residual_codes(sample - mean, codebooks)
            codebooks.append(kmeans(residuals, self.codebook_size, iterations=self.iterations, generator=generator))
        self.learnt = {"mean": mean, "codebooks": torch.stack(codebooks)}
        return self.encode(x)

    def encode_part(self, x):
        """Codes of the rows of ``x``."""
        return torch.stack(residual_codes(x - self.learnt["mean"], self.learnt["codebooks"])[0], dim=1)

    def reconstruct(self, codes):
        """Mean plus the centroids of ``codes`` [n, codebook_depth], a float tensor [n, dim]."""
        self._move(codes.device)
        vectors = (codebook[level] for codebook, level in zip(self.learnt["codebooks"], codes.unbind(1), strict=True))
        return self.learnt["mean"] + sum(vectors)
