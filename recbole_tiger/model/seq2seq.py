"""The Transformer encoder-decoder over semantic IDs (Rajput et al. 2023, section 3.2)."""

import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from recbole_tiger.catalogue.quantizers.kmeans import means
from recbole_tiger.model.trie import Trie

# A finite stand-in for minus infinity: a row in which every key is masked (padding) stays free of NaN.
MASKED = -1e9
# Adam moves a parameter by about the learning rate a step; biases of attention have to become as large as its logits.
BIAS_SCALE = 8.0
# Most prefixes are rare: their embeddings start small beside those of the codes, and grow where the data say so.
PREFIX_SCALE = 1 / 3
# For the same reason as BIAS_SCALE: a rare prefix is a target in few steps, and is to be remembered nevertheless.
PREFIX_GAIN = 4.0
# Standard deviation of what the text gives to the first embeddings of codes: enough to be heard beside the layers' outputs.
TEXT_SCALE = 0.5


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


class Rows(NamedTuple):
    """Prefixes of a batch of histories that are decoded together: one a row, not all histories have the same number of them.

    Attributes:
        users: int tensor [rows], the history that each belongs to, ascending.
        index: int tensor [rows], where they stand in a table [batch, prefixes]; None where they are the whole table.
        place: int tensor [rows], where they stand in a table [batch, width]; None where they fill it.
        width: the most prefixes of a history.
    """

    users: torch.Tensor
    index: torch.Tensor | None
    place: torch.Tensor | None
    width: int

    @classmethod
    def all_of(cls, table):
        """The rows of a whole table [batch, prefixes]; nothing waits for the device."""
        batch, prefixes = table.shape
        users = torch.arange(batch, device=table.device).unsqueeze(1).expand(batch, prefixes).reshape(-1)
        return cls(users, None, None, prefixes)

    @classmethod
    def where(cls, wanted):
        """The rows of a bool table [batch, prefixes] that are true."""
        counts = wanted.sum(dim=1)
        index = wanted.flatten().nonzero().squeeze(1)
        users = index // wanted.shape[1]
        width = int(counts.max())
        within = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[users]
        return cls(users, index, users * width + within, width)

    def of(self, table):
        """Their values of a table [batch, prefixes, ...], [rows, ...]."""
        flat = table.flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def side_by_side(self, x, batch):
        """``x`` [rows, width of x] -> [batch, width, width of x], zeros where a history has fewer rows."""
        if self.place is None:
            return x.view(batch, self.width, -1)
        table = x.new_zeros(batch * self.width, x.shape[-1])
        return table.index_copy_(0, self.place, x).view(batch, self.width, -1)

    def one_by_one(self, table):
        """The other way round."""
        flat = table.flatten(0, 1)
        return flat if self.place is None else flat[self.place]


class Dropout(nn.Module):
    """Dropout whose mask the tokens of a sequence share, as in T5X, by which the paper's model was made.

    So a mask costs next to nothing, where one for every element costs as much as the matrix products around it on a CPU.
    """

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        """``x`` [..., tokens, width]."""
        if not self.training or self.p == 0:
            return x
        drawn = torch.rand(*x.shape[:-2], 1, x.shape[-1], device=x.device)
        return x * ((drawn >= self.p).to(x.dtype) / (1 - self.p))


