"""TIGER as a RecBole sequential recommender."""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from recbole.evaluator.register import metric_information

from recbole_tiger.catalogue.quantizers.kmeans import means
from recbole_tiger.catalogue.quantizers.rq_vae import scaled, standardised
from recbole_tiger.errors import TigerError
from recbole_tiger.model.base import LEFT_OUT, SemanticIDModel, user_slot
from recbole_tiger.model.decoding import (
    Allowed,
    beam_search,
    exact_scores,
    log_probs_of_levels,
    unconstrained_beam_search,
)
from recbole_tiger.model.draw import Draw
from recbole_tiger.model.layers import Sizes
from recbole_tiger.model.seq2seq import Seq2Seq, TextInput, UserToken
from recbole_tiger.model.softmax import FullSoftmax, HistoryBias, PrefixEmbedding, TrieSoftmax
from recbole_tiger.model.trie import Trie

# Number of histories decoded at once on a CPU: larger slices are not faster and need more memory. On a GPU the limits are a
# number of histories and the bytes of the tables of children.
DECODE_BATCH = 128
GPU_DECODE_BATCH, GPU_DECODE_BYTES = 2048, 2**31
# Tensors of logits of a whole level that a GPU holds at once, in half and in single precision and as log-probabilities.
LOGIT_COPIES = 3
# The settings that define the network.
NETWORK = (
    *("n_layers", "n_decoder_layers", "MAX_ITEM_LIST_LENGTH", "encoder_tokens", "bidirectional_encoder", "n_user_tokens"),
    *("code_dropout_prob", "initializer_range", "trie_softmax", "prefix_embedding", "history_bias", *Sizes._fields),
)
# Names of weights in a checkpoint.
TEXT_NAME = "network.text.embeddings"
CLASSIFIER = "network.softmax.classifiers.{}.weight"
TRAINED, PREFIXES = "network.softmax.trained", "network.softmax.prefixes.table.weight"
# A new prefix starts from this fraction of the mean of its siblings; chosen on validation (benchmarks/new_items.md).
SIBLING_SHARE = 0.5
# Inputs of metrics that need a score of every item, such as GAUC.
NEEDS_ALL_SCORES = {"rec.meanrank", "rec.score", "data.label"}


def widths_in(state_dict):
    """Number of codes of each level in a checkpoint."""
    return [state_dict[CLASSIFIER.format(level)].shape[0] for level in range(state_dict["network.codes"].shape[1])]


def search_in_slices(search, order, size, k):
    """Run a search on slices of reordered histories, and restore the given order of the results.

    Args:
        search: function from a slice of the ordered histories to a tuple of tensors, such as items and scores, each
            [size, at least k, ...].
        order: int tensor [batch] on the host, the index of each ordered history among the given ones.
        size: number of histories per slice.

    Returns:
        tuple of the results for the given histories, each [batch, k, ...].
    """
    found = [search(slice(begin, begin + size)) for begin in range(0, len(order), size)]
    back = order.argsort().to(found[0][0].device, non_blocking=True)
    return tuple(torch.cat(parts)[back, :k] for parts in zip(*found, strict=True))


def extend_prefix_table(table, codes, more_codes):
    """Embeddings of the prefixes of a larger catalogue; old prefixes keep their embeddings.

    A new prefix starts from a fraction of the mean of its siblings, the old prefixes with the same parent, or of all old
    prefixes of its length if it has no siblings. Training lowers the logits of prefixes that are rarely a target; starting
    at zero, new items would take two in five places of a list.

    Args:
        table: float tensor [prefixes, hidden_size], from :class:`PrefixEmbedding`.
        codes, more_codes: int tensors [n_items + 1, levels]; the latter begins with the former.
    """
    before, after = Trie(codes), Trie(more_codes)
    old, new = before.paths()[1:], after.paths()[1 : len(codes)]
    larger, first = [], 0
    for level in range(1, before.levels):
        known = table.new_zeros(after.n_nodes(level), dtype=torch.bool)
        known[new[:, level]] = True
        rows = table.new_zeros(len(known), table.shape[1])
        rows[new[:, level]] = table[first + old[:, level]]
        parents = after.all_nodes(level)[0]
        siblings, counts = means(rows[known], parents[known], after.n_nodes(level - 1))
        siblings = torch.where(counts.unsqueeze(1) > 0, siblings, rows[known].mean(dim=0))
        rows[~known] = SIBLING_SHARE * siblings[parents[~known]]
        larger.append(rows)
        first += before.n_nodes(level)
    return torch.cat(larger)


