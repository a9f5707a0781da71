"""The Transformer encoder-decoder over semantic IDs (Rajput et al. 2023, section 3.2)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from recbole_tiger.catalogue.quantizers.kmeans import means
from recbole_tiger.model.layers import MASKED, Attention, DecoderLayer, Dropout, EncoderLayer, FeedForward, RelativeBias
from recbole_tiger.model.softmax import PREFIX_GAIN, PREFIX_SCALE

# Standard deviation of what the text gives to the first embeddings of codes: enough to be heard beside the layers' outputs.
TEXT_SCALE = 0.5


def widths_of(codes):
    """Number of codes of each level, up to the largest that an item has; ``codes`` int tensor [n_items + 1, levels]."""
    return (codes[1:].max(dim=0).values + 1).tolist()


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


class TextInput(nn.Module):
    """What an item's text adds to its tokens in the encoder.

    Args:
        embeddings: float tensor [n_items + 1, dim], standardised; row 0 is padding.
    """

    def __init__(self, embeddings, hidden_size):
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        self.projection = nn.Linear(embeddings.shape[1], hidden_size)

    def forward(self, items):
        """Items [...] -> [..., hidden_size]."""
        return self.projection(self.embeddings[items])


class UserToken(nn.Module):
    """A token of the hashed user before the history (paper section 3.2), with biases of its own in place of a distance."""

    def __init__(self, n_user_tokens, hidden_size, n_heads):
        super().__init__()
        self.table = nn.Embedding(n_user_tokens, hidden_size)
        self.encoder_bias = nn.Parameter(torch.zeros(n_heads))
        self.cross_bias = nn.Parameter(torch.zeros(n_heads))


class Seq2Seq(nn.Module):
    """Reads the semantic IDs of a history, predicts that of the next item level by level.

    Args:
        codes: int tensor [n_items + 1, levels]; row 0 is padding, row i the semantic ID of RecBole's item i.
        trie: of the same codes.
        sizes: :class:`~recbole_tiger.model.layers.Sizes` of a layer.
        softmax: :class:`~recbole_tiger.model.softmax.FullSoftmax` or ``TrieSoftmax``; where it has embeddings of prefixes,
            these are added to those of the codes in the encoder, too.
        n_layers, n_decoder_layers: layers of the encoder and of the decoder.
        max_items: longest history (``MAX_ITEM_LIST_LENGTH``).
        token_per_item: one encoder token an item, the sum of its codes, instead of one a code (the paper's).
        bidirectional: items see those after them too (the paper's; one target a history), or only those before.
        code_dropout_prob: probability that a code of the input is hidden from the encoder in training.
        initializer_range: standard deviation of the initial weights.
        text: :class:`TextInput`, or None. users: :class:`UserToken`, or None.
    """

    def __init__(
        self,
        codes,
        trie,
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
        self.widths = widths_of(codes)
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
            self.softmax.classifiers[level].weight += self.initializer_range * of_codes
            if (prefixes := self.softmax.prefixes) is not None and level:
                of_prefixes = directions(rest, nodes, n_nodes)
                prefixes.table.weight[prefixes.rows(level)] += self.initializer_range / PREFIX_GAIN * of_prefixes
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
        """Bias of the last ``targets`` targets (of every level, or of one) against the tokens of the memory."""
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
        """Predict given target IDs, each level from those before it (teacher forcing), all targets in parallel.

        Args:
            memory: of :meth:`encode`.
            codes: int tensor [batch, targets, levels]. Target t of T follows item n - T + t of the history (that is, sees
                all items up to that one), unless ``shared``: then every target follows the whole history.

        Returns:
            What each level is predicted from, [batch, targets, levels, hidden_size], for the softmax's ``choices``.
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
            what the level is predicted from, [rows, hidden_size], for the softmax's ``log_probs``; per decoder layer keys
            and values of this level.
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
