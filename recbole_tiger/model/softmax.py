"""What the softmax of a level is over: all codes, or those that lead to an item."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from recbole_tiger.model.layers import BIAS_SCALE

# Most prefixes are rare: their embeddings start small beside those of the codes, and grow where the data say so.
PREFIX_SCALE = 1 / 3
# For the same reason as BIAS_SCALE: a rare prefix is a target in few steps, and is to be remembered nevertheless.
PREFIX_GAIN = 4.0


def products(x, y, columns, counts):
    """Some products of rows of two matrices, without copies of the rows; no gradient flows back.

    Args:
        x: float tensor [n, width]; y: float tensor [m, width].
        columns: int tensor of rows of ``y``: for each row of ``x`` those to multiply it by, ascending.
        counts: int tensor [n], how many of them belong to each.

    Returns:
        float32 tensor of the shape of ``columns``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch calls sparse CSR tensors a beta
        begin = F.pad(counts.cumsum(0), (1, 0))
        wanted = torch.sparse_csr_tensor(begin, columns, torch.zeros(len(columns)), size=(len(x), len(y)))
    return torch.sparse.sampled_addmm(wanted, x.float(), y.float().t(), beta=0).values()


class HistoryBias(nn.Module):
    """A learned logit for the nodes of the trie that lead to items of the history.

    An item of the history adds to every node on its path a weight, divided by the number of the node's items. The weight has
    a part for each level, and one for how many items ago it was. So the model learns whether users take an item again, and
    whether they stay with what is like it.

    Args:
        trie: :class:`~recbole_tiger.model.trie.Trie`. max_items: longest history.
    """

    def __init__(self, trie, max_items):
        super().__init__()
        self.trie, paths, levels = trie, trie.paths(), trie.levels
        for level in range(levels):
            self.register_buffer(f"n_items_{level}", torch.bincount(paths[1:, level]), persistent=False)
        self.of_level = nn.Parameter(torch.zeros(levels))
        self.of_distance = nn.Parameter(torch.zeros(levels, max_items))

    def forward(self, level, child, exists, history):
        """What is added to the logits of nodes.

        Args:
            level: that of the nodes.
            child, exists: of :meth:`Trie.expand`, [..., n].
            history: int tensor [..., items], the latest last, padded with zeros.

        Returns:
            float tensor [..., n].
        """
        nodes = self.trie.paths()[history, level].masked_fill(history == 0, -1)
        place = nodes - child[..., :1]
        under = (place >= 0) & (place < exists.sum(dim=-1, keepdim=True))
        ago = torch.arange(history.shape[-1] - 1, -1, -1, device=history.device).clamp(max=self.of_distance.shape[-1] - 1)
        weights = BIAS_SCALE * (self.of_level[level] + self.of_distance[level, ago])
        added = weights / self.get_buffer(f"n_items_{level}")[nodes.clamp(min=0)] * under
        return added.new_zeros(child.shape).scatter_add(-1, place.clamp(0, child.shape[-1] - 1), added)