def cross_entropy(logits, wanted, label_smoothing):
    """Mean cross-entropy with label smoothing over the choices that exist.

    Args:
        logits: float32 tensor [n, choices], -inf for choices that do not exist. wanted: int tensor [n].
        label_smoothing: share of the target's probability that is spread over the choices.
    """
    log_probs = logits.log_softmax(dim=-1)
    loss = F.nll_loss(log_probs, wanted)
    if label_smoothing == 0:
        return loss
    absent = logits.isneginf()
    spread = -log_probs.masked_fill(absent, 0).sum(dim=-1) / (~absent).sum(dim=-1)
    return (1 - label_smoothing) * loss + label_smoothing * spread.mean()


def make_network(codes, widths, text, settings):
    """The network of TIGER.

    Args:
        codes: int tensor [n_items + 1, levels]; row 0 is padding. widths: list of the number of codes of each level.
        text: float tensor [n_items, dim] of item embeddings for the encoder's input, or None.
        settings: dict of the settings in NETWORK.
    """
    sizes, trie = Sizes(*(settings[name] for name in Sizes._fields)), Trie(codes)
    hidden_size, max_items, n_user_tokens = sizes.hidden_size, settings["MAX_ITEM_LIST_LENGTH"], settings["n_user_tokens"]
    if settings["trie_softmax"]:
        prefixes = PrefixEmbedding(trie, hidden_size) if settings["prefix_embedding"] else None
        history_bias = HistoryBias(trie, max_items) if settings["history_bias"] else None
        softmax = TrieSoftmax(trie, widths, hidden_size, prefixes, history_bias)
    else:
        softmax = FullSoftmax(codes, widths, hidden_size)
    return Seq2Seq(
        codes,
        trie,
        widths,
        sizes,
        softmax,
        n_layers=settings["n_layers"],
        n_decoder_layers=settings["n_decoder_layers"],
        max_items=max_items,
        token_per_item=settings["encoder_tokens"] == "item",
        bidirectional=settings["bidirectional_encoder"],
        code_dropout_prob=settings["code_dropout_prob"],
        initializer_range=settings["initializer_range"],
        text=None if text is None else TextInput(text, hidden_size),
        users=UserToken(n_user_tokens, hidden_size, sizes.n_heads) if n_user_tokens else None,
    )


