"""Hierarchical k-means: DSI's semantically structured identifiers (Tay et al. 2022, arXiv 2202.06991, section 3.2)."""

from collections import deque

import torch
from tqdm import tqdm

from recbole_tiger.catalogue.quantizers.base import Quantizer
from recbole_tiger.catalogue.quantizers.kmeans import assign, kmeans
from recbole_tiger.errors import TigerError

# Maximal number of elements of the gathered centroids; bounds memory.
NUMBERS = 2**24


class HierarchicalKMeans(Quantizer):
    """A tree of clusters: k-means splits the catalogue, then every cluster with more than ``hierarchical_leaf_size`` items.

    A code is the branch taken at its level. Branches end at different depths; shorter codes are padded with 0, so a padded
    level has one child per node, and the trie has the leaves of the tree. The number of an item within its cluster, DSI's
    last digit, is the collision level, as for every quantizer. A cluster of equal embeddings cannot be split and ends its
    branch, whatever its size.

    Args:
        hierarchical_branches: number of clusters that a cluster is split into (DSI: 10).
        hierarchical_leaf_size: maximal size of a cluster that is not split again (DSI: 100).
        kmeans_iterations: maximal number of Lloyd steps per split.
        kmeans_sample: number of random rows that a split is fitted on if the cluster is larger.
    """

    def __init__(self, *, hierarchical_branches, hierarchical_leaf_size, kmeans_iterations, kmeans_sample):
        super().__init__()
        if hierarchical_branches < 2:
            raise TigerError(f"hierarchical_branches {hierarchical_branches} splits nothing; give 2 or more")
        if kmeans_sample < hierarchical_branches:
            raise TigerError(
                f"kmeans_sample {kmeans_sample} is less than hierarchical_branches {hierarchical_branches}; raise it"
            )
        self.branches, self.leaf_size = hierarchical_branches, hierarchical_leaf_size
        self.iterations, self.sample = kmeans_iterations, kmeans_sample

    @property
    def widths(self):
        """Number of codes of each level."""
        return [self.branches] * int(self.learnt["depth"])

    def fit(self, x, *, seed, show_progress=False):
        """Codes of ``x`` [n_items, dim], an int64 tensor [n_items, depth of the tree].

        Stores the inner nodes of the tree in ``learnt``, the root first: ``centroids`` [nodes, branches, dim], relative to
        the mean and infinite for absent branches, and ``children`` [nodes, branches], the node below each, or -1 for none.
        """
        generator = torch.Generator().manual_seed(seed)
        mean = x.mean(dim=0)
        centroids, children = [], []
        # Of each cluster: its rows, the branch that leads to it, its depth.
        clusters = deque([(torch.arange(len(x), device=x.device), None, 1)])
        progress = tqdm(desc="hierarchical k-means, clusters split", disable=not show_progress)
        while clusters:
            rows, branch, depth = clusters.popleft()
            members = x[rows] - mean
            if branch and (members == members[0]).all():
                continue
            found = kmeans(
                members,
                min(self.branches, len(rows)),
                iterations=self.iterations,
                generator=generator,
                sample=self.sample,
            )
            used, labels = assign(members, found)[0].unique(return_inverse=True)
            if branch and len(used) == 1:
                continue  # the members differ by rounding only
            if branch:
                node, code = branch
                children[node][code] = len(children)
            centroids.append(torch.full((self.branches, x.shape[1]), torch.inf, device=x.device))
            centroids[-1][: len(used)] = found[used]
            children.append([-1] * self.branches)
            for code, size in enumerate(labels.bincount().tolist()):
                if size > self.leaf_size:
                    clusters.append((rows[labels == code], (len(children) - 1, code), depth + 1))
            deepest = depth
            progress.update()
        progress.close()
        self.learnt = {
            "mean": mean,
            "centroids": torch.stack(centroids),
            "children": torch.tensor(children, device=x.device),
            "depth": torch.tensor(deepest),
        }
        return self.encode(x)

    def _chunk(self, dim):
        return max(1, NUMBERS // (self.branches * dim))

    def encode_part(self, x):
        """Codes of the rows of ``x``."""
        x = x - self.learnt["mean"]
        codes = torch.zeros(len(x), len(self.widths), dtype=torch.int64, device=x.device)
        node = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for level in codes.T:
            rows = (node >= 0).nonzero().flatten()
            distances = (self.learnt["centroids"][node[rows]] - x[rows].unsqueeze(1)).pow_(2).sum(dim=2)
            level[rows] = distances.argmin(dim=1)
            node[rows] = self.learnt["children"][node[rows], level[rows]]
        return codes

    def reconstruct(self, codes):
        """Centroids of the clusters with the given ``codes`` [n, depth], a float tensor [n, dim]."""
        self._move(codes.device)
        found = torch.empty(len(codes), len(self.learnt["mean"]), device=codes.device)
        node = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        for level in codes.T:
            rows = (node >= 0).nonzero().flatten()
            found[rows] = self.learnt["centroids"][node[rows], level[rows]]
            node[rows] = self.learnt["children"][node[rows], level[rows]]
        return found + self.learnt["mean"]

    def levels_to_check(self, statistics):
        """The first level at most: deeper levels contain padding, which is not a collapse."""
        return super().levels_to_check(statistics)[:1]
