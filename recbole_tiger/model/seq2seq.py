"""The Transformer encoder-decoder over semantic IDs (Rajput et al. 2023, section 3.2)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from recbole_tiger.catalogue.quantizers.kmeans import means
from recbole_tiger.catalogue.quantizers.rq_vae import mean_and_scale, scaled
from recbole_tiger.model.layers import MASKED, Attention, DecoderLayer, Dropout, EncoderLayer, FeedForward, RelativeBias
from recbole_tiger.model.softmax import PREFIX_GAIN, PREFIX_SCALE

# Standard deviation of the text's part of the initial code embeddings: large enough to matter beside the layers' outputs.
TEXT_SCALE = 0.5


class Memory(NamedTuple):
    """The encoded histories of a batch, for the decoder.

    Attributes:
        layers: per decoder layer keys and values, float tensors [batch, n_heads, tokens, head_size].
        items: int tensor [batch, n], padded with zeros on the left.
        padding: tensor [batch, 1, 1, tokens] of 0 and MASKED, or None if no history is padded.
    """

    layers: list
    items: torch.Tensor
    padding: torch.Tensor | None


class TextInput(nn.Module):
    """Projection of an item's text embedding, which is added to the item's tokens in the encoder.

    Args:
        embeddings: float tensor [n_items, dim].
    """

    def __init__(self, embeddings, hidden_size):
        super().__init__()
        mean, scale = mean_and_scale(embeddings)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("embeddings", F.pad(scaled(embeddings, mean, scale), (0, 0, 1, 0)))
        self.projection = nn.Linear(embeddings.shape[1], hidden_size)

    def forward(self, items):
        """Items [...] -> [..., hidden_size]."""
        return self.projection(self.embeddings[items])


class UserToken(nn.Module):
    """A token of the hashed user before the history (paper section 3.2), with its own attention biases."""

    def __init__(self, n_user_tokens, hidden_size, n_heads):
        super().__init__()
        self.table = nn.Embedding(n_user_tokens, hidden_size)
        self.encoder_bias = nn.Parameter(torch.zeros(n_heads))
        self.cross_bias = nn.Parameter(torch.zeros(n_heads))


class Seq2Seq(nn.Module):
    """Encodes the semantic IDs of a history and predicts the ID of the next item, level by level.

    Args:
        codes: int tensor [n_items + 1, levels]; row 0 is padding, row i the semantic ID of RecBole's item i.
        trie: of the same codes. widths: number of codes of each level.
        sizes: :class:`~recbole_tiger.model.layers.Sizes` of a layer.
        softmax: :class:`~recbole_tiger.model.softmax.FullSoftmax` or ``TrieSoftmax``. If it has prefix embeddings, the
            encoder adds them to the code embeddings.
        n_layers, n_decoder_layers: number of layers of the encoder and of the decoder.
        max_items: length of the longest history (``MAX_ITEM_LIST_LENGTH``).
        token_per_item: one encoder token per item, the sum of its codes, instead of one per code (as in the paper).
        bidirectional: items also see later items (as in the paper; one target per history), instead of only earlier ones.
        code_dropout_prob: probability that a code of the input is hidden from the encoder in training.
        initializer_range: standard deviation of the initial weights.
        text: :class:`TextInput`, or None. users: :class:`UserToken`, or None.
    """

    def __init__(
        self,
        codes,
        trie,
        widths,
        sizes,
        softmax,
        *,
        n_layers,
        n_decoder_layers,
        max_items,
        token_per_item,
        bidirectional,
        code_dropout_prob,
        initializer_range,
        text=None,
        users=None,
    ):
        super().__init__()
        self.levels = codes.shape[1]
        self.widths = widths
        self.bidirectional, self.token_per_item = bidirectional, token_per_item
        self.code_dropout_prob = code_dropout_prob
        self.register_buffer("codes", codes)
        self.register_buffer("offsets", torch.tensor([0, *self.widths[:-1]]).cumsum(0), persistent=False)
        self.trie = trie
        self.code_embedding = nn.Embedding(sum(self.widths), sizes.hidden_size)
        self.softmax, self.text, self.users = softmax, text, users
        self.start = nn.Parameter(torch.zeros(sizes.hidden_size))
        self.input_dropout = Dropout(sizes.hidden_dropout_prob)

        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(n_layers))
        self.encoder_norm = nn.LayerNorm(sizes.hidden_size)
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(n_decoder_layers))
        self.decoder_norm = nn.LayerNorm(sizes.hidden_size)

        token_levels = 1 if token_per_item else self.levels
        first, last = (1 - max_items if bidirectional else 0), max_items - 1
        self.encoder_bias = RelativeBias(sizes.n_heads, first, last, token_levels, token_levels)
        self.cross_bias = RelativeBias(sizes.n_heads, 1, max_items, self.levels, token_levels)
        self.self_bias = RelativeBias(sizes.n_heads, 0, 0, self.levels, self.levels)
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
        if self.softmax.prefixes is not None:
            nn.init.normal_(self.softmax.prefixes.table.weight, std=std * PREFIX_SCALE / PREFIX_GAIN)
        for layers, branches in ((self.encoder, 2), (self.decoder, 3)):
            for layer in layers:
                for module in layer.modules():
                    if isinstance(module, Attention | FeedForward):
                        module.output.weight.data /= math.sqrt(branches * len(layers))

    @torch.no_grad()
    def start_from_text(self, text):
        """Initialise codes and prefixes from the text of their items, so that similar codes start close to each other.

        The direction of a code is the mean, over its items, of the text embedding minus the mean text embedding of the items
        with the same prefix before the level. One random projection maps directions to ``hidden_size``; they are added to
        the random weights of embeddings and classifiers.

        Args:
            text: float tensor [n_items + 1, dim] of standardised item embeddings; row 0 is padding.
        """
        # Project before averaging: the result is the same, and the averages are narrower.
        text = text[1:] @ torch.randn(text.shape[1], self.start.shape[0])
        paths = self.trie.paths()[1:]

        def directions(rest, labels, n):
            x = means(rest, labels, n)[0]
            return x / x.std().clamp(min=1e-6)

        rest = text
        for level, width in enumerate(self.widths):
            nodes, n_nodes = paths[:, level], self.trie.n_nodes(level)
            code_directions = directions(rest, self.codes[1:, level], width)
            begin = int(self.offsets[level])
            self.code_embedding.weight[begin : begin + width] += TEXT_SCALE * code_directions
            self.softmax.classifiers[level].weight += self.initializer_range * code_directions
            if (prefixes := self.softmax.prefixes) is not None and level:
                added = self.initializer_range / PREFIX_GAIN * directions(rest, nodes, n_nodes)
                prefixes.table.weight[prefixes.rows(level)] += added
            rest = text - means(text, nodes, n_nodes)[0][nodes]

    # --- the history ---

    def _embed_codes(self, codes):
        """Codes [..., levels] -> embeddings [..., levels, hidden_size]."""
        return self.code_embedding(codes + self.offsets)

    def encode(self, items, users=None, padded=True):
        """Encode histories.

        Args:
            items: int tensor [batch, n], padded with zeros on the left.
            users: int tensor [batch] of hashed users, if the model has a user token.
            padded: whether any history is padded; False skips the masks.

        Returns:
            Memory for :meth:`decode` and :meth:`step`.
        """
        n = items.shape[1]
        x = self._embed_codes(self.codes[items])
        if self.softmax.prefixes is not None:
            x = x + self.softmax.prefixes(items)
        if self.training and self.code_dropout_prob > 0:
            keep = torch.rand(x.shape[:3], device=x.device) >= self.code_dropout_prob
            x = x * keep.unsqueeze(-1)
        if self.token_per_item:
            x = x.sum(dim=2, keepdim=True)
        if self.text is not None:
            x = x + self.text(items).unsqueeze(2)
        tokens = x.shape[2]
        x = x.flatten(1, 2)

        place = torch.arange(n, device=items.device)
        bias = self.encoder_bias(place[:, None] - place, causal=not self.bidirectional)
        padding = None
        if padded:
            padding = ((items == 0) * MASKED).unsqueeze(2).expand(-1, -1, tokens).flatten(1)
        if self.users is not None:
            x = torch.cat([self.users.table(users).unsqueeze(1), x], dim=1)
            bias = F.pad(bias, (1, 0, 1, 0))
            bias[:, 0, 1:] = 0 if self.bidirectional else MASKED
            bias[:, :, 0] = self.users.encoder_bias[:, None]
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
        """Attention bias from the last ``targets`` targets, at one level or at all levels, to the tokens of the memory."""
        place = torch.arange(memory.items.shape[1], device=self.start.device)
        distances = place[-targets:, None] + 1 - place
        bias = self.cross_bias(distances, causal=True)
        if self.users is not None:
            bias = F.pad(bias, (1, 0))
            bias[:, :, 0] = self.users.cross_bias[:, None]
        if level is not None:
            bias = bias[:, level : level + 1]
        return bias if memory.padding is None else bias + memory.padding

    # --- the next item ---

    def decode(self, memory, codes, shared=False):
        """Decode given target IDs with teacher forcing, all targets in parallel.

        Args:
            memory: from :meth:`encode`.
            codes: int tensor [batch, targets, levels].
            shared: whether every target follows the whole history. Otherwise target t of T follows item n - T + t of the
                history, that is, it sees all items up to that one.

        Returns:
            hidden states that predict each level, [batch, targets, levels, hidden_size], for the softmax's ``choices``.
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
            memory: from :meth:`encode`.
            level: the level to predict, from 0.
            codes: int tensor [rows], the code before the level (ignored at level 0).
            past: per decoder layer the list of keys and values of the levels before, each [rows, n_heads, head_size].
            rows: :class:`~recbole_tiger.model.layers.Rows` of the prefixes.

        Returns:
            hidden states that predict the level, [rows, hidden_size], for the softmax's ``log_probs``; per decoder layer the
            keys and values of this level.
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
