"""TIGER as a RecBole sequential recommender."""

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
    log_likelihood,
    log_probs_of_levels,
    unconstrained_beam_search,
)
from recbole_tiger.model.draw import Draw
from recbole_tiger.model.layers import Sizes
from recbole_tiger.model.seq2seq import Seq2Seq, TextInput, UserToken
from recbole_tiger.model.softmax import FullSoftmax, HistoryBias, PrefixEmbedding, TrieSoftmax
from recbole_tiger.model.trie import Trie

# Histories decoded at once on a CPU: larger slices gain no speed and cost memory. On a GPU as many as bytes of the tables of
# children allow, up to a number.
DECODE_BATCH = 128
GPU_DECODE_BATCH, GPU_DECODE_BYTES = 2048, 2**31
# The settings that the network is made of.
NETWORK = (
    *("n_layers", "n_decoder_layers", "MAX_ITEM_LIST_LENGTH", "encoder_tokens", "bidirectional_encoder", "n_user_tokens"),
    *("code_dropout_prob", "initializer_range", "trie_softmax", "prefix_embedding", "history_bias", *Sizes._fields),
)
# What a checkpoint calls the embeddings that the encoder reads, and others of its weights.
TEXT_NAME = "network.text.embeddings"
CLASSIFIER = "network.softmax.classifiers.{}.weight"
TRAINED, PREFIXES = "network.softmax.trained", "network.softmax.prefixes.table.weight"
# Part of the mean of its siblings that a new prefix starts from, chosen on validation (benchmarks/new_items.md).
OF_SIBLINGS = 0.5
# What metrics look at that need a score of every item, as GAUC does.
WHOLE = {"rec.meanrank", "rec.score", "data.label"}


def widths_in(state_dict):
    """Number of codes of each level of a checkpoint."""
    return [state_dict[CLASSIFIER.format(level)].shape[0] for level in range(state_dict["network.codes"].shape[1])]


def in_slices(search, order, size, k):
    """What a search finds for histories in another order, a slice at a time.

    Args:
        search: function of a slice of the ordered histories to a tuple of tensors, as items and scores, each
            [size, at least k, ...].
        order: int tensor [batch] on the host, where each of the ordered histories stands among the given ones.

    Returns:
        the same of the given histories, each [batch, k, ...].
    """
    found = [search(slice(begin, begin + size)) for begin in range(0, len(order), size)]
    back = order.argsort().to(found[0][0].device, non_blocking=True)
    return tuple(torch.cat(parts)[back, :k] for parts in zip(*found, strict=True))


