"""Residual k-means: the next level clusters what the levels before left over."""

import torch
from tqdm import tqdm

from recbole_tiger.catalogue.quantizers.kmeans import CHUNK, assign, kmeans


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
        mean, levels = x.mean(dim=0), []

        def residual(rows):
            """What the levels so far left over of some rows; of all at once it would cost as much memory as ``x``."""
            left = x[rows] - mean
            for centroids, labels in levels:
                left -= centroids[labels[rows]]
            return left

        for _ in tqdm(range(self.codebook_depth), desc="RQ-KMeans level", disable=not show_progress):
            sample = torch.arange(len(x))
            if len(x) > self.sample:
                sample = torch.randperm(len(x), generator=generator)[: self.sample]
            centroids = kmeans(
                residual(sample.to(x.device)), self.codebook_size, iterations=self.iterations, generator=generator
            )
            slices = torch.arange(len(x), device=x.device).split(CHUNK)
            levels.append((centroids, torch.cat([assign(residual(rows), centroids)[0] for rows in slices])))
        return torch.stack([labels for _, labels in levels], dim=1)
