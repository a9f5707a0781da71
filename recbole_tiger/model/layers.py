"""Layers of the Transformer, with learned biases in place of positions, and with steps for incremental decoding."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

# Finite replacement of minus infinity, so that a row with all keys masked (padding) has no NaN.
MASKED = -1e9
# Scale of attention biases: Adam moves a parameter by about the learning rate per step, and biases must grow as large as
# logits.
BIAS_SCALE = 8.0


class Sizes(NamedTuple):
    """Widths and dropout probabilities of a layer."""

    hidden_size: int
    n_heads: int
    head_size: int
    inner_size: int
    hidden_dropout_prob: float
    attn_dropout_prob: float


class Rows(NamedTuple):
    """Prefixes of a batch of histories to decode together, one per row; histories may have different numbers of prefixes.

    Attributes:
        users: int tensor [rows], the history of each prefix, ascending.
        index: int tensor [rows], flat positions in a table [batch, prefixes]; None for the whole table.
        place: int tensor [rows], flat positions in a padded table [batch, width]; None if there is no padding.
        width: maximal number of prefixes of a history.
    """

    users: torch.Tensor
    index: torch.Tensor | None
    place: torch.Tensor | None
    width: int

    @classmethod
    def all_of(cls, table):
        """The rows of a whole table [batch, prefixes]; does not wait for the device."""
        batch, prefixes = table.shape
        users = torch.arange(batch, device=table.device).unsqueeze(1).expand(batch, prefixes).reshape(-1)
        return cls(users, None, None, prefixes)

    @classmethod
    def where(cls, wanted):
        """The rows of the true entries of a bool table [batch, prefixes]."""
        counts = wanted.sum(dim=1)
        index = wanted.flatten().nonzero().squeeze(1)
        users = index // wanted.shape[1]
        width = int(counts.max())
        within = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[users]
        return cls(users, index, users * width + within, width)

    def select(self, table):
        """Entries of a table [batch, prefixes, ...] as [rows, ...]."""
        flat = table.flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def pad(self, x, batch):
        """``x`` [rows, dim] as a table [batch, width, dim], zeros where a history has fewer rows."""
        if self.place is None:
            return x.view(batch, self.width, -1)
        table = x.new_zeros(batch * self.width, x.shape[-1])
        return table.index_copy_(0, self.place, x).view(batch, self.width, -1)

    def unpad(self, table):
        """A table [batch, width, dim] as [rows, dim], the inverse of :meth:`pad`."""
        flat = table.flatten(0, 1)
        return flat if self.place is None else flat[self.place]


class Dropout(nn.Module):
    """Dropout with one mask for all tokens of a sequence, as in T5X, the paper's framework.

    Such a mask costs almost nothing; on a CPU, a mask of every element costs as much as the matrix products around it.
    """

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        """``x`` [..., tokens, width]."""
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(*x.shape[:-2], 1, x.shape[-1], device=x.device).ge_(self.p)
        return x * kept.div_(1 - self.p).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with an additive bias in place of positions; projections have no bias, as in T5."""

    def __init__(self, hidden_size, n_heads, head_size, dropout):
        super().__init__()
        self.n_heads, self.head_size = n_heads, head_size
        width = n_heads * head_size
        self.query = nn.Linear(hidden_size, width, bias=False)
        self.key_value = nn.Linear(hidden_size, 2 * width, bias=False)
        self.output = nn.Linear(width, hidden_size, bias=False)
        self.dropout = Dropout(dropout)

    def split(self, x):
        """[batch, tokens, n_heads * head_size] -> [batch, n_heads, tokens, head_size]."""
        return x.view(*x.shape[:2], self.n_heads, self.head_size).transpose(1, 2)

    def keys_values(self, x):
        """Keys and values of ``x`` [batch, tokens, hidden_size], each [batch, n_heads, tokens, head_size]."""
        key, value = self.key_value(x).chunk(2, dim=-1)
        # Made contiguous once here, not in the products of every level of a beam.
        return self.split(key).contiguous(), self.split(value).contiguous()

    def forward(self, x, keys, values, bias):
        """Attend from ``x`` [batch, tokens, hidden_size].

        ``bias`` broadcasts to [batch, n_heads, tokens, keys].
        """
        return self.output(self._attend(self.query(x), keys, values, bias))

    def _attend(self, query, keys, values, bias):
        scores = torch.matmul(self.split(query), keys.transpose(-1, -2))
        weights = torch.add(bias, scores, alpha=self.head_size**-0.5).softmax(dim=-1)
        mixed = torch.matmul(self.dropout(weights).to(values.dtype), values)
        return mixed.transpose(1, 2).flatten(2)

    def from_rows(self, x, rows, keys, values, bias):
        """Like :meth:`forward`, from ``x`` [rows, hidden_size]."""
        query = rows.pad(self.query(x), len(keys))
        return self.output(rows.unpad(self._attend(query, keys, values, bias)))

    def step(self, x, past, bias):
        """Attend from one level of prefixes to itself and to the levels before it.

        It uses elementwise products: matrix products with so few rows are slower, and need the levels concatenated.

        Args:
            x: [rows, hidden_size].
            past: list of the keys and values of each level before, [rows, n_heads, head_size].
            bias: [n_heads, levels].

        Returns:
            [rows, hidden_size], and the keys and values of this level.
        """
        heads = (self.n_heads, self.head_size)
        query = self.query(x).unflatten(-1, heads)
        own = tuple(part.unflatten(-1, heads) for part in self.key_value(x).chunk(2, dim=-1))
        past = [*past, own]
        scores = torch.stack([(query * key).sum(dim=-1) for key, _ in past], dim=-1)
        weights = torch.add(bias, scores, alpha=self.head_size**-0.5).softmax(dim=-1).to(query.dtype)
        mixed = torch.zeros_like(query)
        for level, (_, value) in enumerate(past):
            mixed.addcmul_(weights[..., level, None], value)
        return self.output(mixed.flatten(1)), own


