"""The prefix tree of all semantic IDs, as tensors."""

import numpy as np
import torch
from torch import nn


class Trie(nn.Module):
    """Prefix tree: one table of sorted children per level (like a CSR matrix), and the item of each leaf.

    The nodes of a level are the distinct prefixes in lexicographic order, so the children of a node have consecutive
    numbers. A node needs two 32-bit integers, instead of a table of all possible children.

    Args:
        codes: int tensor [n_items + 1, levels]; row 0 is padding, the other rows are distinct.
    """

    def __init__(self, codes):
        super().__init__()
        table = codes[1:].cpu().numpy()
        order = np.lexsort(table.T[::-1])
        table = table[order]
        self.levels = table.shape[1]
        self.most_children = []  # per level, the maximal number of children of a node of the level above
        starts = np.zeros(1, dtype=np.int64)
        changed = np.zeros(len(table), dtype=bool)
        changed[0] = True
        for level in range(self.levels):
            changed[1:] |= table[1:, level] != table[:-1, level]
            rows = np.flatnonzero(changed)
            first = np.append(np.searchsorted(rows, starts), len(rows))
            # first_child of the level above (of the root, for level 0), then the code of each node.
            self.most_children.append(int(np.diff(first).max()))
            self.register_buffer(f"first_child_{level}", torch.from_numpy(first.astype(np.int32)), persistent=False)
            node_codes = torch.from_numpy(table[rows, level].astype(np.int32))
            self.register_buffer(f"code_{level}", node_codes, persistent=False)
            starts = rows
        self.register_buffer("_paths", None, persistent=False)  # computed at first use
        self.register_buffer("item_of", torch.from_numpy((order + 1).astype(np.int32)), persistent=False)

    def n_nodes(self, level):
        """Number of distinct prefixes that end at ``level``."""
        return len(self.get_buffer(f"code_{level}"))

    def expand(self, nodes, level, least=1):
        """Children at ``level`` of nodes of the level before.

        Args:
            nodes: int tensor [...]; 0, the root, for level 0.
            least: the smallest n.

        Returns:
            nodes of the level [..., n], their codes of the same shape, and a mask of those that exist; n is the maximal
            number of children of the ``nodes``, or on a GPU of any node, which the host knows without waiting.
        """
        first = self.get_buffer(f"first_child_{level}")
        codes = self.get_buffer(f"code_{level}")
        begin, end = first[nodes].long(), first[nodes + 1].long()
        n = max(least, self.most_children[level] if nodes.is_cuda else int((end - begin).max()))
        child = begin.unsqueeze(-1) + torch.arange(n, device=nodes.device)
        exists = child < end.unsqueeze(-1)
        child = child.clamp(max=len(codes) - 1)
        return child, codes[child].long(), exists

    def all_nodes(self, level):
        """Parents (nodes of the level before) and codes of all nodes of ``level``, two int64 tensors."""
        counts, codes = self.get_buffer(f"first_child_{level}").long().diff(), self.get_buffer(f"code_{level}").long()
        parents = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(codes))
        return parents, codes

    def paths(self):
        """The nodes of every item's prefixes, int64 tensor [n_items + 1, levels]; zeros for the padding item 0."""
        if self._paths is None:
            self._paths = self._compute_paths()
        return self._paths

    def _compute_paths(self):
        nodes = torch.arange(len(self.item_of), device=self.item_of.device)
        paths = nodes.new_zeros(len(nodes) + 1, self.levels)
        for level in reversed(range(self.levels)):
            paths[self.item_of.long(), level] = nodes
            nodes = self.all_nodes(level)[0][nodes]
        return paths

    def bytes(self):
        """Size of all tables, in bytes."""
        return sum(buffer.nbytes for buffer in self.buffers())
