"""The softmax of a level, over all codes or over the codes that lead to an item."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from recbole_tiger.model.layers import BIAS_SCALE

# Initial scale of prefix embeddings relative to code embeddings: most prefixes are rare, so their embeddings start small.
PREFIX_SCALE = 1 / 3
# Like BIAS_SCALE: a rare prefix is a target in few steps, and must learn from them nevertheless.
PREFIX_GAIN = 4.0


def sampled_products(x, y, columns, counts):
    """Selected dot products of rows of two matrices, without copying rows and without gradient.

    Args:
        x: float tensor [n, width]. y: float tensor [m, width].
        columns: int tensor of the rows of ``y`` to multiply each row of ``x`` by, concatenated, ascending within a row.
        counts: int tensor [n], the number of ``columns`` of each row of ``x``.

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

    An item of the history adds a weight, divided by the number of items below the node, to every node on its path. The
    weight is the sum of a term for the level and a term for the level and how many items ago the item was. So the model
    learns whether users repeat items or choose similar ones.

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
        """What the history adds to the logits of nodes.

        Args:
            level: the level of the nodes.
            child, exists: from :meth:`Trie.expand`, [..., n].
            history: int tensor [..., items], the latest item last, padded with zeros.

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
    """An embedding of every prefix of two codes or more, added to the embedding of its last code.

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
        """Slice of the table with the prefixes that end at ``level``, from 1, in the order of the trie's nodes."""
        begin = int(self.first[level - 1])
        return slice(begin, int(self.first[level]) if level < len(self.first) else len(self.table.weight))

    def add_to(self, logits, hidden, level, child, exists):
        """Logits of the children of prefixes, plus the products of their embeddings and ``hidden``.

        Args:
            logits: [..., n] of the ``child`` with ``exists``, from :meth:`Trie.expand`. hidden: [..., hidden_size].
        """
        prefixes, hidden = child + self.first[level - 1], PREFIX_GAIN * hidden
        if logits.is_cuda:  # include children that do not exist: the host would wait for the number of the others
            added = torch.matmul(self.table(prefixes), hidden.unsqueeze(-1)).squeeze(-1)
            return logits + added.to(logits.dtype)
        # One prefix may have thousands of children, such as items with the same text, but most have few.
        counts, hidden = exists.sum(dim=-1).flatten(), hidden.flatten(0, -2)
        if torch.is_grad_enabled():
            parent = hidden.repeat_interleave(counts, dim=0)
            added = (self.table(prefixes[exists]) * parent).sum(dim=-1)
        else:
            added = sampled_products(hidden, self.table.weight, prefixes[exists], counts)
        return logits.masked_scatter(exists, logits[exists] + added.to(logits.dtype))


class FullSoftmax(nn.Module):
    """A level's softmax over all of its codes, as in the paper. Only decoding masks the codes that lead to no item.

    Args:
        codes: int tensor [n_items + 1, levels]. widths: number of codes of each level.
    """

    over_children = False
    prefixes = history_bias = None

    def __init__(self, codes, widths, hidden_size):
        super().__init__()
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("trained", torch.ones(widths[-1], dtype=torch.bool))  # codes of the last level
        self.classifiers = nn.ModuleList(nn.Linear(hidden_size, width) for width in widths)

    def choices(self, hidden, level, items, history):
        """Logits of a level's choices, and which choice belongs to given items.

        Args:
            hidden: [..., hidden_size] of this level, from :meth:`Seq2Seq.decode`.
            items: int tensor [...] of the items whose codes before the level were decoded.
            history: int tensor [..., n] of the items before each of them, padded with zeros on the left.

        Returns:
            float32 logits [..., n], -inf for absent choices; what items of the history add to them, of the same shape or
            None; and the indices [...] of the items' choices.
        """
        return self.classifiers[level](hidden).float(), None, self.codes[items, level]

    def log_probs(self, hidden, level, child, codes, exists, history):
        """Log-probabilities of the children of prefixes in the trie.

        Args:
            hidden: [rows, hidden_size], from :meth:`Seq2Seq.step`.
            child, codes, exists: from :meth:`Trie.expand` for the prefix of each row, [rows, n].
            history: int tensor [rows, items] of the items before, padded with zeros on the left.

        Returns:
            float32 tensor [rows, n], -inf for children that do not exist.
        """
        log_probs = self.log_softmax(self.classifiers[level](hidden).float(), level).gather(-1, codes)
        return log_probs.masked_fill(~exists, -torch.inf)

    def log_softmax(self, logits, level):
        """Log-probabilities of the logits of :meth:`choices`.

        Codes of the collision level that were added after training are left out of the normalising sum, so that the
        probabilities of the others do not change.
        """
        if level < len(self.classifiers) - 1:
            return logits.log_softmax(dim=-1)
        return logits - logits.masked_fill(~self.trained, -torch.inf).logsumexp(dim=-1, keepdim=True)


class TrieSoftmax(nn.Module):
    """A level's softmax over only those codes that lead from the prefix to an item.

    Args:
        trie: :class:`~recbole_tiger.model.trie.Trie`. widths: number of codes of each level.
        prefixes: :class:`PrefixEmbedding`, or None. history_bias: :class:`HistoryBias`, or None.
    """

    over_children = True  # so an only child has probability 1

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

    def log_softmax(self, logits, level):
        """As :meth:`FullSoftmax.log_softmax`."""
        return logits.log_softmax(dim=-1)

    def _logits(self, hidden, level, child, codes, exists):
        logits = self.classifiers[level](hidden).gather(-1, codes)
        if self.prefixes is not None and level:
            logits = self.prefixes.add_to(logits, hidden, level, child, exists)
        return logits.float().masked_fill(~exists, -torch.inf)
