"""What the rest of the package asks of a model that reads semantic IDs."""

import zlib
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

# The field of a batch with the items that lists leave out: int tensor [batch, n], different ones, padded with zeros.
LEFT_OUT = "left_out"


def left_padded(item_seq, lengths, max_items):
    """RecBole's histories, padded on the right -> the last ``max_items`` of each, padded on the left.

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


def table_of(items, codes, collision_level):
    """SemanticIDs of a model's codes, int tensor [n_items + 1, levels], whose last level is the collision level or not."""
    codes = codes[1:].cpu().numpy()
    return SemanticIDs(items, codes if collision_level else np.pad(codes, ((0, 0), (0, 1))))


class SemanticIDModel(SequentialRecommender):
    """A sequential recommender of RecBole's that reads the semantic IDs of a catalogue.

    A subclass has ``calculate_loss``, ``predict`` and ``full_sort_predict`` as RecBole wants them, and :meth:`exact`.

    Args:
        config: RecBole's Config. dataset: has ``catalogue``, a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`.

    Attributes:
        items, titles: lists of the catalogue's tokens and titles; item i + 1 of RecBole is the one at i.
        columns: dict of text field -> list of the items' values.
        revision: of the class, to be raised with every change by which the same weights make another model: then older
            checkpoints are refused.
        dataset_class, trainer_class: of the class, dotted names; without a trainer RecBole's own trains the model, and a
            killed run begins again.
        scorings: of the class, the ways in which it finds the best items, the usual one first.
        codes_name: of the class, the name of its codes in the checkpoint, int tensor [n_items + 1, levels].
        collision_level: whether the last of these levels is the collision level.
        tokenizer: what gives new items their codes, of :meth:`~recbole_tiger.catalogue.tokenizer.Tokenizer.state`; or None.
        n_user_tokens: rows of the table of hashed users; 0 for none.
    """

    input_type = InputType.POINTWISE
    revision = 1
    dataset_class = "recbole_tiger.training.dataset.CatalogueDataset"
    trainer_class = None
    scorings = ("exact",)
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

    # --- what is asked of the class, before there is a model ---

    @classmethod
    def check_settings(cls, config):
        """Refuse settings that cannot work together; their types are checked already.

        Raises:
            TigerError: with the setting and what it may be.
        """

    @classmethod
    def check_sizes(cls, config, n_items):
        """Refuse settings that do not fit a catalogue of ``n_items``.

        Raises:
            TigerError: with the setting.
        """

    @classmethod
    def needs_embeddings(cls, settings):
        """Whether the codes or the model are made of the items' embeddings."""
        return not settings["semantic_ids"]

    @classmethod
    def needs_text(cls, settings):
        """Whether the embeddings are made of the items' text; without, text serves as titles alone."""
        return cls.needs_embeddings(settings) and not settings["item_embeddings"]

    @classmethod
    def needs_scores(cls, settings):
        """Whether an evaluation batch is a matrix of scores [users, items]."""
        return True

    # --- checkpoints ---

    @classmethod
    def check_revision(cls, parameters, source):
        """Refuse a checkpoint whose weights mean something else in today's model.

        Args:
            parameters: its ``other_parameter``. source: what the message calls it.

        Raises:
            TigerError: it is of another revision, or of the time before there were any.
        """
        if parameters.get("revision") != cls.revision:
            raise TigerError(
                f"{source} was made by revision {parameters.get('revision', 1)} of the model, in which weights mean "
                f"something else than in this, revision {cls.revision}: remove it, and train it anew"
            )

    def load_state_dict(self, state_dict, strict=True):
        """Load weights together with the codes that they were trained on.

        Raises:
            TigerError: they belong to another catalogue, other settings or another model.
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
        """Take the shape of weights that are loaded next; their catalogue has as many items."""

    def load_other_parameter(self, para):
        """Take over items and titles of a checkpoint, which have to be those of the dataset.

        Raises:
            TigerError: they are not, or the weights are of another revision.
        """
        if para:
            self.check_revision(para, "the checkpoint")
            if list(para["items"]) != self.items:
                raise TigerError("the checkpoint is of another dataset: its items differ")
        super().load_other_parameter(para)

    @classmethod
    def catalogue_of(cls, state):
        """The catalogue that a checkpoint holds.

        Args:
            state: of :func:`~recbole_tiger.training.checkpoint.load_checkpoint`.
        """
        other = state["other_parameter"]
        codes = state["state_dict"][cls.codes_name]
        return Catalogue(other["titles"], table_of(other["items"], codes, other["collision_level"]), None)

    @classmethod
    def with_items(cls, state, items, titles, columns, codes, embeddings):
        """The checkpoint of the same model with new items behind the old ones; the codes of these stay.

        Args:
            state: of :func:`~recbole_tiger.training.checkpoint.load_checkpoint`.
            items, titles: lists of n strings. columns: dict of field -> list of n strings.
            codes: int64 array [n, levels] without the collision level. embeddings: float32 array [n, dim].

        Returns:
            a state of the same form, with what :meth:`from_checkpoint` needs.
        """
        old, other = cls.catalogue_of(state), state["other_parameter"]
        joined = add_collision_level(np.concatenate([old.semantic_ids.codes[:, :-1], codes]))
        if (joined[: len(old.items)] != old.semantic_ids.codes).any():
            raise TigerError("the items of a group are not numbered in their order: these IDs take no new items")
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
        """The model of a checkpoint, without the dataset's files; users are those of the table of hashed users alone.

        Args:
            state: of :func:`~recbole_tiger.training.checkpoint.load_checkpoint`.
        """
        config, catalogue = state["config"], cls.catalogue_of(state)
        config["device"] = device
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
        """Those that the model reads, as a table."""
        return table_of(self.items, self.state_dict()[self.codes_name], self.collision_level)

    # --- inference ---

    def log_probs_of_levels(self, histories, slots, items):
        """The parts of the log-probability of items, one a level of their IDs.

        Args:
            histories, slots: as :meth:`exact` takes them.
            items: int tensor [batch, n] of RecBole's ids.

        Returns:
            float tensor [batch, n, levels]; None for a model that scores items whole.
        """
        return None

    def histories_of(self, interaction):
        """Histories of RecBole's rows, int tensor [batch, longest], padded with zeros on the left."""
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
        """The k best items after each history, or k that are drawn without replacement (the Gumbel-top-k trick).

        Args:
            histories, slots: as :meth:`exact` takes them.
            scoring: one of ``scorings``; "exact" is a score of every item. beam_size: of the others.
            among: bool tensor [n_items + 1] of the items that a list may have, or None.
            left_out: int tensor [batch, n] of items that it may not have, padded with zeros, or None.
            temperature, seed: of :class:`~recbole_tiger.model.draw.Draw`; None for the best.

        Returns:
            items (RecBole's ids) and scores (log-probabilities), each [batch, k], best first or in the order of the draw.
        """
        scores = self.exact(histories, slots)
        if among is not None:
            scores = scores.masked_fill(~among, -torch.inf)
        if left_out is not None:
            scores = scores.scatter(1, left_out, -torch.inf)
        if temperature is None:
            scores, items = scores.topk(k)
            return items, scores
        draw = Draw.of(temperature, seed, histories.to(scores.device))
        noise = draw.gumbel(0, torch.arange(scores.shape[1], device=scores.device).expand(scores.shape))
        items = (scores.double() / temperature + noise).topk(k).indices
        return items, scores.gather(1, items)
