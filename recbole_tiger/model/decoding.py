"""Decoding: beam search, exact scores of the whole catalogue, likelihood of given items."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from recbole_tiger.model.layers import Rows

# Number of prefixes, over all histories of a slice, and of their children that the exact scorer expands at once; both bound
# memory.
EXACT_BUDGET = 4096
EXACT_CHILDREN = 2**20
# Maximal number of elements of a table [histories, prefixes, left-out items]; bounds memory.
LEFT_OUT_TABLE = 2**22


class Prefixes:
    """The current prefixes of a search, as a table [batch, prefixes], with the keys and values of their decoded levels.

    A level of a prefix is decoded if its softmax is needed. With ``trie_softmax`` an only child has probability 1, so its
    level is skipped. It is decoded later if the trie branches below, because attention then needs its keys and values.

    Args:
        net: a :class:`~recbole_tiger.model.seq2seq.Seq2Seq`. memory: from its ``encode``.
    """

    def __init__(self, net, memory):
        self.net, self.memory = net, memory
        start = torch.zeros(len(memory.items), 1, dtype=torch.long, device=memory.items.device)
        # Per level: the code before it, and the row of each prefix in its keys and values; -1 for none.
        self.codes, self.row = [start], [start - 1]
        self.pairs = []  # per level, per decoder layer: keys and values, each [rows, n_heads, head_size]

    def needs_softmax(self, counts):
        """Bool table of the prefixes that need a softmax, given their numbers of children; None for all prefixes.

        On a GPU all of them count as needing one: choosing some would make the host wait.
        """
        if not self.net.softmax.over_children or counts.is_cuda:
            return None
        wanted = counts > 1
        # Where a level was skipped, decode() has to choose the prefixes that lack it.
        return None if bool(wanted.all()) and all(bool((row >= 0).all()) for row in self.row[:-1]) else wanted

    def decode(self, level, wanted):
        """Hidden states that predict ``level``.

        Args:
            wanted: bool table of the prefixes to decode, or None for all.

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
            index = rows.select(self.row[earlier])
            for layer, (keys, values) in zip(past, self.pairs[earlier], strict=True):
                layer.append((keys[index], values[index]))
        hidden, pairs = self.net.step(self.memory, level, rows.select(self.codes[level]), past, rows)
        if level + 1 == self.net.levels:  # no level attends to the last one
            return hidden
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

    def extend(self, parents, codes):
        """Replace the prefixes by longer ones: ``codes`` [batch, prefixes], each appended to a prefix of ``parents``."""
        self.codes = [*(table.gather(1, parents) for table in self.codes), codes]
        self.row = [*(table.gather(1, parents) for table in self.row), torch.full_like(codes, -1)]