class Attention(nn.Module):
    """Multi-head attention with an additive bias in place of positions; no bias in its projections, as in T5."""

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
        # Once here rather than in every product of a beam's levels.
        return self.split(key).contiguous(), self.split(value).contiguous()

    def forward(self, x, keys, values, bias):
        """Attend from ``x`` [batch, tokens, hidden_size].

        ``bias`` broadcasts to [batch, n_heads, tokens, keys].
        """
        return self.output(self._mixed(self.query(x), keys, values, bias))

    def _mixed(self, query, keys, values, bias):
        scores = torch.matmul(self.split(query), keys.transpose(-1, -2))
        weights = torch.add(bias, scores, alpha=self.head_size**-0.5).softmax(dim=-1)
        mixed = torch.matmul(self.dropout(weights).to(values.dtype), values)
        return mixed.transpose(1, 2).flatten(2)

    def from_rows(self, x, rows, keys, values, bias):
        """As :meth:`forward`, from ``x`` [rows, hidden_size]."""
        query = rows.side_by_side(self.query(x), len(keys))
        return self.output(rows.one_by_one(self._mixed(query, keys, values, bias)))

    def step(self, x, past, bias):
        """Attend from one level of prefixes to itself and to the levels before it.

        Element by element: products of matrices with a handful of rows are slower, and need the levels joined.

        Args:
            x: [rows, hidden_size].
            past: list of keys and values of each level before, [rows, n_heads, head_size].
            bias: [n_heads, levels].

        Returns:
            [rows, hidden_size], and keys and values of this level.
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
    """Self-attention and feed-forward, each behind its LayerNorm (pre-LN) and added to the stream."""

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

        Keys and values of the history stay at [batch, n_heads, tokens, head_size] however many targets attend to them.
        """
        y = self.self_norm(x).view(x.shape[0] * targets, -1, x.shape[2])
        mixed = self.self_attention(y, *self.self_attention.keys_values(y), self_bias)
        x = x + self.dropout(mixed.view(x.shape))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), cross_keys, cross_values, cross_bias))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def step(self, x, rows, past, self_bias, cross_keys, cross_values, cross_bias):
        """One level of prefixes ``x`` [rows, hidden_size]; ``past`` as in :meth:`Attention.step`; for inference.

        Returns:
            x, and keys and values of this level.
        """
        mixed, own = self.self_attention.step(self.self_norm(x), past, self_bias)
        x = x + mixed
        x = x + self.cross_attention.from_rows(self.cross_norm(x), rows, cross_keys, cross_values, cross_bias)
        return x + self.feed_forward(self.feed_forward_norm(x)), own


class RelativeBias(nn.Module):
    """A learned bias per head for the distance in items and for the pair of levels.

    Nothing in the model depends on where in a sequence a history starts, so a window, a whole sequence and a history at
    inference mean the same.
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

        With ``causal``, keys nearer than the first allowed distance are masked.
        """
        item = self.distance[:, (distances.clamp(self.first, self.last) - self.first)] * BIAS_SCALE
        if causal:
            item = item.masked_fill(distances < self.first, MASKED)
        bias = item[:, :, None, :, None] + self.levels[:, None, :, None, :] * BIAS_SCALE
        return bias.flatten(3, 4).flatten(1, 2)


class HistoryBias(nn.Module):
    """A learned logit for the nodes of the trie that lead to items of the history.

    An item of the history adds to every node on its path a weight, divided by the number of the node's items. The weight has
    a part for each level, and one for how many items ago it was. So the model learns whether users take an item again, and
    whether they stay with what is like it.

    Args:
        paths: of :meth:`Trie.paths`. max_items: longest history.
    """

    def __init__(self, paths, max_items):
        super().__init__()
        levels = paths.shape[1]
        for level in range(levels):
            self.register_buffer(f"n_items_{level}", torch.bincount(paths[1:, level]), persistent=False)
        self.of_level = nn.Parameter(torch.zeros(levels))
        self.of_distance = nn.Parameter(torch.zeros(levels, max_items))

    def forward(self, level, child, exists, history):
        """What is added to the logits of nodes.

        Args:
            level: that of the nodes.
            child, exists: of :meth:`Trie.expand`, [..., n].
            history: nodes of the level on the paths of the history's items [..., items], the latest last; -1 for padding.

        Returns:
            float tensor [..., n].
        """
        place = history - child[..., :1]
        under = (place >= 0) & (place < exists.sum(dim=-1, keepdim=True))
        ago = torch.arange(history.shape[-1] - 1, -1, -1, device=history.device).clamp(max=self.of_distance.shape[-1] - 1)
        weights = BIAS_SCALE * (self.of_level[level] + self.of_distance[level, ago])
        added = weights / self.get_buffer(f"n_items_{level}")[history.clamp(min=0)] * under
        return added.new_zeros(child.shape).scatter_add(-1, place.clamp(0, child.shape[-1] - 1), added)


