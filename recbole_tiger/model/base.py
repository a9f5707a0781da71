"""Base class of the models that read semantic IDs."""

import copy
import zlib
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_tiger.catalogue.catalogue import Catalogue
from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.errors import TigerError
from recbole_tiger.model.draw import Draw

# Field of a batch with the items to leave out of the lists: int tensor [batch, n] of distinct items, padded with zeros.
LEFT_OUT = "left_out"
# Maximal number of elements of a score matrix [users, items]: 64 MB.
SCORE_MATRIX = 2**24


def left_padded(item_seq, lengths, max_items):
    """The last ``max_items`` items of each history: from RecBole's padding on the right to padding on the left.

    Args:
        item_seq: int tensor [batch, width]; lengths: int tensor [batch].

    Returns:
        int tensor [batch, longest history].
    """
    lengths = lengths.clamp(max=item_seq.shape[1])
    n = int(lengths.clamp(max=max_items).max())
    place = lengths.unsqueeze(1) - n + torch.arange(n, device=item_seq.device)
    return item_seq.gather(1, place.clamp(min=0)).masked_fill(place < 0, 0)


def user_slot(token, n_user_tokens):
    """The row of a user's token in the table of hashed users (paper section 3.2)."""
    return zlib.crc32(str(token).encode()) % n_user_tokens


def to_semantic_ids(items, codes, collision_level):
    """SemanticIDs from a model's codes.

    Args:
        items: item tokens. codes: int tensor [n_items + 1, levels].
        collision_level: whether the last level is the collision level.
    """
    codes = codes[1:].cpu().numpy()
    return SemanticIDs(items, codes if collision_level else np.pad(codes, ((0, 0), (0, 1))))


