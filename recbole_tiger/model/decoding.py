"""From a history to items: beam search, exact scores of the whole catalogue, likelihood of given items."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from recbole_tiger.model.layers import Rows

# Prefixes that the exact scorer expands at once over the users of a slice, to bound its memory.
EXACT_BUDGET = 4096


class Prefixes:
    """The prefixes that a search has alive, as a table [batch, prefixes], and what of them was decoded.

    A level of a prefix is decoded where its softmax is asked for. With ``trie_softmax`` the only child of a node has
    probability 1, so a prefix goes on through it undecoded, until the trie branches below and attention needs its keys and
    values after all.

    Args:
        net: a :class:`~recbole_tiger.model.seq2seq.Seq2Seq`. memory: of its ``encode``.
    """

    def __init__(self, net, memory):
        self.net, self.memory = net, memory
        start = torch.zeros(len(memory.items), 1, dtype=torch.long, device=memory.items.device)
        # For each level: the code before it, and which row of its keys and values a prefix has; -1 for none.
        self.codes, self.row = [start], [start - 1]
        self.pairs = []  # for each level, for each decoder layer: keys and values, each [rows, n_heads, head_size]

    def softmax_of(self, counts):
        """Which prefixes have a softmax that is to be computed, given their numbers of children; None for all.

        On a GPU all have: to choose them the host would have to wait for it.
        """
        if not self.net.softmax.knows_only_children or counts.is_cuda:
            return None
        wanted = counts > 1
        return None if bool(wanted.all()) else wanted

    def decode(self, level, wanted):
        """What ``level`` is predicted from, for the prefixes that a bool table names; None for all.

        Returns:
            :class:`~recbole_tiger.model.layers.Rows`; float tensor [rows, hidden_size].
        """
        if wanted is not None:
            for earlier in range(level):
                missing = wanted & (self.row[earlier] < 0)
                if bool(missing.any()):
                    self._step(earlier, Rows.where(missing))
        rows = Rows.all_of(self.row[level]) if wanted is None else Rows.where(wanted)
        return rows, self._step(level, rows)

    def _step(self, level, rows):
        past = [[] for _ in self.net.decoder]
        for earlier in range(level):
            of = rows.of(self.row[earlier])
            for layer, (keys, values) in zip(past, self.pairs[earlier], strict=True):
                layer.append((keys[of], values[of]))
        hidden, pairs = self.net.step(self.memory, level, rows.of(self.codes[level]), past, rows)
        first = 0
        if level < len(self.pairs):
            first = len(self.pairs[level][0][0])
            joined = zip(self.pairs[level], pairs, strict=True)
            self.pairs[level] = [tuple(map(torch.cat, zip(*layer, strict=True))) for layer in joined]
        else:
            self.pairs.append(pairs)
        numbers = torch.arange(first, first + len(hidden), device=hidden.device)
        if rows.index is None:
            self.row[level] = numbers.view(self.row[level].shape)
        else:
            self.row[level].view(-1)[rows.index] = numbers
        return hidden

    def go_on(self, parents, codes):
        """Let the prefixes be those of one more code, ``codes`` [batch, prefixes], each behind one of ``parents``."""
        self.codes = [*(table.gather(1, parents) for table in self.codes), codes]
        self.row = [*(table.gather(1, parents) for table in self.row), torch.full_like(codes, -1)]


class Allowed(NamedTuple):
    """The items that may be in a list: the same for all histories, but for some that each leaves out.

    Attributes:
        below: for each level, int tensor [nodes] of how many items of the set a node of the trie leads to.
        left_out: int tensor [batch, n, levels], the nodes of the items that each list leaves out, -1 for none; or None.
    """

    below: list
    left_out: torch.Tensor | None

    @classmethod
    def of(cls, trie, among=None, left_out=None):
        """Those of the catalogue of a trie.

        Args:
            among: bool tensor [n_items + 1] of the set, or None for all items.
            left_out: int tensor [batch, n] of items that a list leaves out, different ones, padded with zeros; or None.
        """
        items = trie.item_of.long()
        below = [torch.ones_like(items) if among is None else among[items].long()]
        for level in reversed(range(1, trie.levels)):
            total = F.pad(below[0].cumsum(0), (1, 0))
            first = trie.get_buffer(f"first_child_{level}").long()
            below.insert(0, total[first[1:]] - total[first[:-1]])
        if left_out is not None:
            counted = left_out > 0 if among is None else among[left_out] & (left_out > 0)
            left_out = trie.paths()[left_out].masked_fill(~counted.unsqueeze(-1), -1)
        return cls(below, left_out)

    def part(self, rows):
        """The same for some of the histories."""
        return self if self.left_out is None else self._replace(left_out=self.left_out[rows])

    def leads_to_one(self, level, child):
        """Which of the ``child`` [batch, prefixes, n] of :meth:`Trie.expand` lead to such an item."""
        count = self.below[level][child]
        if self.left_out is not None:
            place = self.left_out[:, None, :, level] - child[..., :1]
            under = (place >= 0) & (place < child.shape[-1])
            count = count.scatter_add(-1, place.clamp(0, child.shape[-1] - 1), -under.long())
        return count > 0


def _perturbed(parents, log_probs, noise):
    """Gumbel noise of children whose largest is their parent's: so the best of all leaves lie below the best of each level.

    Kool et al. 2019, "Stochastic Beams and Where to Find Them", appendix B.3.

    Args:
        parents: float tensor [...], perturbed log-probability of the parent.
        log_probs: float tensor [..., n] of the children, in all; noise: of the same shape.

    Returns:
        float tensor [..., n], -inf where a log-probability is.
    """
    own = log_probs + noise
    largest = own.max(dim=-1, keepdim=True).values
    parents = parents.unsqueeze(-1)
    v = parents - own + torch.log1p(-(own - largest).exp())
    found = parents - v.clamp(min=0) - torch.log1p((-v.abs()).exp())
    return torch.where(own == largest, parents, found).masked_fill(log_probs.isneginf(), -torch.inf)


@torch.no_grad()
def beam_search(net, memory, beam_size, allowed=None, draw=None):
    """The ``beam_size`` most likely items that a beam finds, best first; or drawn ones, in their order.

    A score is the sum of the codes' log-probabilities in float32. Every prefix of the trie leads to an item, so a beam no
    wider than the catalogue always ends with as many items as it is wide.

    Args:
        allowed: :class:`Allowed`, or None for all items. Where fewer are allowed than the beam is wide, the last have scores
            of -inf.
        draw: :class:`~recbole_tiger.model.draw.Draw`, to draw items without replacement from the distribution in which each
            level's is that of the codes that lead to an allowed item, at a temperature; None for the most likely.

    Returns:
        items (RecBole's ids) and scores, each [batch, beam_size].
    """
    trie, prefixes = net.trie, Prefixes(net, memory)
    scores = torch.zeros(len(memory.items), 1, device=trie.item_of.device)
    nodes = torch.zeros_like(scores, dtype=torch.long)
    if draw is not None:
        tempered = perturbed = torch.zeros_like(scores, dtype=torch.double)
    for level in range(trie.levels):
        child, codes, exists = trie.expand(nodes, level)
        wanted = prefixes.softmax_of(exists.sum(dim=-1))
        if wanted is not None and not bool(wanted.any()):
            log_probs = torch.zeros(child.shape, device=scores.device)
        else:
            rows, hidden = prefixes.decode(level, wanted)
            found = net.softmax.log_probs(hidden, level, *map(rows.of, (child, codes, exists)), memory.items[rows.users])
            if wanted is None:
                log_probs = found.view(child.shape)
            else:
                log_probs = torch.zeros(child.shape, device=scores.device).masked_fill_(~exists, -torch.inf)
                log_probs.view(-1, child.shape[-1])[rows.index] = found
        if allowed is not None:
            log_probs = log_probs.masked_fill(~allowed.leads_to_one(level, child), -torch.inf)
        candidates = (scores.unsqueeze(-1) + log_probs).flatten(1)
        width = min(beam_size, trie.n_nodes(level))
        if draw is None:
            scores, picked = candidates.topk(width, dim=1)
        else:
            of_level = (log_probs.double() / draw.temperature).log_softmax(dim=-1).nan_to_num(-torch.inf, neginf=-torch.inf)
            of_level = tempered.unsqueeze(-1) + of_level
            noise = _perturbed(perturbed, of_level, draw.gumbel(level, child))
            perturbed, picked = noise.nan_to_num(-torch.inf, neginf=-torch.inf).flatten(1).topk(width, dim=1)
            tempered, scores = of_level.flatten(1).gather(1, picked), candidates.gather(1, picked)
        nodes = child.flatten(1).gather(1, picked)
        if level + 1 < trie.levels:
            prefixes.go_on(picked // child.shape[-1], codes.flatten(1).gather(1, picked))
    return trie.item_of[nodes].long(), scores


@torch.no_grad()
def unconstrained_beam_search(net, memory, beam_size, left_out=None):
    """The ``beam_size`` most likely semantic IDs that a beam over all codes finds, whether an item has them or not.

    Args:
        net: with the softmax over all codes.
        left_out: int tensor [batch, n] of items whose IDs a list leaves out, padded with zeros; or None.

    Returns:
        items (RecBole's ids, 0 for an ID that no item has) and scores, each [batch, at most beam_size], best first.
    """
    prefixes = Prefixes(net, memory)
    scores = torch.zeros(len(memory.items), 1, device=memory.items.device)
    ids = torch.zeros_like(scores, dtype=torch.long)  # the codes so far as one number
    numbers = torch.zeros_like(net.codes[:, 0])  # the same of all items' IDs
    for level, width in enumerate(net.widths):
        numbers = numbers * width + net.codes[:, level]
    for level, width in enumerate(net.widths):
        _, hidden = prefixes.decode(level, None)
        log_probs = net.softmax.log_softmax(net.softmax.classifiers[level](hidden).float(), level)
        candidates = scores.unsqueeze(-1) + log_probs.view(*scores.shape, width)
        if left_out is not None and level + 1 == net.levels:
            candidates = _without(candidates, ids, numbers[left_out], left_out > 0)
        candidates = candidates.flatten(1)
        scores, picked = candidates.topk(min(beam_size, candidates.shape[1]), dim=1)
        parents, codes = picked // width, picked % width
        ids = ids.gather(1, parents) * width + codes
        if level + 1 < net.levels:
            prefixes.go_on(parents, codes)
    known, order = numbers[1:].sort()
    place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
    return torch.where(known[place] == ids, order[place] + 1, 0), scores


def _without(candidates, prefixes, ids, there):
    """Candidates with -inf for some IDs.

    Args:
        candidates: float tensor [batch, beam, width] of the last level. prefixes: int tensor [batch, beam].
        ids: int tensor [batch, n]; there: bool tensor [batch, n], which of them are meant.
    """
    batch, beam, width = candidates.shape
    under = (prefixes.unsqueeze(1) == (ids // width).unsqueeze(2)) & there.unsqueeze(2)
    place = torch.where(under.any(dim=2), under.int().argmax(dim=2) * width + ids % width, beam * width)
    flat = F.pad(candidates.flatten(1), (0, 1))  # the last column takes those that no prefix leads to
    return flat.scatter(1, place, -torch.inf)[:, :-1].view(batch, beam, width)


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
    trie, prefixes = net.trie, Prefixes(net, memory)
    batch, device = len(memory.items), trie.item_of.device
    scores = torch.zeros(batch, 1, device=device)
    for level in range(trie.levels):
        parents, codes = trie.all_nodes(level)
        wanted = prefixes.softmax_of(torch.bincount(parents).expand(batch, -1))
        columns = torch.arange(scores.shape[1], device=device) if wanted is None else wanted[0].nonzero().squeeze(1)
        log_probs = torch.zeros(batch, len(codes), device=device)
        for part in columns.split(EXACT_BUDGET) if len(columns) else ():
            chosen = torch.zeros(batch, scores.shape[1], dtype=torch.bool, device=device)
            chosen[:, part] = True
            rows, hidden = prefixes.decode(level, chosen)
            child, child_codes, exists = trie.expand(part, level)
            each = (table.repeat(batch, 1) for table in (child, child_codes, exists))
            found = net.softmax.log_probs(hidden, level, *each, memory.items[rows.users])
            log_probs[:, child[exists]] = found.view(batch, *exists.shape)[:, exists]
        if level + 1 < trie.levels:
            prefixes.go_on(parents.expand(batch, -1), codes.expand(batch, -1))
        scores = scores[:, parents] + log_probs
    result = scores.new_full((batch, len(trie.item_of) + 1), -torch.inf)
    result[:, trie.item_of.long()] = scores
    return result


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
        logits, of_history, own = net.softmax.choices(hidden[:, :, level], level, items, memory.items.unsqueeze(1))
        logits = logits if of_history is None else logits + of_history
        parts.append(net.softmax.log_softmax(logits, level).gather(-1, own.unsqueeze(-1)))
    return torch.cat(parts, dim=-1)