class Memory(NamedTuple):
    """What the decoder reads of a batch of histories.

    Attributes:
        layers: per decoder layer keys and values, float tensors [batch, n_heads, tokens, head_size].
        items: int tensor [batch, n], padded with zeros on the left.
        padding: [batch, 1, 1, tokens] of 0 and MASKED, or None where no history is padded.
    """

    layers: list
    items: torch.Tensor
    padding: torch.Tensor | None


class Seq2Seq(nn.Module):
    """Reads the semantic IDs of a history, predicts that of the next item level by level.

    Args:
        codes: int tensor [n_items + 1, levels]; row 0 is padding, row i the semantic ID of RecBole's item i.
        text: float tensor [n_items + 1, dim] of standardised item embeddings for the encoder's input, or None.
        hidden_size, n_heads, head_size, inner_size, n_layers, n_decoder_layers: widths and depths; ``n_layers`` is the
            encoder's.
        hidden_dropout_prob, attn_dropout_prob: probabilities of dropout.
        code_dropout_prob: probability that a code of the input is hidden from the encoder in training.
        max_items: longest history (``MAX_ITEM_LIST_LENGTH``).
        encoder_tokens: "code" (one token a code, the paper's) or "item" (one an item, the sum of its codes).
        bidirectional_encoder: items see those after them too (the paper's; one target a history), or only those before.
        n_user_tokens: rows of the table of hashed users (the paper: 2,000), 0 for none.
        initializer_range: standard deviation of the initial weights.
        trie_softmax: whether the softmax of a level is over the codes that continue a prefix to an item, instead of all.
        prefix_embedding: whether every prefix of two codes or more has an embedding of its own, added to the code's in the
            encoder and to the code's row of the classifier. Needs ``trie_softmax``.
        history_bias: whether codes that lead to items of the history have a learned logit (:class:`HistoryBias`). Needs
            ``trie_softmax``.
    """

    def __init__(
        self,
        codes,
        text,
        *,
        hidden_size,
        n_heads,
        head_size,
        inner_size,
        n_layers,
        n_decoder_layers,
        hidden_dropout_prob,
        attn_dropout_prob,
        code_dropout_prob,
        max_items,
        encoder_tokens,
        bidirectional_encoder,
        n_user_tokens,
        initializer_range,
        trie_softmax,
        prefix_embedding,
        history_bias,
    ):
        super().__init__()
        self.levels = codes.shape[1]
        self.widths = (codes[1:].max(dim=0).values + 1).tolist()
        self.bidirectional = bidirectional_encoder
        self.token_per_item = encoder_tokens == "item"
        self.code_dropout_prob = code_dropout_prob
        self.register_buffer("codes", codes)
        self.register_buffer("text", text)
        self.register_buffer("offsets", torch.tensor([0, *self.widths[:-1]]).cumsum(0), persistent=False)

        self.trie = Trie(codes)
        self.trie_softmax = trie_softmax
        if trie_softmax:
            self.register_buffer("paths", self.trie.paths(), persistent=False)

        self.code_embedding = nn.Embedding(sum(self.widths), hidden_size)
        self.prefix_embedding = None
        if prefix_embedding:
            sizes = [self.trie.n_nodes(level) for level in range(1, self.levels)]
            self.register_buffer("prefix_offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
            self.prefix_embedding = nn.Embedding(sum(sizes), hidden_size)
        self.history_bias = HistoryBias(self.paths, max_items) if history_bias else None
        self.start = nn.Parameter(torch.zeros(hidden_size))
        self.text_projection = None if text is None else nn.Linear(text.shape[1], hidden_size)
        self.user_embedding = nn.Embedding(n_user_tokens, hidden_size) if n_user_tokens else None
        if n_user_tokens:
            self.encoder_user_bias = nn.Parameter(torch.zeros(n_heads))
            self.cross_user_bias = nn.Parameter(torch.zeros(n_heads))
        self.input_dropout = Dropout(hidden_dropout_prob)

        sizes = (hidden_size, n_heads, head_size, inner_size, hidden_dropout_prob, attn_dropout_prob)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(n_layers))
        self.encoder_norm = nn.LayerNorm(hidden_size)
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(n_decoder_layers))
        self.decoder_norm = nn.LayerNorm(hidden_size)
        self.classifiers = nn.ModuleList(nn.Linear(hidden_size, width) for width in self.widths)

        token_levels = 1 if self.token_per_item else self.levels
        farthest = max_items - 1
        self.encoder_bias = RelativeBias(
            n_heads, -farthest if bidirectional_encoder else 0, farthest, token_levels, token_levels
        )
        self.cross_bias = RelativeBias(n_heads, 1, max_items, self.levels, token_levels)
        self.self_bias = RelativeBias(n_heads, 0, 0, self.levels, self.levels)
        self.initializer_range = initializer_range
        self._initialise()

    def _initialise(self):
        std = self.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.start, std=std)
        if self.prefix_embedding is not None:
            nn.init.normal_(self.prefix_embedding.weight, std=std * PREFIX_SCALE / PREFIX_GAIN)
        for layers, branches in ((self.encoder, 2), (self.decoder, 3)):
            for layer in layers:
                for module in layer.modules():
                    if isinstance(module, Attention | FeedForward):
                        module.output.weight.data /= math.sqrt(branches * len(layers))

    @torch.no_grad()
    def start_from_text(self, text):
        """Start codes and prefixes from the text of their items, so that similar ones start as neighbours.

        What a level's code means is the mean of the text embeddings of its items, less that of their prefixes before it. One
        random projection takes it to ``hidden_size``; it is added to the random weights of embeddings and classifiers.

        Args:
            text: float tensor [n_items + 1, dim] of standardised item embeddings; row 0 is padding.
        """
        # Averages of the projected are the projected averages, and narrower.
        text = text[1:] @ torch.randn(text.shape[1], self.start.shape[0])
        paths = self.trie.paths()[1:]

        def directions(rest, labels, n):
            x = means(rest, labels, n)[0]
            return x / x.std().clamp(min=1e-6)

        rest = text
        for level, width in enumerate(self.widths):
            nodes, n_nodes = paths[:, level], self.trie.n_nodes(level)
            of_codes = directions(rest, self.codes[1:, level], width)
            begin = int(self.offsets[level])
            self.code_embedding.weight[begin : begin + width] += TEXT_SCALE * of_codes
            self.classifiers[level].weight += self.initializer_range * of_codes
            if self.prefix_embedding is not None and level:
                begin = int(self.prefix_offsets[level - 1])
                of_prefixes = directions(rest, nodes, n_nodes)
                self.prefix_embedding.weight[begin : begin + n_nodes] += self.initializer_range / PREFIX_GAIN * of_prefixes
            rest = text - means(text, nodes, n_nodes)[0][nodes]

    # --- the history ---

    def _embed_codes(self, codes):
        """Codes [..., levels] -> embeddings [..., levels, hidden_size]."""
        return self.code_embedding(codes + self.offsets)

    def encode(self, items, users=None, padded=True):
        """Encode histories.

        Args:
            items: int tensor [batch, n], padded with zeros on the left.
            users: int tensor [batch], hashed users, where the model has a user token.
            padded: whether any history is padded; False saves the masks.

        Returns:
            Memory for :meth:`decode` and :meth:`step`.
        """
        n = items.shape[1]
        x = self._embed_codes(self.codes[items])
        if self.prefix_embedding is not None:
            prefixes = self.paths[items][..., 1:] + self.prefix_offsets
            x = x + PREFIX_GAIN * F.pad(self.prefix_embedding(prefixes), (0, 0, 1, 0))
        if self.training and self.code_dropout_prob > 0:
            keep = torch.rand(x.shape[:3], device=x.device) >= self.code_dropout_prob
            x = x * keep.unsqueeze(-1)
        if self.token_per_item:
            x = x.sum(dim=2, keepdim=True)
        if self.text_projection is not None:
            x = x + self.text_projection(self.text[items]).unsqueeze(2)
        tokens = x.shape[2]
        x = x.flatten(1, 2)

        place = torch.arange(n, device=items.device)
        bias = self.encoder_bias(place[:, None] - place, causal=not self.bidirectional)
        padding = None
        if padded:
            padding = ((items == 0) * MASKED).unsqueeze(2).expand(-1, -1, tokens).flatten(1)
        if self.user_embedding is not None:
            x = torch.cat([self.user_embedding(users).unsqueeze(1), x], dim=1)
            bias = F.pad(bias, (1, 0, 1, 0))
            bias[:, 0, 1:] = 0 if self.bidirectional else MASKED
            bias[:, :, 0] = self.encoder_user_bias[:, None]
            if padding is not None:
                padding = F.pad(padding, (1, 0))
        if padding is not None:
            padding = padding[:, None, None, :]
            bias = bias + padding

        x = self.input_dropout(x)
        for layer in self.encoder:
            x = layer(x, bias)
        x = self.encoder_norm(x)
        layers = [layer.cross_attention.keys_values(x) for layer in self.decoder]
        return Memory(layers, items, padding)

    def _cross_bias(self, memory, targets, level=None):
        """Bias of the last ``targets`` targets (of every level, or of one) against the tokens of the memory."""
        place = torch.arange(memory.items.shape[1], device=self.start.device)
        distances = place[-targets:, None] + 1 - place
        bias = self.cross_bias(distances, causal=True)
        if self.user_embedding is not None:
            bias = F.pad(bias, (1, 0))
            bias[:, :, 0] = self.cross_user_bias[:, None]
        if level is not None:
            bias = bias[:, level : level + 1]
        return bias if memory.padding is None else bias + memory.padding

    # --- the next item ---

    def decode(self, memory, codes, shared=False):
        """Predict given target IDs, each level from those before it (teacher forcing), all targets in parallel.

        Args:
            memory: of :meth:`encode`.
            codes: int tensor [batch, targets, levels]. Target t of T follows item n - T + t of the history (that is, sees
                all items up to that one), unless ``shared``: then every target follows the whole history.

        Returns:
            What each level is predicted from, [batch, targets, levels, hidden_size], for :meth:`choices`.
        """
        batch, targets, levels = codes.shape
        start = self.start.expand(batch, targets, 1, -1)
        x = torch.cat([start, self._embed_codes(codes)[:, :, :-1]], dim=2).flatten(1, 2)
        x = self.input_dropout(x)

        distance = torch.zeros(1, 1, dtype=torch.long, device=codes.device)
        later = torch.ones(levels, levels, dtype=torch.bool, device=codes.device).triu(1)
        self_bias = self.self_bias(distance, causal=False).masked_fill(later, MASKED)
        cross_bias = self._cross_bias(memory, 1).tile((targets, 1)) if shared else self._cross_bias(memory, targets)
        for layer, (keys, values) in zip(self.decoder, memory.layers, strict=True):
            x = layer(x, targets, self_bias, keys, values, cross_bias)
        return self.decoder_norm(x).view(batch, targets, levels, -1)

    def step(self, memory, level, codes, past, rows):
        """Decode one level of some prefixes, from the keys and values of the levels before.

        Args:
            memory: of :meth:`encode`.
            level: the level to predict, 0 first.
            codes: int tensor [rows], the code before (ignored at level 0).
            past: per decoder layer the list of keys and values of the levels before, each [rows, n_heads, head_size].
            rows: :class:`Rows`, which prefixes they are.

        Returns:
            what the level is predicted from, [rows, hidden_size], for :meth:`log_probs`; per decoder layer keys and values
            of this level.
        """
        x = self.code_embedding(codes + self.offsets[level - 1]) if level else self.start.expand(len(rows.users), -1)
        place = torch.zeros(1, 1, dtype=torch.long, device=x.device)
        self_bias = self.self_bias(place, causal=False)[:, level, : level + 1]
        cross_bias = self._cross_bias(memory, 1, level)
        found = []
        for layer, before, (keys, values) in zip(self.decoder, past, memory.layers, strict=True):
            x, own = layer.step(x, rows, before, self_bias, keys, values, cross_bias)
            found.append(own)
        return self.decoder_norm(x), found

    # --- probabilities of codes ---

    def choices(self, hidden, level, items, history):
        """What a level's softmax is over, and which of it belongs to given items.

        Args:
            hidden: [..., hidden_size] of this level, of :meth:`decode`.
            items: int tensor [...] of the items whose codes before the level were decoded.
            history: int tensor [..., n] of the items before each of them, padded with zeros on the left.

        Returns:
            float32 logits [..., n], -inf where ``trie_softmax`` leaves a code out; what ``history_bias`` adds to them, of
            the same shape or 0; and indices [...] into them.
        """
        if not self.trie_softmax:
            return self.classifiers[level](hidden).float(), 0, self.codes[items, level]
        parents = self.paths[items, level - 1] if level else torch.zeros_like(items)
        child, codes, exists = self.trie.expand(parents, level)
        logits = self._child_logits(hidden, level, child, codes, exists)
        return logits, self._of_history(history, level, child, exists), self.paths[items, level] - child[..., 0]

    def log_probs(self, hidden, level, child, codes, exists, history):
        """Log-probabilities of the nodes of the trie that follow a prefix.

        Args:
            hidden: [rows, hidden_size], of :meth:`step`.
            child, codes, exists: of :meth:`Trie.expand`, for the prefix of each row, [rows, n].
            history: int tensor [rows, items] of the items before, padded with zeros on the left.

        Returns:
            float32 tensor [rows, n], -inf where there is no such node.
        """
        if self.trie_softmax:
            logits = self._child_logits(hidden, level, child, codes, exists)
            return (logits + self._of_history(history, level, child, exists)).log_softmax(dim=-1)
        log_probs = self.classifiers[level](hidden).float().log_softmax(dim=-1).gather(-1, codes)
        return log_probs.masked_fill(~exists, -torch.inf)

    def _child_logits(self, hidden, level, child, codes, exists):
        logits = self.classifiers[level](hidden).gather(-1, codes)
        if self.prefix_embedding is not None and level:
            logits = self._add_prefixes(logits, PREFIX_GAIN * hidden, child + self.prefix_offsets[level - 1], exists)
        return logits.float().masked_fill(~exists, -torch.inf)

    def _add_prefixes(self, logits, hidden, prefixes, exists):
        """Add to the logits of children what the embeddings of their prefixes say."""
        if logits.is_cuda:  # to leave out the children that do not exist, the host would wait for their number
            of_prefixes = torch.matmul(self.prefix_embedding(prefixes), hidden.unsqueeze(-1)).squeeze(-1)
            return logits + of_prefixes.to(logits.dtype)
        # One prefix may have thousands of children, as items of one text are, and most others few.
        counts, hidden = exists.sum(dim=-1).flatten(), hidden.flatten(0, -2)
        if torch.is_grad_enabled():
            parent = hidden.repeat_interleave(counts, dim=0)
            of_prefixes = (self.prefix_embedding(prefixes[exists]) * parent).sum(dim=-1)
        else:
            of_prefixes = products(hidden, self.prefix_embedding.weight, prefixes[exists], counts)
        return logits.masked_scatter(exists, logits[exists] + of_prefixes.to(logits.dtype))

    def _of_history(self, history, level, child, exists):
        """What ``history_bias`` adds to the logits of ``child``; 0 without it."""
        if self.history_bias is None:
            return 0
        return self.history_bias(level, child, exists, self.paths[history, level].masked_fill(history == 0, -1))