class SemanticIDModel(SequentialRecommender):
    """A sequential recommender of RecBole that reads the semantic IDs of a catalogue.

    A subclass defines ``calculate_loss``, ``predict`` and ``full_sort_predict`` for RecBole, and :meth:`exact`.

    Args:
        config: RecBole's Config. dataset: has ``catalogue``, a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`.

    Attributes:
        items, titles: lists of the catalogue's tokens and titles; index i belongs to RecBole's item i + 1.
        columns: dict of text field -> list of the items' values.
        revision: class attribute; raise it with every change that makes another model from the same weights. Checkpoints of
            other revisions are refused.
        dataset_class, trainer_class: class attributes, dotted names. Without a trainer class RecBole's trainer is used, and
            a killed run starts again from the beginning. A trainer class may have a static ``check_settings(config)``.
        scorings: class attribute, the available ways of finding the best items, the default first.
        beam_size: the default width of the beam, if "beam" is one of the ``scorings``.
        training_only: class attribute, names of parameters on which no score depends; reported numbers leave them out.
        codes_name: class attribute, the name of the codes in the checkpoint, an int tensor [n_items + 1, levels].
        collision_level: whether the last of these levels is the collision level.
        tokenizer: the :meth:`~recbole_tiger.catalogue.tokenizer.Tokenizer.state` of the tokenizer of new items, or None.
        n_user_tokens: number of rows of the table of hashed users; 0 for none.
    """

    input_type = InputType.POINTWISE
    revision = 1
    dataset_class = "recbole_tiger.training.dataset.CatalogueDataset"
    trainer_class = None
    scorings = ("exact",)
    training_only = ()
    codes_name = "codes"
    n_user_tokens = 0
    collision_level = True
    other_parameter_name = ["items", "titles", "revision", "collision_level", "tokenizer", "columns"]

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.USER_ID = config["USER_ID_FIELD"]
        self.items, self.titles = list(dataset.catalogue.items), list(dataset.catalogue.titles)
        self.columns = dataset.catalogue.columns
        tokenizer = dataset.catalogue.tokenizer
        self.tokenizer = None if tokenizer is None else tokenizer.state()

    # --- class methods that are called before a model is built ---

    @classmethod
    def check_settings(cls, config):
        """Refuse settings that cannot work together; their types have been checked.

        Raises:
            TigerError: names the setting and its valid values.
        """

    @classmethod
    def check_sizes(cls, config, n_items):
        """Refuse settings that do not fit a catalogue of ``n_items``.

        Raises:
            TigerError: names the setting.
        """

    @classmethod
    def needs_embeddings(cls, settings):
        """Whether the codes or the model need the items' embeddings."""
        return not settings["semantic_ids"]

    @classmethod
    def needs_text(cls, settings):
        """Whether the embeddings are made from the items' text; otherwise text is used for titles only."""
        return cls.needs_embeddings(settings) and not settings["item_embeddings"]

    @classmethod
    def needs_scores(cls, settings):
        """Whether an evaluation batch needs a score matrix [users, items]."""
        return True

    # --- checkpoints ---

    @classmethod
    def check_revision(cls, parameters, source):
        """Refuse a checkpoint of another revision, whose weights have another meaning.

        Args:
            parameters: its ``other_parameter``. source: its name for the message.

        Raises:
            TigerError: the revision is another one, or missing.
        """
        if parameters.get("revision") != cls.revision:
            raise TigerError(
                f"{source} was made by revision {parameters.get('revision', 1)} of the model, whose weights have another "
                f"meaning than in this revision, {cls.revision}: remove it, and train it anew"
            )

    def load_state_dict(self, state_dict, strict=True):
        """Load weights together with the codes that they were trained with.

        Raises:
            TigerError: the weights belong to another catalogue, other settings or another model.
        """
        codes = state_dict.get(self.codes_name)
        if codes is None:
            raise TigerError(f"the checkpoint holds no semantic IDs: it is not one of {type(self).__name__}")
        if len(codes) != len(self.items) + 1:
            raise TigerError(f"the checkpoint is of another dataset: {len(codes) - 1} items, here {len(self.items)}")
        self.fit_to(state_dict)
        try:
            return super().load_state_dict(state_dict, strict)
        except RuntimeError as error:
            raise TigerError(
                f"the checkpoint was made with other settings: {str(error).splitlines()[-1].strip()}"
            ) from error

    def fit_to(self, state_dict):
        """Adapt shapes to the weights that will be loaded; they have the same number of items."""

    def load_other_parameter(self, para):
        """Load items and titles of a checkpoint, after checking that the items are those of the dataset.

        Raises:
            TigerError: the items differ, or the checkpoint has another revision.
        """
        if para:
            self.check_revision(para, "the checkpoint")
            if list(para["items"]) != self.items:
                raise TigerError("the checkpoint is of another dataset: its items differ")
        super().load_other_parameter(para)

    @classmethod
    def catalogue_of(cls, state):
        """The catalogue in a checkpoint.

        Args:
            state: from :func:`~recbole_tiger.training.checkpoint.load_checkpoint`.
        """
        other = state["other_parameter"]
        codes = state["state_dict"][cls.codes_name]
        return Catalogue(other["titles"], to_semantic_ids(other["items"], codes, other["collision_level"]), None)

    @classmethod
    def with_items(cls, state, items, titles, columns, codes, embeddings):
        """Append new items to a checkpoint; the codes of the old items do not change.

        Args:
            state: from :func:`~recbole_tiger.training.checkpoint.load_checkpoint`.
            items, titles: lists of n strings. columns: dict of field -> list of n strings.
            codes: int64 array [n, levels] without the collision level. embeddings: float32 array [n, dim].

        Returns:
            a new state, with everything that :meth:`from_checkpoint` needs.
        """
        old, other = cls.catalogue_of(state), state["other_parameter"]
        joined = add_collision_level(np.concatenate([old.semantic_ids.codes[:, :-1], codes]))
        if (joined[: len(old.items)] != old.semantic_ids.codes).any():
            raise TigerError("the collision level does not number items in their order: these IDs take no new items")
        if not other["collision_level"]:
            if joined[:, -1].any():
                raise TigerError("new items have the codes of others, and the IDs of this model have no collision level")
            joined = joined[:, :-1]
        return {
            "config": state["config"],
            "state_dict": {**state["state_dict"], cls.codes_name: F.pad(torch.from_numpy(joined), (0, 0, 1, 0))},
            "other_parameter": {
                **other,
                "items": [*other["items"], *items],
                "titles": [*other["titles"], *titles],
                "columns": {
                    name: [*values, *columns.get(name, [""] * len(items))] for name, values in other["columns"].items()
                },
            },
        }

    @classmethod
    def from_checkpoint(cls, state, device):
        """The model of a checkpoint, without the files of the dataset; it knows users by the table of hashed users only.

        Args:
            state: from :func:`~recbole_tiger.training.checkpoint.load_checkpoint`.
        """
        config, catalogue = copy.copy(state["config"]), cls.catalogue_of(state)
        # Loading the weights overwrites those from text.
        config.final_config_dict = {**config.final_config_dict, "device": device, "text_initializer": False}
        dataset = SimpleNamespace(
            catalogue=catalogue,
            num=lambda field: len(catalogue.items) + 1,
            field2id_token={config["USER_ID_FIELD"]: ["[PAD]"]},
        )
        model = cls(config, dataset).to(device)
        model.load_state_dict(state["state_dict"])
        model.load_other_parameter(state["other_parameter"])
        return model.eval()

    def semantic_ids(self):
        """The SemanticIDs that the model reads."""
        return to_semantic_ids(self.items, self.state_dict()[self.codes_name], self.collision_level)

    # --- inference ---

    def log_probs_of_levels(self, histories, slots, items):
        """Log-probabilities of the codes of items, level by level.

        Args:
            histories, slots: as in :meth:`exact`.
            items: int tensor [batch, n] of RecBole's ids.

        Returns:
            float tensor [batch, n, levels], which sums to the items' log-probabilities; None for a model without levels.
        """
        return None

    def histories_of(self, interaction):
        """Histories of RecBole's rows: int tensor [batch, longest history], padded with zeros on the left."""
        return left_padded(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], self.max_seq_length)

    def exact(self, histories, slots):
        """Log-probability of every item after each history.

        Args:
            histories: int tensor [batch, n], padded with zeros on the left.
            slots: int tensor [batch] of user slots, or None.

        Returns:
            float tensor [batch, n_items + 1], -inf for the padding item 0.
        """
        raise NotImplementedError

    def recommend(self, histories, slots, k, beam_size, scoring, among=None, left_out=None, temperature=None, seed=0):
        """The k best items after each history, or k items drawn without replacement (the Gumbel-top-k trick).

        Args:
            histories, slots: as in :meth:`exact`.
            scoring: one of ``scorings``; "exact" scores every item. beam_size: for the others.
            among: bool tensor [n_items + 1] of the items that lists may contain, or None for all.
            left_out: int tensor [batch, n] of the items that each list must not contain, padded with zeros, or None.
            temperature, seed: as in :class:`~recbole_tiger.model.draw.Draw`; temperature None for the best items.

        Returns:
            items (RecBole's ids) and scores (log-probabilities), each [batch, k], best first or in the order drawn.
        """
        size = max(1, SCORE_MATRIX // (len(self.items) + 1))
        rows = [repeat(None) if row is None else row.split(size) for row in (histories, slots, left_out)]
        found = [self._best(*part, k, among, temperature, seed) for part in zip(*rows, strict=False)]
        items, scores = map(torch.cat, zip(*found, strict=True))
        return items, scores

    def _best(self, histories, slots, left_out, k, among, temperature, seed):
        """The k best or drawn items after a part of the histories of :meth:`recommend`, by exact scores."""
        histories = histories.to(self.device)
        scores = self.exact(histories, slots)
        if among is not None:
            scores = scores.masked_fill(~among, -torch.inf)
        if left_out is not None:
            scores = scores.scatter(1, left_out, -torch.inf)
        if temperature is None:
            scores, items = scores.topk(k)
            return items, scores
        draw = Draw.of(temperature, seed, histories)
        noise = draw.gumbel(0, torch.arange(scores.shape[1], device=scores.device).expand(scores.shape))
        items = (scores.double() / temperature + noise).topk(k).indices
        return items, scores.gather(1, items)
