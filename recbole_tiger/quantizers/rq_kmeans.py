"""Residual k-means: the next level clusters what the levels before left over."""

import torch
from tqdm import tqdm

from recbole_tiger.quantizers.kmeans import assign, kmeans


class RQKMeans:
    """Residual quantization by k-means, level by level.

    Args:
        codebook_size, codebook_depth: codes a level, levels.
        kmeans_iterations: most Lloyd steps a level.
        kmeans_sample: rows that a level is fitted on where the catalogue has more.
    """

    def __init__(self, *, codebook_size, codebook_depth, kmeans_iterations, kmeans_sample):
        self.codebook_size, self.codebook_depth = codebook_size, codebook_depth
        self.iterations, self.sample = kmeans_iterations, kmeans_sample

    def fit(self, x, *, seed, show_progress=False):
        """Codes of ``x`` [n_items, dim], an int64 tensor [n_items, codebook_depth]."""
        generator = torch.Generator().manual_seed(seed)
        residual = x - x.mean(dim=0)
        codes = []
        for _ in tqdm(range(self.codebook_depth), desc="RQ-KMeans level", disable=not show_progress):
            centroids = kmeans(
                residual,
                self.codebook_size,
                iterations=self.iterations,
                generator=generator,
                sample=self.sample,
            )
            labels, _ = assign(residual, centroids)
            residual = residual - centroids[labels]
            codes.append(labels)
        return torch.stack(codes, dim=1)