class Allowed(NamedTuple):
    """The items that lists may contain: a set for all histories, minus some items for each history.

    Attributes:
        below: per level, int tensor [nodes] of the number of items of the set below each node of the trie.
        paths: from :meth:`Trie.paths`.
        left_out: int tensor [batch, n] of the distinct items of the set that each list leaves out, 0 for none; or None.
    """

    below: list
    paths: torch.Tensor
    left_out: torch.Tensor | None

    @classmethod
    def of(cls, trie, among=None, left_out=None):
        """The allowed items of a trie's catalogue.

        Args:
            among: bool tensor [n_items + 1] of the set, or None for all items.
            left_out: int tensor [batch, n] of the distinct items that each list leaves out, padded with zeros; or None.
        """
        items = trie.item_of.long()
        below = [torch.ones_like(items) if among is None else among[items].long()]
        for level in reversed(range(1, trie.levels)):
            total = F.pad(below[0].cumsum(0), (1, 0))
            first = trie.get_buffer(f"first_child_{level}").long()
            below.insert(0, total[first[1:]] - total[first[:-1]])
        if left_out is not None and among is not None:
            left_out = left_out.masked_fill(~among[left_out], 0)
        return cls(below, trie.paths(), left_out)

    def part(self, rows):
        """The allowed items of a subset of the histories."""
        if self.left_out is None:
            return self
        left_out = self.left_out[rows]
        if not left_out.is_cuda:  # on a GPU the host would wait for the number of columns
            left_out = left_out[:, (left_out > 0).any(dim=0)]
        return self._replace(left_out=left_out)

    def is_below(self, level, child):
        """Whether an allowed item is below each node ``child`` [batch, prefixes, n] from :meth:`Trie.expand`."""
        count = self.below[level][child]
        if self.left_out is not None:
            nodes = self.paths[self.left_out, level].masked_fill(self.left_out == 0, -1)
            size = max(1, LEFT_OUT_TABLE // (child.shape[1] * max(1, nodes.shape[1])))
            parts = (table.split(size) for table in (count, nodes, child[..., :1]))
            for part_count, part_nodes, first in zip(*parts, strict=True):
                place = part_nodes.unsqueeze(1) - first
                under = (place >= 0) & (place < child.shape[-1])
                part_count.scatter_add_(-1, place.clamp_(0, child.shape[-1] - 1), -under.long())
        return count > 0


def _perturbed(parents, log_probs, noise):
    """Gumbel-perturbed log-probabilities of children, whose maximum is that of the parent.

    So the best leaves lie below the best nodes of each level. See Kool et al. 2019, "Stochastic Beams and Where to Find
    Them", appendix B.3.

    Args:
        parents: float tensor [...], perturbed log-probabilities of the parents.
        log_probs: float tensor [..., n], total log-probabilities of the children. noise: of the same shape.

    Returns:
        float tensor [..., n]; -inf where ``log_probs`` is.
    """
    shifted = log_probs + noise
    largest = shifted.max(dim=-1, keepdim=True).values
    parents = parents.unsqueeze(-1)
    v = parents - shifted + torch.log1p(-(shifted - largest).exp())
    found = parents - v.clamp(min=0) - torch.log1p((-v.abs()).exp())
    return torch.where(shifted == largest, parents, found).masked_fill(log_probs.isneginf(), -torch.inf)


@torch.no_grad()
def beam_search(net, memory, beam_size, allowed=None, draw=None):
    """Beam search for the ``beam_size`` most likely items, or for drawn items.

    A score is the sum of the codes' log-probabilities in float32. Every prefix of the trie leads to an item, so a beam no
    wider than the catalogue always finds ``beam_size`` items.

    Args:
        allowed: :class:`Allowed`, or None for all items. If fewer than ``beam_size`` items are allowed, the last scores are
            -inf.
        draw: :class:`~recbole_tiger.model.draw.Draw`, to draw items without replacement; at each level the distribution is
            that of the codes that lead to an allowed item, at the draw's temperature. None for the most likely items.

    Returns:
        items (RecBole's ids) and scores, each [batch, beam_size], best first or in the order drawn.
    """
    trie, prefixes = net.trie, Prefixes(net, memory)
    scores = torch.zeros(len(memory.items), 1, device=trie.item_of.device)
    nodes = torch.zeros_like(scores, dtype=torch.long)
    if draw is not None:
        tempered = perturbed = torch.zeros_like(scores, dtype=torch.double)
    for level in range(trie.levels):
        width = min(beam_size, trie.n_nodes(level))
        # Places of the beam without an allowed item may hold a node twice, so that the nodes have fewer children than width.
        child, codes, exists = trie.expand(nodes, level, least=-(-width // nodes.shape[1]))
        # A prefix without allowed items leads nowhere.
        wanted = prefixes.needs_softmax(exists.sum(dim=-1).masked_fill(scores.isneginf(), 0))
        decoded = wanted is None or bool(wanted.any())
        if decoded:
            rows, hidden = prefixes.decode(level, wanted)
            children = map(rows.select, (child, codes, exists))
            found = net.softmax.log_probs(hidden, level, *children, memory.items[rows.users])
        if wanted is None:
            log_probs = found.view(child.shape)
        else:
            log_probs = torch.zeros(child.shape, device=scores.device).masked_fill_(~exists, -torch.inf)
            if decoded:
                log_probs.view(-1, child.shape[-1])[rows.index] = found
        if allowed is not None:
            log_probs = log_probs.masked_fill(~allowed.is_below(level, child), -torch.inf)
        candidates = (scores.unsqueeze(-1) + log_probs).flatten(1)
        if draw is None:
            scores, picked = candidates.topk(width, dim=1)
        else:
            step = (log_probs.double() / draw.temperature).log_softmax(dim=-1).nan_to_num(-torch.inf, neginf=-torch.inf)
            totals = tempered.unsqueeze(-1) + step
            noisy = _perturbed(perturbed, totals, draw.gumbel(level, child))
            perturbed, picked = noisy.nan_to_num(-torch.inf, neginf=-torch.inf).flatten(1).topk(width, dim=1)
            tempered, scores = totals.flatten(1).gather(1, picked), candidates.gather(1, picked)
        nodes = child.flatten(1).gather(1, picked)
        if level + 1 < trie.levels:
            prefixes.extend(picked // child.shape[-1], codes.flatten(1).gather(1, picked))
    return trie.item_of[nodes].long(), scores


@torch.no_grad()
def unconstrained_beam_search(net, memory, beam_size, left_out=None):
    """Beam search over all codes for the ``beam_size`` most likely semantic IDs, which need not be those of items.

    Args:
        net: a Seq2Seq with :class:`~recbole_tiger.model.softmax.FullSoftmax`.
        left_out: int tensor [batch, n] of items whose IDs are left out, padded with zeros; or None.

    Returns:
        items (RecBole's ids, 0 for an ID that no item has or that is left out) and scores, each [batch, at most beam_size],
        best first.
    """
    prefixes = Prefixes(net, memory)
    scores = torch.zeros(len(memory.items), 1, device=memory.items.device)
    ids = torch.zeros_like(scores, dtype=torch.long)  # the codes of each prefix as one number
    numbers = torch.zeros_like(net.codes[:, 0])  # the ID of each item as one number
    for level, width in enumerate(net.widths):
        numbers = numbers * width + net.codes[:, level]
    for level, width in enumerate(net.widths):
        _, hidden = prefixes.decode(level, None)
        log_probs = net.softmax.log_softmax(net.softmax.classifiers[level](hidden).float(), level)
        candidates = scores.unsqueeze(-1) + log_probs.view(*scores.shape, width)
        if left_out is not None and level + 1 == net.levels:
            candidates = _mask_ids(candidates, ids, numbers[left_out], left_out > 0)
        candidates = candidates.flatten(1)
        scores, picked = candidates.topk(min(beam_size, candidates.shape[1]), dim=1)
        parents, codes = picked // width, picked % width
        ids = ids.gather(1, parents) * width + codes
        if level + 1 < net.levels:
            prefixes.extend(parents, codes)
    known, order = numbers[1:].sort()
    place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
    return torch.where((known[place] == ids) & ~scores.isneginf(), order[place] + 1, 0), scores


def _mask_ids(candidates, prefixes, ids, mask):
    """Candidates with -inf for some IDs.

    Args:
        candidates: float tensor [batch, beam, width] of the last level. prefixes: int tensor [batch, beam].
        ids: int tensor [batch, n]. mask: bool tensor [batch, n] of the IDs that are not padding.
    """
    batch, beam, width = candidates.shape
    under = (prefixes.unsqueeze(1) == (ids // width).unsqueeze(2)) & mask.unsqueeze(2)
    place = torch.where(under.any(dim=2), under.int().argmax(dim=2) * width + ids % width, beam * width)
    flat = F.pad(candidates.flatten(1), (0, 1))  # the extra column is for IDs without a prefix in the beam
    return flat.scatter(1, place, -torch.inf)[:, :-1].view(batch, beam, width)


@torch.no_grad()
def exact_scores(net, memory_of, n_histories):
    """Log-likelihood of every item after every history; decodes each distinct prefix of the trie once.

    Args:
        memory_of: function from a slice of the histories to their Memory.
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
        rows.append(_scores_of_all_items(net, memory))
    return torch.cat(rows)


def _scores_of_all_items(net, memory):
    trie, prefixes = net.trie, Prefixes(net, memory)
    batch, device = len(memory.items), trie.item_of.device
    scores = torch.zeros(batch, 1, device=device)
    for level in range(trie.levels):
        parents, codes = trie.all_nodes(level)
        wanted = prefixes.needs_softmax(torch.bincount(parents).expand(batch, -1))
        columns = torch.arange(scores.shape[1], device=device) if wanted is None else wanted[0].nonzero().squeeze(1)
        log_probs = torch.zeros(batch, len(codes), device=device)
        size = max(1, min(EXACT_BUDGET, EXACT_CHILDREN // (batch * trie.most_children[level])))
        for part in columns.split(size) if len(columns) else ():
            chosen = torch.zeros(batch, scores.shape[1], dtype=torch.bool, device=device)
            chosen[:, part] = True
            rows, hidden = prefixes.decode(level, chosen)
            child, child_codes, exists = trie.expand(part, level)
            children = (table.repeat(batch, 1) for table in (child, child_codes, exists))
            found = net.softmax.log_probs(hidden, level, *children, memory.items[rows.users])
            log_probs[:, child[exists]] = found.view(batch, *exists.shape)[:, exists]
        if level + 1 < trie.levels:
            prefixes.extend(parents.expand(batch, -1), codes.expand(batch, -1))
        scores = scores[:, parents] + log_probs
    result = scores.new_full((batch, len(trie.item_of) + 1), -torch.inf)
    result[:, trie.item_of.long()] = scores
    return result


def log_probs_of_levels(net, memory, items):
    """Log-probabilities of the codes of given items after the whole history, by teacher forcing.

    Args:
        items: int tensor [batch, candidates].

    Returns:
        float32 tensor [batch, candidates, levels], whose sum over the levels is the log-likelihood of the item.
    """
    hidden = net.decode(memory, net.codes[items], shared=True)
    parts = []
    for level in range(net.levels):
        logits, history_logits, index = net.softmax.choices(hidden[:, :, level], level, items, memory.items.unsqueeze(1))
        logits = logits if history_logits is None else logits + history_logits
        parts.append(net.softmax.log_softmax(logits, level).gather(-1, index.unsqueeze(-1)))
    return torch.cat(parts, dim=-1)
