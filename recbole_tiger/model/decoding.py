"""From a history to items: beam search, exact scores of the whole catalogue, likelihood of given items."""

import torch

# Prefixes that the exact scorer expands at once over the users of a slice, to bound its memory.
EXACT_BUDGET = 4096


def _reorder(caches, parents):
    """Take the cached keys and values of ``parents`` [batch, beams] out of [batch, prefixes, ...].

    A level of a single prefix, as the first, is every beam's and stays as it is.
    """
    batch = torch.arange(len(parents), device=parents.device).unsqueeze(1)

    def taken(cache):
        prefixes = cache.shape[1]
        if prefixes == 1:
            return cache
        return cache.flatten(0, 1).index_select(0, (batch * prefixes + parents).flatten()).unflatten(0, parents.shape)

    return [[tuple(map(taken, pair)) for pair in layer] for layer in caches]


@torch.no_grad()
def beam_search(net, memory, beam_size):
    """The ``beam_size`` most likely items that a beam finds, best first.

    A score is the sum of the codes' log-probabilities in float32. Every prefix of the trie leads to an item, so a beam no
    wider than the catalogue always ends with as many items as it is wide.

    Returns:
        items (RecBole's ids) and scores, each [batch, beam_size].
    """
    trie = net.trie
    batch = len(memory.items)
    device = trie.item_of.device
    scores = torch.zeros(batch, 1, device=device)
    nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
    codes, caches = None, None
    for level in range(trie.levels):
        hidden, caches = net.step(memory, level, codes, caches)
        child, child_codes, _, log_probs = net.continuations(memory, hidden, level, nodes)
        candidates = (scores.unsqueeze(-1) + log_probs).flatten(1)
        scores, picked = candidates.topk(min(beam_size, trie.n_nodes(level)), dim=1)
        parents = picked // child.shape[-1]
        nodes = child.flatten(1).gather(1, picked)
        codes = child_codes.flatten(1).gather(1, picked)
        if level + 1 < trie.levels:
            caches = _reorder(caches, parents)
    return trie.item_of[nodes].long(), scores


@torch.no_grad()
def exact_scores(net, memory_of, n_histories):
    """Log-likelihood of every item for every history: walks the whole trie, each distinct prefix once.

    Args:
        memory_of: function of a slice of histories to their Memory.
        n_histories: number of histories.

    Returns:
        float32 tensor [n_histories, n_items + 1]; -inf for the padding item 0.
    """
    trie = net.trie
    inner = max(trie.n_nodes(level) for level in range(trie.levels - 1)) if trie.levels > 1 else 1
    histories = max(1, EXACT_BUDGET // inner)
    rows = []
    for begin in range(0, n_histories, histories):
        memory = memory_of(slice(begin, min(begin + histories, n_histories)))
        rows.append(_walk(net, memory))
    return torch.cat(rows)


def _walk(net, memory):
    trie = net.trie
    batch = len(memory.items)
    scores = torch.zeros(batch, 1, device=trie.item_of.device)
    parents, codes, caches = None, torch.zeros(1, dtype=torch.long, device=scores.device), None
    for level in range(trie.levels):
        log_probs, kept = [], []
        for part in torch.arange(scores.shape[1], device=scores.device).split(EXACT_BUDGET):
            before = caches and _reorder(caches, parents[part].expand(batch, -1))
            hidden, before = net.step(memory, level, codes[part].expand(batch, -1), before)
            _, _, exists, log_prob = net.continuations(memory, hidden, level, part.expand(batch, -1))
            # Children of neighbouring nodes are neighbours: what exists of them is the next level in its order.
            log_probs.append(log_prob[:, exists[0]])
            kept.append(before)
        if level + 1 < trie.levels:
            caches = [
                [tuple(map(_joined, zip(*pairs, strict=True))) for pairs in zip(*layer, strict=True)]
                for layer in zip(*kept, strict=True)
            ]
        parents, codes = trie.all_nodes(level)
        scores = scores[:, parents] + torch.cat(log_probs, dim=1)
    result = scores.new_full((batch, len(trie.item_of) + 1), -torch.inf)
    result[:, trie.item_of.long()] = scores
    return result


def _joined(pieces):
    """Pieces [batch, prefixes of the piece, ...] -> [batch, prefixes, ...]; a level of a single prefix is in every piece."""
    return pieces[0] if pieces[0].shape[1] == 1 else torch.cat(pieces, dim=1)


def log_likelihood(net, memory, items):
    """Log-likelihood of given items after the whole history, by teacher forcing.

    Args:
        items: int tensor [batch, candidates].

    Returns:
        float32 tensor [batch, candidates].
    """
    return log_probs_of_levels(net, memory, items).sum(dim=-1)


def log_probs_of_levels(net, memory, items):
    """The parts of :func:`log_likelihood`, float32 tensor [batch, candidates, levels]."""
    hidden = net.decode(memory, net.codes[items], shared=True)
    parts = []
    for level in range(net.levels):
        logits, of_history, own = net.choices(hidden[:, :, level], level, items, memory.items.unsqueeze(1))
        parts.append((logits + of_history).log_softmax(dim=-1).gather(-1, own.unsqueeze(-1)))
    return torch.cat(parts, dim=-1)