class TIGER(SemanticIDModel):
    """Generative retrieval over semantic IDs (Rajput et al. 2023, arXiv 2305.05065).

    Args:
        config: RecBole's Config with the settings of ``properties/model/TIGER.yaml``.
        dataset: has ``catalogue`` (a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`), like CatalogueDataset.
    """

    revision = 3
    trainer_class = "recbole_tiger.training.tiger.TIGERTrainer"
    scorings = ("beam", "exact")
    codes_name = "network.codes"

    @classmethod
    def check_settings(cls, config):
        """Refuse settings that cannot work together.

        Raises:
            TigerError: names the setting and its valid values.
        """
        need_trie = {
            "prefix_embedding": "only prefixes of the trie have an embedding",
            "history_bias": "it is a logit of the nodes of the trie",
        }
        for key, reason in need_trie.items():
            if config[key] and not config["trie_softmax"]:
                raise TigerError(f"{key} needs --trie_softmax=True: {reason}")
        modes, metrics = set(config["eval_args"]["mode"].values()), config["metrics"]
        if config["decoding_temperature"] is not None and config["scoring"] == "exact":
            raise TigerError("decoding_temperature draws items with the beam: leave out scoring exact")
        if config["decoding_temperature"] is not None and modes != {"full"}:
            raise TigerError("decoding_temperature draws from the whole catalogue: leave out the sampled mode of eval_args")
        if not config["constrained"]:
            if config["trie_softmax"] or config["scoring"] == "exact" or config["decoding_temperature"] is not None:
                raise TigerError(
                    "constrained False is for the beam with the softmax over all codes: leave out trie_softmax, scoring "
                    "exact and decoding_temperature"
                )
            unsupported = [name for name in metrics if metric_information.get(name.lower(), ["rec.topk"]) != ["rec.topk"]]
            if unsupported or modes != {"full"}:
                raise TigerError(
                    f"constrained False makes IDs that no item has, which count as misses in metrics of the target's rank "
                    f"in the whole catalogue: leave out {', '.join(unsupported) or 'the sampled mode of eval_args'}"
                )
        if config["scoring"] == "beam" and config["beam_size"] < max(config["topk"]):
            raise TigerError(
                f"beam_size {config['beam_size']} is less than the largest topk {max(config['topk'])}: "
                f"a shorter list would be filled with arbitrary items; raise beam_size"
            )
        whole = [name for name in metrics if NEEDS_ALL_SCORES.intersection(metric_information.get(name.lower(), ()))]
        if whole and config["scoring"] == "beam" and "full" in modes:
            raise TigerError(
                f"metrics: {', '.join(whole)} ranks the whole catalogue, but a beam finds only {config['beam_size']} items: "
                f"give --scoring=exact, or leave the metric out"
            )

    @classmethod
    def check_sizes(cls, config, n_items):
        """Refuse a beam that is wider than the catalogue.

        Raises:
            TigerError: names both sizes.
        """
        if config["scoring"] == "beam" and config["beam_size"] > n_items:
            raise TigerError(f"beam_size {config['beam_size']} is larger than the catalogue of {n_items} items; lower it")

    @classmethod
    def needs_embeddings(cls, settings):
        """Whether the codes, their initial weights or the encoder's input need the items' embeddings."""
        return super().needs_embeddings(settings) or settings["encoder_text"] or settings["text_initializer"]

    @classmethod
    def needs_scores(cls, settings):
        """Whether an evaluation batch needs a score matrix [users, items]: for exact scoring and sampled evaluation."""
        return settings["scoring"] == "exact" or set(settings["eval_args"]["mode"].values()) != {"full"}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        catalogue = dataset.catalogue
        self.beam_size, self.scoring = config["beam_size"], config["scoring"]
        self.constrained, self.decoding_temperature = config["constrained"], config["decoding_temperature"]
        self.seed = config["seed"]
        self.label_smoothing = config["label_smoothing"]
        self.n_user_tokens = config["n_user_tokens"]
        self.network_settings = {name: config[name] for name in NETWORK}
        codes, widths = self._codes_and_widths(catalogue)
        if not self.constrained and math.prod(widths) >= 2**63:
            raise TigerError(
                f"constrained False keeps an ID as one number of 63 bits, too few for {' x '.join(map(str, widths))} codes: "
                f"lower codebook_depth or codebook_size, or leave out constrained"
            )
        # There are no embeddings if the IDs come from a file and the encoder reads none.
        text = None if catalogue.embeddings is None else torch.from_numpy(catalogue.embeddings)
        self._build(codes, widths, text if config["encoder_text"] else None)
        if config["text_initializer"] and text is not None:
            self.network.start_from_text(F.pad(standardised(text), (0, 0, 1, 0)))
        if self.n_user_tokens:
            tokens = dataset.field2id_token[self.USER_ID]
            slots = torch.tensor([user_slot(token, self.n_user_tokens) for token in tokens])
            self.register_buffer("user_slots", slots, persistent=False)

    def _codes_and_widths(self, catalogue):
        """The codes to read, int tensor [n_items + 1, levels], and the number of codes of each level.

        Levels are as wide as their codebooks, so they include codes that no item has yet. The collision level is left out if
        the IDs do not need it.
        """
        codes = torch.tensor(catalogue.semantic_ids.codes)
        widths = (codes.max(dim=0).values + 1).tolist()
        if catalogue.tokenizer is None:
            self.collision_level = widths[-1] > 1
        else:
            quantizer = catalogue.tokenizer.quantizer
            self.collision_level = not quantizer.distinct
            widths[:-1] = quantizer.widths
        levels = len(widths) if self.collision_level else len(widths) - 1
        return F.pad(codes[:, :levels], (0, 0, 1, 0)), widths[:levels]

    def _build(self, codes, widths, text):
        self.network = make_network(codes, widths, text, self.network_settings)

    def fit_to(self, state_dict):
        """Rebuild the network if the weights were trained with other codes."""
        codes, current, widths = state_dict["network.codes"], self.network.codes, widths_in(state_dict)
        if widths != self.network.widths or not torch.equal(codes.to(current.device), current):
            text = state_dict.get(TEXT_NAME)
            self._build(codes.cpu(), widths, None if text is None else text[1:].cpu())
            self.to(current.device)

    @classmethod
    def catalogue_of(cls, state):
        """The catalogue in a checkpoint, with the embeddings that its encoder reads."""
        catalogue, text = super().catalogue_of(state), state["state_dict"].get(TEXT_NAME)
        if text is None:
            return catalogue
        # The model standardises these embeddings, but loading the weights overwrites the result.
        return replace(catalogue, embeddings=np.ascontiguousarray(text[1:].float().cpu().numpy()))

    @classmethod
    def with_items(cls, state, items, titles, columns, codes, embeddings):
        """Append new items to a checkpoint; see :meth:`SemanticIDModel.with_items`.

        A code of the collision level that no old item has gets the weights of the largest old one; with the softmax over all
        codes it takes no probability from the others.
        """
        found = super().with_items(state, items, titles, columns, codes, embeddings)
        weights, before = found["state_dict"], state["state_dict"]["network.codes"]
        more_codes, last = weights["network.codes"], before.shape[1] - 1
        more = int(more_codes[:, -1].max()) + 1 - widths_in(state["state_dict"])[-1]
        if more > 0:
            classifier = CLASSIFIER.format(last)
            for name in (classifier, classifier.replace("weight", "bias"), "network.code_embedding.weight"):
                weights[name] = torch.cat([weights[name], weights[name][-1:].repeat_interleave(more, dim=0)])
            if TRAINED in weights:
                weights[TRAINED] = F.pad(weights[TRAINED], (0, more), value=False)
        if PREFIXES in weights:
            weights[PREFIXES] = extend_prefix_table(weights[PREFIXES].cpu(), before.cpu(), more_codes)
        if TEXT_NAME in weights:
            mean, scale = (weights[TEXT_NAME.replace("embeddings", name)].cpu() for name in ("mean", "scale"))
            text = scaled(torch.from_numpy(embeddings), mean, scale)
            weights[TEXT_NAME] = torch.cat([weights[TEXT_NAME].cpu(), text])
        return found

    # --- training ---

    def window_loss(self, items, targets, positions=None, users=None, padded=True):
        """Mean negative log-likelihood of a code, over the targets of a batch of windows.

        With ``history_bias`` it is the sum of the losses without and with the bias; the latter trains only the bias.

        Args:
            items: int tensor [batch, n + 1], padded with zeros on the left; item t is predicted from the items before it.
            targets, positions: from :func:`~recbole_tiger.training.dataset.target_positions`.
            users: int tensor [batch] of RecBole's user ids, used if the model has a user token.
            padded: whether any window is padded.
        """
        memory = self.network.encode(items[:, :-1], self.slots_of(users), padded)
        wanted = items[:, -targets:]
        hidden = self.network.decode(memory, self.network.codes[wanted]).flatten(0, 1)
        wanted = wanted.flatten()
        history = F.pad(items[:, :-1], (targets - 1, 0)).unfold(1, items.shape[1] - 1, 1).flatten(0, 1)
        if positions is not None:
            hidden, wanted, history = (x.index_select(0, positions) for x in (hidden, wanted, history))
        loss = 0
        for level in range(self.network.levels):
            logits, history_logits, index = self.network.softmax.choices(hidden[:, level], level, wanted, history)
            loss = loss + cross_entropy(logits, index, self.label_smoothing)
            if history_logits is not None:
                # The bias trains on top of detached logits, and the rest without the bias: trained jointly they overfit.
                loss = loss + cross_entropy(logits.detach() + history_logits, index, 0)
        return loss / self.network.levels

    def calculate_loss(self, interaction):
        """Loss of RecBole's rows, one target per row."""
        items = torch.cat([self.histories_of(interaction), interaction[self.ITEM_ID].unsqueeze(1)], dim=1)
        return self.window_loss(items, 1, users=interaction[self.USER_ID])

    def slots_of(self, users):
        """Rows of RecBole's user ids in the table of hashed users; None if there is no table."""
        return self.user_slots[users.to(self.user_slots.device)] if self.n_user_tokens else None

    # --- inference ---

    def recommend(self, histories, slots, k, beam_size, scoring, among=None, left_out=None, temperature=None, seed=0):
        """The k best items after each history, or k items drawn without replacement.

        Args:
            histories: int tensor [batch, n], padded with zeros on the left. If it is on the host, nothing waits for the
                device.
            slots: int tensor [batch] of user slots, or None.
            scoring: "beam" or "exact".
            among, left_out: as in :class:`~recbole_tiger.model.decoding.Allowed`.
            temperature, seed: as in :class:`~recbole_tiger.model.draw.Draw`; temperature None for the best items.

        Returns:
            items (RecBole's ids) and scores (log-probabilities), each [batch, k], best first or in the order drawn.
        """
        if scoring == "exact":
            return super().recommend(histories, slots, k, beam_size, scoring, among, left_out, temperature, seed)
        memory_of, order = self._order_by_length(histories, slots, left_out)
        rows = order.to(self.network.codes.device, non_blocking=True)
        allowed = draw = None
        if among is not None or left_out is not None:
            allowed = Allowed.of(self.network.trie, among, None if left_out is None else left_out[rows])
        if temperature is not None:
            draw = Draw.of(temperature, seed, histories.to(rows.device, non_blocking=True)[rows])

        def search(part):
            memory = memory_of(part)
            return beam_search(self.network, memory, beam_size, allowed and allowed.part(part), draw and draw.part(part))

        return search_in_slices(search, order, self._decode_batch(beam_size), k)

    def _decode_batch(self, beam_size, n_left_out=0):
        """Number of histories to decode at once, where each prefix is compared with ``n_left_out`` items."""
        if not self.network.codes.is_cuda:
            return DECODE_BATCH
        prefixes, trie = self.network.softmax.prefixes, self.network.trie
        width = 1 if prefixes is None else prefixes.table.embedding_dim
        numbers = max(
            min(beam_size, trie.n_nodes(level - 1) if level else 1)
            * max(most * (width if level else 1), LOGIT_COPIES * self.network.widths[level], 4 * n_left_out)
            for level, most in enumerate(trie.most_children)
        )
        return min(GPU_DECODE_BATCH, max(1, GPU_DECODE_BYTES // (4 * numbers)))

    def exact(self, histories, slots):
        """Log-likelihood of every item after each history, [batch, n_items + 1]."""
        memory_of, order = self._order_by_length(histories, slots)
        return exact_scores(self.network, memory_of, len(histories))[order.argsort().to(self.network.codes.device)]

    @torch.no_grad()
    def log_probs_of_levels(self, histories, slots, items):
        """Log-probabilities of the codes of items [batch, n] after each history, [batch, n, levels]."""
        memory_of, order = self._order_by_length(histories, slots)
        n_items, device = items.shape[1], self.network.codes.device
        ordered = items.to(device)[order.to(device)]

        def search(part):
            return (log_probs_of_levels(self.network, memory_of(part), ordered[part]),)

        (found,) = search_in_slices(search, order, max(1, DECODE_BATCH * 20 // n_items), n_items)
        return found

    def _order_by_length(self, histories, slots, left_out=None):
        """Order histories by length, and those of one length by their number of left-out items: slices have little padding.

        Returns:
            function from a slice of the ordered histories to their Memory; int tensor [batch] of the order, on the host.
        """
        device = self.network.codes.device
        lengths = (histories != 0).sum(dim=1).cpu()
        keys = [lengths]
        if left_out is not None and not left_out.is_cuda:  # on a GPU the host would wait for their number
            keys.insert(0, (left_out != 0).sum(dim=1))
        order = torch.from_numpy(np.lexsort(keys))
        lengths = lengths[order]
        rows = order.to(device, non_blocking=True)
        ordered = histories.to(device, non_blocking=True)[rows]
        ordered_slots = None if slots is None else slots[rows]

        def memory_of(part):
            longest = max(1, int(lengths[part][-1]))
            part_slots = None if ordered_slots is None else ordered_slots[part]
            return self.network.encode(ordered[part, -longest:], part_slots, padded=bool(lengths[part][0] < longest))

        return memory_of, order

    @torch.no_grad()
    def beam(self, interaction):
        """Items and scores of the beam after each history, each [batch, beam_size], best first or in the order drawn.

        An item is 0 if no item has the ID (without ``constrained``), or if fewer than ``beam_size`` items are allowed.
        """
        histories, slots = self.histories_of(interaction), self.slots_of(interaction[self.USER_ID])
        left_out = interaction[LEFT_OUT].to(self.network.codes.device) if LEFT_OUT in interaction else None
        if not self.constrained:
            return self.unconstrained(histories, slots, self.beam_size, left_out)
        options = {"left_out": left_out, "temperature": self.decoding_temperature, "seed": self.seed}
        items, scores = self.recommend(histories, slots, self.beam_size, self.beam_size, "beam", **options)
        return items.masked_fill(scores.isneginf(), 0), scores

    @torch.no_grad()
    def unconstrained(self, histories, slots, beam_size, left_out=None):
        """See :func:`~recbole_tiger.model.decoding.unconstrained_beam_search`; arguments as in :meth:`recommend`."""
        memory_of, order = self._order_by_length(histories, slots, left_out)
        if left_out is not None:
            left_out = left_out[order.to(left_out.device)]

        def search(part):
            part_left_out = None if left_out is None else left_out[part]
            return unconstrained_beam_search(self.network, memory_of(part), beam_size, part_left_out)

        n_left_out = 0 if left_out is None else left_out.shape[1]
        return search_in_slices(search, order, self._decode_batch(beam_size, n_left_out), beam_size)

    @torch.no_grad()
    def full_sort_predict(self, interaction):
        """Scores of all items [batch, n_items]: log-probabilities of the items in the beam, -inf for the others.

        Raises:
            TigerError: ``constrained`` is off, so lists may be too short for the metrics.
        """
        if not self.constrained:
            raise TigerError("constrained False gives lists with gaps, not scores of items: evaluate by the commands")
        if self.scoring == "exact":
            return self.exact(self.histories_of(interaction), self.slots_of(interaction[self.USER_ID]))
        items, found = self.beam(interaction)
        if self.decoding_temperature is not None:  # the list is in the order drawn
            found = -torch.arange(items.shape[1], dtype=found.dtype, device=found.device).expand_as(found)
        scores = found.new_full((len(items), self.n_items), -torch.inf)
        return scores.scatter_(1, items, found)

    @torch.no_grad()
    def predict(self, interaction):
        """Log-likelihood of the given item after each history, [batch]; the candidates of a history are decoded together."""
        history = self.histories_of(interaction)
        slots = self.slots_of(interaction[self.USER_ID])
        keyed = history if slots is None else torch.cat([history, slots.unsqueeze(1)], dim=1)
        distinct, which, counts = torch.unique(keyed, dim=0, return_inverse=True, return_counts=True)
        # A table of candidates, as wide as their mean number per history. A history with more takes several of its rows.
        order = which.argsort(stable=True)
        place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[which[order]]
        width = -(-len(order) // len(distinct))
        n_rows = (counts + width - 1) // width
        row, column = (n_rows.cumsum(0) - n_rows)[which[order]] + place // width, place % width
        histories = distinct.repeat_interleave(n_rows, dim=0)
        candidates = history.new_ones(len(histories), width)
        candidates[row, column] = interaction[self.ITEM_ID][order]
        slots = None if slots is None else histories[:, -1]
        levels = self.log_probs_of_levels(histories[:, : history.shape[1]], slots, candidates)
        scores = torch.empty(len(history), device=history.device)
        scores[order] = levels.sum(dim=-1)[row, column]
        return scores