class PrefixEmbedding(nn.Module):
    """An embedding of every prefix of two codes or more, added to that of the prefix's last code.

    Args:
        trie: :class:`~recbole_tiger.model.trie.Trie`.
    """

    def __init__(self, trie, hidden_size):
        super().__init__()
        self.trie = trie
        sizes = [trie.n_nodes(level) for level in range(1, trie.levels)]
        self.register_buffer("first", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.table = nn.Embedding(sum(sizes), hidden_size)

    def forward(self, items):
        """Embeddings of the prefixes of items [...], zeros for the first code: [..., levels, hidden_size]."""
        rows = self.trie.paths()[items][..., 1:] + self.first
        return PREFIX_GAIN * F.pad(self.table(rows), (0, 0, 1, 0))

    def rows(self, level):
        """Where the prefixes that end at ``level``, from 1, are in the table, in the order of the trie's nodes."""
        begin = int(self.first[level - 1])
        return slice(begin, int(self.first[level]) if level < len(self.first) else len(self.table.weight))

    def added_to(self, logits, hidden, level, child, exists):
        """Logits of the children of prefixes, with what the embeddings of the children say.

        Args:
            logits: [..., n] of ``child``, ``exists`` of :meth:`Trie.expand`. hidden: [..., hidden_size].
        """
        prefixes, hidden = child + self.first[level - 1], PREFIX_GAIN * hidden
        if logits.is_cuda:  # to leave out the children that do not exist, the host would wait for their number
            of_prefixes = torch.matmul(self.table(prefixes), hidden.unsqueeze(-1)).squeeze(-1)
            return logits + of_prefixes.to(logits.dtype)
        # One prefix may have thousands of children, as items of one text are, and most others few.
        counts, hidden = exists.sum(dim=-1).flatten(), hidden.flatten(0, -2)
        if torch.is_grad_enabled():
            parent = hidden.repeat_interleave(counts, dim=0)
            of_prefixes = (self.table(prefixes[exists]) * parent).sum(dim=-1)
        else:
            of_prefixes = products(hidden, self.table.weight, prefixes[exists], counts)
        return logits.masked_scatter(exists, logits[exists] + of_prefixes.to(logits.dtype))


class FullSoftmax(nn.Module):
    """A level's softmax over all of its codes, as in the paper; the trie masks what leads to no item, in decoding alone.

    Args:
        codes: int tensor [n_items + 1, levels]. widths: codes of each level.
    """

    knows_only_children = False
    prefixes = history_bias = None

    def __init__(self, codes, widths, hidden_size):
        super().__init__()
        self.register_buffer("codes", codes, persistent=False)
        self.classifiers = nn.ModuleList(nn.Linear(hidden_size, width) for width in widths)

    def choices(self, hidden, level, items, history):
        """What a level's softmax is over, and which of it belongs to given items.

        Args:
            hidden: [..., hidden_size] of this level, of :meth:`Seq2Seq.decode`.
            items: int tensor [...] of the items whose codes before the level were decoded.
            history: int tensor [..., n] of the items before each of them, padded with zeros on the left.

        Returns:
            float32 logits [..., n], -inf for what is left out; what items of the history add to them, of the same shape or
            None; and indices [...] into them.
        """
        return self.classifiers[level](hidden).float(), None, self.codes[items, level]

    def log_probs(self, hidden, level, child, codes, exists, history):
        """Log-probabilities of the nodes of the trie that follow a prefix.

        Args:
            hidden: [rows, hidden_size], of :meth:`Seq2Seq.step`.
            child, codes, exists: of :meth:`Trie.expand`, for the prefix of each row, [rows, n].
            history: int tensor [rows, items] of the items before, padded with zeros on the left.

        Returns:
            float32 tensor [rows, n], -inf where there is no such node.
        """
        log_probs = self.classifiers[level](hidden).float().log_softmax(dim=-1).gather(-1, codes)
        return log_probs.masked_fill(~exists, -torch.inf)


class TrieSoftmax(nn.Module):
    """A level's softmax over those codes alone that continue a prefix to an item.

    Args:
        trie: :class:`~recbole_tiger.model.trie.Trie`. widths: codes of each level.
        prefixes: :class:`PrefixEmbedding`, or None. history_bias: :class:`HistoryBias`, or None.
    """

    knows_only_children = True  # the only child of a node has probability 1

    def __init__(self, trie, widths, hidden_size, prefixes, history_bias):
        super().__init__()
        self.trie, self.prefixes, self.history_bias = trie, prefixes, history_bias
        self.classifiers = nn.ModuleList(nn.Linear(hidden_size, width) for width in widths)

    def choices(self, hidden, level, items, history):
        """As :meth:`FullSoftmax.choices`."""
        paths = self.trie.paths()
        parents = paths[items, level - 1] if level else torch.zeros_like(items)
        child, codes, exists = self.trie.expand(parents, level)
        logits = self._logits(hidden, level, child, codes, exists)
        added = None if self.history_bias is None else self.history_bias(level, child, exists, history)
        return logits, added, paths[items, level] - child[..., 0]

    def log_probs(self, hidden, level, child, codes, exists, history):
        """As :meth:`FullSoftmax.log_probs`."""
        logits = self._logits(hidden, level, child, codes, exists)
        if self.history_bias is not None:
            logits = logits + self.history_bias(level, child, exists, history)
        return logits.log_softmax(dim=-1)

    def _logits(self, hidden, level, child, codes, exists):
        logits = self.classifiers[level](hidden).gather(-1, codes)
        if self.prefixes is not None and level:
            logits = self.prefixes.added_to(logits, hidden, level, child, exists)
        return logits.float().masked_fill(~exists, -torch.inf)