class FeedForward(nn.Module):
    """Two linear maps with a ReLU and dropout between them."""

    def __init__(self, hidden_size, inner_size, dropout):
        super().__init__()
        self.inner = nn.Linear(hidden_size, inner_size, bias=False)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(inner_size, hidden_size, bias=False)

    def forward(self, x):
        return self.output(self.dropout(F.relu(self.inner(x), inplace=True)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a LayerNorm before it (pre-LN) and a residual connection."""

    def __init__(self, hidden_size, n_heads, head_size, inner_size, hidden_dropout, attn_dropout):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = Attention(hidden_size, n_heads, head_size, attn_dropout)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, inner_size, hidden_dropout)
        self.dropout = Dropout(hidden_dropout)

    def forward(self, x, bias):
        y = self.attention_norm(x)
        x = x + self.dropout(self.attention(y, *self.attention.keys_values(y), bias))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class DecoderLayer(nn.Module):
    """Self-attention within one semantic ID, cross-attention to the history, feed-forward."""

    def __init__(self, hidden_size, n_heads, head_size, inner_size, hidden_dropout, attn_dropout):
        super().__init__()
        self.self_norm = nn.LayerNorm(hidden_size)
        self.self_attention = Attention(hidden_size, n_heads, head_size, attn_dropout)
        self.cross_norm = nn.LayerNorm(hidden_size)
        self.cross_attention = Attention(hidden_size, n_heads, head_size, attn_dropout)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, inner_size, hidden_dropout)
        self.dropout = Dropout(hidden_dropout)

    def forward(self, x, targets, self_bias, cross_keys, cross_values, cross_bias):
        """``x`` [batch, targets * levels, hidden_size]; the targets do not see each other.

        All targets share the keys and values of the history, [batch, n_heads, tokens, head_size].
        """
        y = self.self_norm(x).view(x.shape[0] * targets, -1, x.shape[2])
        mixed = self.self_attention(y, *self.self_attention.keys_values(y), self_bias)
        x = x + self.dropout(mixed.view(x.shape))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), cross_keys, cross_values, cross_bias))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def step(self, x, rows, past, self_bias, cross_keys, cross_values, cross_bias):
        """One level of prefixes ``x`` [rows, hidden_size], for inference; ``past`` as in :meth:`Attention.step`.

        Returns:
            x, and the keys and values of this level.
        """
        mixed, own = self.self_attention.step(self.self_norm(x), past, self_bias)
        x = x + mixed
        x = x + self.cross_attention.from_rows(self.cross_norm(x), rows, cross_keys, cross_values, cross_bias)
        return x + self.feed_forward(self.feed_forward_norm(x)), own


class RelativeBias(nn.Module):
    """A learned bias per head for the distance in items and for the pair of levels.

    The model has no absolute positions, so its output for a history does not depend on where it starts in a sequence.
    """

    def __init__(self, n_heads, first, last, query_levels, key_levels):
        super().__init__()
        self.first, self.last = first, last
        slopes = 2.0 ** -torch.arange(n_heads)
        distance = torch.arange(first, last + 1).abs()
        self.distance = nn.Parameter(-slopes[:, None] * distance / BIAS_SCALE)
        self.levels = nn.Parameter(torch.zeros(n_heads, query_levels, key_levels))

    def forward(self, distances, causal):
        """``distances`` [queries, keys] in items -> bias [n_heads, queries * query_levels, keys * key_levels].

        With ``causal``, keys at distances below the first allowed one are masked.
        """
        item = self.distance[:, (distances.clamp(self.first, self.last) - self.first)] * BIAS_SCALE
        if causal:
            item = item.masked_fill(distances < self.first, MASKED)
        bias = item[:, :, None, :, None] + self.levels[:, None, :, None, :] * BIAS_SCALE
        return bias.flatten(3, 4).flatten(1, 2)
