"""A reference implementation of the model: one history, one target, one token at a time; slow but easy to check."""

import math

import torch

from recbole_tiger.model.layers import BIAS_SCALE
from recbole_tiger.model.softmax import PREFIX_GAIN
from recbole_tiger.model.tiger import make_network


def small_network(seed=0, n_items=30, codes=None, **changes):
    """A network with random weights, including those that start at zero in training; by default with random codes."""
    generator = torch.Generator().manual_seed(seed)
    if codes is None:
        codes = torch.unique(torch.randint(0, 4, (n_items * 3, 3), generator=generator), dim=0)
        codes = codes[torch.randperm(len(codes), generator=generator)[:n_items]]
    codes = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.as_tensor(codes)])
    settings = {
        "hidden_size": 12,
        "n_heads": 3,
        "head_size": 5,
        "inner_size": 20,
        "n_layers": 2,
        "n_decoder_layers": 2,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
        "code_dropout_prob": 0.0,
        "MAX_ITEM_LIST_LENGTH": 6,
        "encoder_tokens": "code",
        "bidirectional_encoder": False,
        "n_user_tokens": 0,
        "initializer_range": 0.3,
        "trie_softmax": False,
        "prefix_embedding": False,
        "history_bias": False,
        **changes,
    }
    text = torch.randn(len(codes) - 1, 7, generator=generator) if settings.pop("text", False) else None
    widths = (codes.max(dim=0).values + 1).tolist()
    torch.manual_seed(seed)
    network = make_network(codes, widths, text, settings).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1, generator=generator)
    return network


def attend(attention, queries, keys, bias):
    """Outputs of attention for lists of vectors; ``bias(h, q, k)`` is added, None masks."""
    heads, size = attention.n_heads, attention.head_size
    key_value = [attention.key_value(key) for key in keys]
    outputs = []
    for q, vector in enumerate(queries):
        query = attention.query(vector)
        mixed = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            seen = [k for k in range(len(keys)) if bias(h, q, k) is not None]
            scores = torch.stack(
                [query[part] @ key_value[k][: heads * size][part] / math.sqrt(size) + bias(h, q, k) for k in seen]
            )
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            mixed.append(sum(w * key_value[k][heads * size :][part] for w, k in zip(weights, seen, strict=True)))
        outputs.append(attention.output(torch.cat(mixed)))
    return outputs


def feed(layer, x):
    y = layer.feed_forward_norm(x)
    return x + layer.feed_forward.output(torch.relu(layer.feed_forward.inner(y)))


def prefix_vector(network, prefix):
    """The embedding of a prefix: rows are ordered by the prefix's length, then by its codes."""
    if network.softmax.prefixes is None or len(prefix) == 1:
        return torch.zeros(())
    lengths = range(2, network.levels + 1)
    rows = [row for n in lengths for row in sorted({tuple(codes[:n]) for codes in network.codes[1:].tolist()})]
    return PREFIX_GAIN * network.softmax.prefixes.table.weight[rows.index(tuple(prefix))]


@torch.no_grad()
def read_history(network, history, user=None):
    """The encoder's output for a history (item ids), a list of vectors, and the place of each."""
    levels, offsets = network.levels, network.offsets.tolist()
    codes = network.codes.tolist()
    tokens, place = [], []  # the encoder's tokens and (item position, level) of each; None for the user
    if user is not None:
        tokens.append(network.users.table.weight[user])
        place.append(None)
    for i, item in enumerate(history):
        vectors = [
            network.code_embedding.weight[codes[item][level] + offsets[level]]
            + prefix_vector(network, codes[item][: level + 1])
            for level in range(levels)
        ]
        if network.token_per_item:
            vectors = [sum(vectors)]
        for level, vector in enumerate(vectors):
            if network.text is not None:
                vector = vector + network.text.projection(network.text.embeddings[item])
            tokens.append(vector)
            place.append((i, level))

    def encoder_bias(h, q, k):
        if place[k] is None:
            return network.users.encoder_bias[h]
        if place[q] is None:
            return torch.zeros(()) if network.bidirectional else None
        (i, a), (j, b) = place[q], place[k]
        if j > i and not network.bidirectional:
            return None
        table = network.encoder_bias
        return BIAS_SCALE * (table.distance[h, i - j - table.first] + table.levels[h, a, b])

    x = tokens
    for layer in network.encoder:
        y = [layer.attention_norm(v) for v in x]
        x = [v + a for v, a in zip(x, attend(layer.attention, y, y, encoder_bias), strict=True)]
        x = [feed(layer, v) for v in x]
    return [network.encoder_norm(v) for v in x], place


@torch.no_grad()
def level_states(network, history, target, user=None, memory=None):
    """Hidden states that predict each code of ``target`` after ``history``, given the codes before it."""
    memory, place = memory or read_history(network, history, user)
    codes, offsets = network.codes.tolist(), network.offsets.tolist()

    def self_bias(h, q, k):
        table = network.self_bias
        return None if k > q else BIAS_SCALE * (table.distance[h, 0] + table.levels[h, q, k])

    def cross_bias(h, q, k):
        if place[k] is None:
            return network.users.cross_bias[h]
        j, b = place[k]
        table = network.cross_bias
        return BIAS_SCALE * (table.distance[h, len(history) - j - 1] + table.levels[h, q, b])

    x = [network.start]
    x += [network.code_embedding.weight[codes[target][level] + offsets[level]] for level in range(network.levels - 1)]
    for layer in network.decoder:
        y = [layer.self_norm(v) for v in x]
        x = [v + a for v, a in zip(x, attend(layer.self_attention, y, y, self_bias), strict=True)]
        y = [layer.cross_norm(v) for v in x]
        x = [v + a for v, a in zip(x, attend(layer.cross_attention, y, memory, cross_bias), strict=True)]
        x = [feed(layer, v) for v in x]
    return [network.decoder_norm(v) for v in x]


def history_logit(network, history, prefix):
    """What the items of a history add to the logit of the last code of ``prefix``."""
    bias, level = network.softmax.history_bias, len(prefix) - 1
    if bias is None:
        return 0.0
    under = [item for item, codes in enumerate(network.codes.tolist()) if item and codes[: level + 1] == prefix]
    logit = 0.0
    for ago, item in enumerate(reversed(history)):
        if item in under:
            logit += BIAS_SCALE * (bias.of_level[level] + bias.of_distance[level, ago]) / len(under)
    return logit


@torch.no_grad()
def choices(network, state, prefix, history):
    """Log-probabilities of all choices of the softmax after the codes ``prefix``."""
    level = len(prefix)
    continues = {codes[level] for codes in network.codes[1:].tolist() if codes[:level] == prefix}
    logits = {
        code: network.softmax.classifiers[level](state)[code]
        + (prefix_vector(network, [*prefix, code]) * state if code in continues else torch.zeros(())).sum()
        + history_logit(network, history, [*prefix, code])
        for code in (continues if network.softmax.over_children else range(network.widths[level]))
    }
    total = torch.stack(list(logits.values())).logsumexp(0)
    return {code: (logit - total).item() for code, logit in logits.items()}


def log_probs(network, history, user=None):
    """Log-probabilities of the codes of every item's semantic ID, [n_items, levels]."""
    memory = read_history(network, history, user)
    rows = []
    for item, codes in enumerate(network.codes[1:].tolist(), start=1):
        states = level_states(network, history, item, memory=memory)
        rows.append([choices(network, states[level], codes[:level], history)[code] for level, code in enumerate(codes)])
    return torch.tensor(rows)