def carried_over(table, codes, more_codes):
    """Embeddings of the prefixes of a larger catalogue: those that were there keep theirs.

    A new prefix starts from a part of the mean of those of the same length that share the codes before its last, or of all
    of its length where none does. Training pushes prefixes below zero that are seldom a target; at zero, new items would
    take two places of a list in five.

    Args:
        table: float tensor [prefixes, hidden_size], of :class:`PrefixEmbedding`.
        codes, more_codes: int tensors [n_items + 1, levels]; the larger one begins with the other.
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
        rows[~known] = OF_SIBLINGS * siblings[parents[~known]]
        larger.append(rows)
        first += before.n_nodes(level)
    return torch.cat(larger)


def counted_targets(n_targets):
    """Which positions of a batch of windows are targets; on the host, for shapes follow from it.

    Args:
        n_targets: int tensor [batch]; the last so many items of a window are targets.

    Returns:
        the most targets of a window; int tensor of those that are targets among as many of every window, or None for all.
    """
    targets = int(n_targets.max())
    if int(n_targets.min()) == targets:
        return targets, None
    return targets, (torch.arange(targets, 0, -1) <= n_targets.unsqueeze(1)).flatten().nonzero().squeeze(1)


def cross_entropy(logits, wanted, label_smoothing):
    """Mean cross-entropy, where what is left out of the softmax takes no part in the smoothing.

    Args:
        logits: float32 tensor [n, choices], -inf for what is left out. wanted: int tensor [n].
        label_smoothing: share of the target's probability that is spread over the choices.
    """
    log_probs = logits.log_softmax(dim=-1)
    loss = F.nll_loss(log_probs, wanted)
    if label_smoothing == 0:
        return loss
    left_out = logits.isneginf()
    spread = -log_probs.masked_fill(left_out, 0).sum(dim=-1) / (~left_out).sum(dim=-1)
    return (1 - label_smoothing) * loss + label_smoothing * spread.mean()


def make_network(codes, widths, text, settings):
    """The network of TIGER.

    Args:
        codes: int tensor [n_items + 1, levels]; row 0 is padding. widths: list of the number of codes of each level.
        text: float tensor [n_items, dim] of item embeddings for the encoder's input, or None.
        settings: those of NETWORK, by name.
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
        dataset: has ``catalogue`` (a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`), as CatalogueDataset does.
    """

    revision = 3
    trainer_class = "recbole_tiger.training.trainer.TIGERTrainer"
    scorings = ("beam", "exact")
    codes_name = "network.codes"

    @classmethod
    def check_settings(cls, config):
        """Refuse settings that cannot work together.

        Raises:
            TigerError: with the setting and what it may be.
        """
        of_the_trie = {
            "prefix_embedding": "only prefixes that the trie holds have an embedding",
            "history_bias": "it is a logit of the nodes of the trie",
        }
        for key, reason in of_the_trie.items():
            if config[key] and not config["trie_softmax"]:
                raise TigerError(f"{key} needs --trie_softmax=True: {reason}")
        modes, metrics = set(config["eval_args"]["mode"].values()), config["metrics"]
        if config["decoding_temperature"] is not None and config["scoring"] == "exact":
            raise TigerError("decoding_temperature draws items by the beam: leave out scoring exact")
        if not config["constrained"]:
            if config["trie_softmax"] or config["scoring"] == "exact" or config["decoding_temperature"] is not None:
                raise TigerError(
                    "constrained False is for the beam with the softmax over all codes: leave out trie_softmax, scoring "
                    "exact and decoding_temperature"
                )
            of_items = [name for name in metrics if metric_information.get(name.lower(), ["rec.topk"]) != ["rec.topk"]]
            if of_items or modes != {"full"}:
                raise TigerError(
                    f"constrained False makes IDs that no item has, which count as misses in metrics of the target's rank "
                    f"in the whole catalogue: leave out {', '.join(of_items) or 'the sampled mode of eval_args'}"
                )
        if config["beam_size"] < max(config["topk"]):
            raise TigerError(
                f"beam_size {config['beam_size']} is less than the largest topk {max(config['topk'])}: "
                f"a shorter list would be filled with arbitrary items; raise beam_size"
            )
        whole = [metric for metric in metrics if WHOLE.intersection(metric_information.get(metric.lower(), ()))]
        if whole and config["scoring"] == "beam" and "full" in modes:
            raise TigerError(
                f"metrics: {', '.join(whole)} ranks the whole catalogue, and a beam finds {config['beam_size']} items of "
                f"it: give --scoring=exact, or leave the metric out"
            )

    @classmethod
    def check_sizes(cls, config, n_items):
        """Refuse a beam that is wider than the catalogue.

        Raises:
            TigerError: with both sizes.
        """
        if config["beam_size"] > n_items:
            raise TigerError(f"beam_size {config['beam_size']} is larger than the catalogue of {n_items} items; lower it")

    @classmethod
    def needs_embeddings(cls, settings):
        """Whether the codes, what they start from or the encoder's input are made of the items' embeddings."""
        return super().needs_embeddings(settings) or settings["encoder_text"] or settings["text_initializer"]

    @classmethod
    def needs_scores(cls, settings):
        """Whether an evaluation batch has to be a matrix of scores [users, items].

        The exact scorer makes one anyway, and sampled evaluation is RecBole's own.
        """
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
        codes, widths = self._codes_of(catalogue)
        # IDs from a file come without embeddings, where the encoder reads none.
        text = None if catalogue.embeddings is None else torch.from_numpy(catalogue.embeddings)
        self._build(codes, widths, text if config["encoder_text"] else None)
        if config["text_initializer"] and text is not None:
            self.network.start_from_text(F.pad(standardised(text), (0, 0, 1, 0)))
        if self.n_user_tokens:
            tokens = dataset.field2id_token[self.USER_ID]
            slots = torch.tensor([user_slot(token, self.n_user_tokens) for token in tokens])
            self.register_buffer("user_slots", slots, persistent=False)

    def _codes_of(self, catalogue):
        """The codes to read, int tensor [n_items + 1, levels], and the number of codes of each level.

        Levels are as wide as their codebooks, so that a code which no item has yet is like another. The collision level is
        left out where the IDs have none.
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
        """Build the network anew where the weights were trained on other codes."""
        codes, own, widths = state_dict["network.codes"], self.network.codes, widths_in(state_dict)
        if widths != self.network.widths or codes.shape != own.shape or not torch.equal(codes.to(own.device), own):
            text = state_dict.get(TEXT_NAME)
            self._build(codes.cpu(), widths, None if text is None else text[1:].cpu())
            self.to(own.device)

    @classmethod
    def catalogue_of(cls, state):
        """The catalogue that a checkpoint holds, with the embeddings that its encoder reads."""
        catalogue, text = super().catalogue_of(state), state["state_dict"].get(TEXT_NAME)
        if text is None:
            return catalogue
        # The model standardises what it is given; the stored text is loaded over it.
        return replace(catalogue, embeddings=np.ascontiguousarray(text[1:].float().cpu().numpy()))

    @classmethod
    def from_checkpoint(cls, state, device):
        """The model of a checkpoint, as :meth:`SemanticIDModel.from_checkpoint`."""
        state["config"]["text_initializer"] = False  # the weights are loaded over it
        return super().from_checkpoint(state, device)

    @classmethod
    def with_items(cls, state, items, titles, columns, codes, embeddings):
        """As :meth:`SemanticIDModel.with_items`.

        A number of the collision level that no old item has gets the weights of the largest one that an old item has; with
        the softmax over all codes it takes no probability from the others.
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
            weights[PREFIXES] = carried_over(weights[PREFIXES].cpu(), before.cpu(), more_codes)
        if TEXT_NAME in weights:
            mean, scale = (weights[TEXT_NAME.replace("embeddings", name)].cpu() for name in ("mean", "scale"))
            text = scaled(torch.from_numpy(embeddings), mean, scale)
            weights[TEXT_NAME] = torch.cat([weights[TEXT_NAME].cpu(), text])
        return found

    # --- training ---

    def window_loss(self, items, targets, counted=None, users=None, padded=True):
        """Mean negative log-likelihood of a code, over the targets of a batch of windows.

        With ``history_bias`` that of the codes without it and that with it are added; the latter trains it alone.

        Args:
            items: int tensor [batch, n + 1], padded with zeros on the left; item t is predicted from those before it.
            targets, counted: of :func:`counted_targets`.
            users: int tensor [batch] of RecBole's user ids; read where the model has a user token.
            padded: whether any window is padded.
        """
        memory = self.network.encode(items[:, :-1], self.slots_of(users), padded)
        wanted = items[:, -targets:]
        hidden = self.network.decode(memory, self.network.codes[wanted]).flatten(0, 1)
        wanted = wanted.flatten()
        history = F.pad(items[:, :-1], (targets - 1, 0)).unfold(1, items.shape[1] - 1, 1).flatten(0, 1)
        if counted is not None:
            hidden, wanted, history = (x.index_select(0, counted) for x in (hidden, wanted, history))
        loss = 0
        for level in range(self.network.levels):
            logits, of_history, own = self.network.softmax.choices(hidden[:, level], level, wanted, history)
            loss = loss + cross_entropy(logits, own, self.label_smoothing)
            if of_history is not None:
                # It learns what is to be added to the model, which goes on as if there were nothing: together they over-fit.
                loss = loss + cross_entropy(logits.detach() + of_history, own, 0)
        return loss / self.network.levels

    def calculate_loss(self, interaction):
        """Loss of RecBole's rows, one target a row."""
        items = torch.cat([self.histories_of(interaction), interaction[self.ITEM_ID].unsqueeze(1)], dim=1)
        return self.window_loss(items, 1, users=interaction[self.USER_ID])

    def slots_of(self, users):
        """Rows of RecBole's user ids in the table of hashed users; None where there is none."""
        return self.user_slots[users.to(self.user_slots.device)] if self.n_user_tokens else None

    # --- inference ---

    def recommend(self, histories, slots, k, beam_size, scoring, among=None, left_out=None, temperature=None, seed=0):
        """The k best items after each history, or k that are drawn.

        Args:
            histories: int tensor [batch, n], padded with zeros on the left. Where they are on the host, nothing waits for
                the device.
            slots: int tensor [batch] of user slots, or None.
            scoring: "beam" or "exact".
            among, left_out: of :class:`~recbole_tiger.model.decoding.Allowed`. Each history has at least k allowed items.
            temperature, seed: of :class:`~recbole_tiger.model.draw.Draw`; None for the best.

        Returns:
            items (RecBole's ids) and scores (log-probabilities), each [batch, k], best first or in the order of the draw.
        """
        if scoring == "exact":
            return super().recommend(histories, slots, k, beam_size, scoring, among, left_out, temperature, seed)
        memory_of, order = self._memories(histories, slots)
        rows = order.to(self.network.codes.device, non_blocking=True)
        allowed = draw = None
        if among is not None or left_out is not None:
            allowed = Allowed.of(self.network.trie, among, None if left_out is None else left_out[rows])
        if temperature is not None:
            draw = Draw.of(temperature, seed, histories.to(rows.device, non_blocking=True)[rows])

        def search(part):
            memory = memory_of(part)
            return beam_search(self.network, memory, beam_size, allowed and allowed.part(part), draw and draw.part(part))

        return in_slices(search, order, self._decode_batch(beam_size, left_out), k)

    def _decode_batch(self, beam_size, left_out):
        """How many histories to decode at once, which leave out items [batch, n], or None."""
        if not self.network.codes.is_cuda:
            return DECODE_BATCH
        prefixes, trie = self.network.softmax.prefixes, self.network.trie
        width = 1 if prefixes is None else prefixes.table.embedding_dim
        children = max(
            min(beam_size, trie.n_nodes(level - 1) if level else 1) * most * (width if level else 1)
            for level, most in enumerate(trie.most_children)
        )
        if left_out is not None:
            children = max(children, 4 * beam_size * left_out.shape[1])  # int64 tables of them, several at a time
        return min(GPU_DECODE_BATCH, max(1, GPU_DECODE_BYTES // (4 * children)))

    def exact(self, histories, slots):
        """Log-likelihood of every item, [batch, n_items + 1]."""
        memory_of, order = self._memories(histories, slots)
        return exact_scores(self.network, memory_of, len(histories))[order.argsort().to(self.network.codes.device)]

    @torch.no_grad()
    def log_probs_of_levels(self, histories, slots, items):
        """Log-probabilities of the codes of items after each history, whose sums are the items': [batch, n, levels]."""
        memory_of, order = self._memories(histories, slots)
        n_items, device = items.shape[1], self.network.codes.device
        ordered = items.to(device)[order.to(device)]

        def search(part):
            return (log_probs_of_levels(self.network, memory_of(part), ordered[part]),)

        (found,) = in_slices(search, order, max(1, DECODE_BATCH * 20 // n_items), n_items)
        return found

    def _memories(self, histories, slots):
        """What the decoder reads of histories, shortest first, without the columns that are padding in all of a slice.

        Returns:
            function of a slice of the ordered histories to their Memory; int tensor [batch] on the host, their order.
        """
        device = self.network.codes.device
        lengths, order = (histories != 0).sum(dim=1).cpu().sort(stable=True)
        rows = order.to(device, non_blocking=True)
        ordered = histories.to(device, non_blocking=True)[rows]
        ordered_slots = None if slots is None else slots[rows]

        def memory_of(part):
            longest = max(1, int(lengths[part][-1]))
            own_slots = None if ordered_slots is None else ordered_slots[part]
            return self.network.encode(ordered[part, -longest:], own_slots, padded=bool(lengths[part][0] < longest))

        return memory_of, order

    @torch.no_grad()
    def beam(self, interaction):
        """Items and scores of the beam after each history, each [batch, beam_size], best first or in the order of a draw.

        An item is 0 where ``constrained`` is off and no item has the ID, and where fewer are left than the beam is wide.
        """
        histories, slots = self.histories_of(interaction), self.slots_of(interaction[self.USER_ID])
        left_out = interaction[LEFT_OUT].to(self.network.codes.device) if LEFT_OUT in interaction else None
        if not self.constrained:
            return self.unconstrained(histories, slots, self.beam_size, left_out)
        how = {"left_out": left_out, "temperature": self.decoding_temperature, "seed": self.seed}
        items, scores = self.recommend(histories, slots, self.beam_size, self.beam_size, "beam", **how)
        return items.masked_fill(scores.isneginf(), 0), scores

    @torch.no_grad()
    def unconstrained(self, histories, slots, beam_size, left_out=None):
        """As :func:`~recbole_tiger.model.decoding.unconstrained_beam_search`; arguments as for :meth:`recommend`."""
        memory_of, order = self._memories(histories, slots)
        if left_out is not None:
            left_out = left_out[order.to(left_out.device)]

        def search(part):
            of_part = None if left_out is None else left_out[part]
            return unconstrained_beam_search(self.network, memory_of(part), beam_size, of_part)

        return in_slices(search, order, self._decode_batch(beam_size, left_out), beam_size)

    @torch.no_grad()
    def full_sort_predict(self, interaction):
        """Scores of all items [batch, n_items]: log-probabilities of the beam's items, -inf for those it did not reach.

        Raises:
            TigerError: ``constrained`` is off, so that there may be fewer items than a metric looks at.
        """
        if not self.constrained:
            raise TigerError("constrained False gives lists with gaps, and no scores of items: evaluate by the commands")
        if self.scoring == "exact":
            return self.exact(self.histories_of(interaction), self.slots_of(interaction[self.USER_ID]))
        items, found = self.beam(interaction)
        if self.decoding_temperature is not None:  # the order of the draw is that of the list
            found = -torch.arange(items.shape[1], dtype=found.dtype, device=found.device).expand_as(found)
        scores = found.new_full((len(items), self.n_items), -torch.inf)
        return scores.scatter_(1, items, found)

    @torch.no_grad()
    def predict(self, interaction):
        """Log-likelihood of the given item after each history, [batch]; a history that repeats is encoded once."""
        history = self.histories_of(interaction)
        slots = self.slots_of(interaction[self.USER_ID])
        keyed = history if slots is None else torch.cat([history, slots.unsqueeze(1)], dim=1)
        distinct, which = torch.unique(keyed, dim=0, return_inverse=True)
        histories, slots = distinct[:, : history.shape[1]], None if slots is None else distinct[:, -1]
        memory_of, by_length = self._memories(histories, slots)
        which = by_length.argsort().to(which.device)[which]
        # Candidates of each history side by side: [histories, most candidates].
        order = which.argsort(stable=True)
        counts = torch.bincount(which, minlength=len(distinct))
        column = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[which[order]]
        candidates = history.new_ones(len(distinct), int(counts.max()))
        candidates[which[order], column] = interaction[self.ITEM_ID][order]
        scores = torch.empty(len(history), device=history.device)
        size = max(1, DECODE_BATCH * 20 // candidates.shape[1])
        slices = [slice(begin, begin + size) for begin in range(0, len(distinct), size)]
        likelihood = torch.cat([log_likelihood(self.network, memory_of(rows), candidates[rows]) for rows in slices])
        scores[order] = likelihood[which[order], column]
        return scores
