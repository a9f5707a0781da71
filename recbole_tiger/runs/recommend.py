"""Load a checkpoint and recommend items for a history."""

import math
import re
from collections.abc import Iterable
from numbers import Integral

import torch

from recbole_tiger.catalogue.tokenizer import Tokenizer, read_new_items
from recbole_tiger.errors import TigerError, check_number, named
from recbole_tiger.model import MODELS
from recbole_tiger.model.base import user_slot
from recbole_tiger.training.checkpoint import load_checkpoint, save_checkpoint


def padded_left(rows):
    """Convert lists of numbers to an int64 tensor, padded with zeros on the left."""
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + row for row in rows])


class Recommender:
    """A trained model of MODELS that recommends without the dataset's files.

    Attributes:
        items: item tokens of the catalogue.
        titles: titles of the items.
        semantic_ids: SemanticIDs of the items.
    """

    def __init__(self, state, device):
        self.model = MODELS[state["config"]["model"]].from_checkpoint(state, device)
        self.config, self.device = state["config"], device
        self.semantic_ids = self.model.semantic_ids()
        self.items, self.titles = self.model.items, self.model.titles
        self._row = {item: i for i, item in enumerate(self.items, start=1)}
        self._all = set(self._row.values())

    @classmethod
    def load(cls, checkpoint, device=None):
        """Read a checkpoint that a run saved, without running any code in it.

        Args:
            checkpoint: path of a file that a run saved.
            device: a torch device; the default is CUDA if available.

        Raises:
            TigerError: the file is absent, cut short, of another model, or contains code; or the device is not available.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise TigerError(f"device {str(device)!r}: PyTorch finds no GPU; give 'cpu', or leave device out")
        state = load_checkpoint(checkpoint)
        name = state["config"]["model"]
        if name not in MODELS:
            raise TigerError(
                f"{checkpoint} is a checkpoint of {name}, which reads no semantic IDs: give one of {' or '.join(MODELS)}"
            )
        MODELS[name].check_revision(state["other_parameter"], checkpoint)
        return cls(state, device)

    def add_items(self, file, item_embeddings=None):
        """Make a recommender with the same model that also knows new items; the IDs of the old items stay.

        The tokenizer gives new items their codes. Items that share codes with older ones are numbered after them.

        Args:
            file: item file of the new items, in RecBole's format.
            item_embeddings: file of their embeddings, for a model that was trained on such a file.

        Returns:
            Recommender.

        Raises:
            TigerError: the model keeps no tokenizer, an item is in the catalogue already or has no text, or the embeddings
                have another width.
        """
        if self.model.tokenizer is None:
            raise TigerError(
                "this model reads semantic IDs from a file and has no tokenizer to make those of new items: add them to the "
                "file and train again"
            )
        tokenizer = Tokenizer.from_state(self.model.tokenizer)
        own = tokenizer.made_by["item_embeddings"] is not None
        items, texts, titles, columns = read_new_items(file, self.config, text_needed=not own)
        there = [item for item in items if item in self._row]
        if there:
            raise TigerError(f"{len(there)} items of {file} are in the catalogue already: {named(there)}; leave them out")
        embeddings = tokenizer.embed(texts, items, item_embeddings, self.device)
        codes = tokenizer.encode(embeddings)
        return Recommender(self.model.with_items(self._state(), items, titles, columns, codes, embeddings), self.device)

    def _state(self):
        """The content of a checkpoint of the model."""
        return {
            "config": self.config,
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
        }

    def items_where(self, column, words):
        """Find the items whose value in a column of the item file contains words in sequence, ignoring case.

        Args:
            column: a text field that the checkpoint keeps, for example "categories". words: for example "Hair Care".

        Returns:
            list of item tokens, for ``among`` of :meth:`recommend`.

        Raises:
            TigerError: there is no such column, or no item has the words.
        """
        columns = self.model.columns
        if column not in columns:
            raise TigerError(f"the checkpoint keeps no column {column}: it has {', '.join(columns) or 'none'}")
        wanted = re.compile(rf"(?<!\w){re.escape(words.strip())}(?!\w)", flags=re.IGNORECASE)
        found = [item for item, value in zip(self.items, columns[column], strict=True) if wanted.search(value)]
        if not words.strip() or not found:
            raise TigerError(f"no item has {words!r} in {column}, as in {next(filter(None, columns[column]), '')!r}")
        return found

    def save(self, checkpoint):
        """Write a checkpoint that :meth:`load` reads, whole or not at all."""
        save_checkpoint(self._state(), checkpoint)

    def recommend(
        self,
        history,
        k=10,
        beam_size=None,
        scoring=None,
        exclude_history=False,
        user=None,
        among=None,
        temperature=None,
        seed=0,
    ):
        """Recommend the k most likely next items, or draw k items.

        Args:
            history: item tokens, oldest first, or a list of such lists; the last MAX_ITEM_LIST_LENGTH items are read.
            k: length of the list.
            beam_size: width of the beam, for a model that has one; the default is the larger of k and the setting of the
                trained model.
            scoring: for TIGER, "beam" (default) or "exact", which scores the whole catalogue.
            exclude_history: leave out all items of the history; a list of several is shorter if fewer than k items remain.
            user: user token, or a list of them, one per history; for a model trained with user tokens.
            among: item tokens allowed in the list, for example those in stock; None for all.
            temperature: draw items without replacement at this temperature: with the beam the codes of each level among
                those that lead to an allowed item, with "exact" the items; None or 0 gives the most likely items.
            seed: seed of the draw. The list of a history does not depend on the other histories.

        Returns:
            a list of dicts with ``item``, ``title`` and ``score`` (log-probability), best first or in the order of the draw;
            a list of such lists if ``history`` is a list of lists.

        Raises:
            TigerError: a history is empty or has unknown items, k or beam_size does not fit the items, or no list has k
                allowed items.
        """
        if not isinstance(history, str):
            history = list(history)
        batch = not isinstance(history, str) and len(history) and not isinstance(history[0], str)
        if isinstance(history, str) or (batch and not all(isinstance(one, list | tuple) for one in history)):
            raise TigerError("a history is a list of item tokens, which are strings; give several as a list of such lists")
        if batch:
            users = list(user) if isinstance(user, Iterable) and not isinstance(user, str) else [user] * len(history)
        else:
            history, users = [history], [user]
        histories = [list(one) for one in history]
        scoring = self.model.scorings[0] if scoring is None else scoring
        draw = {"temperature": temperature or None, "seed": seed}
        self._check(histories, scoring, draw)
        chosen = None if among is None else self._among(among)
        left_out = [{self._row[item] for item in one} if exclude_history else set() for one in histories]
        base = self._all if chosen is None else chosen
        most = max(len(base) - len(rows & base) for rows in left_out)
        beam_size = self._beam_size(k, beam_size, scoring, most)
        lists = self._lists(histories, users, k, beam_size, scoring, chosen, left_out, draw)
        return lists if batch else lists[0]

    def log_probs_of_levels(self, histories, items, user=None):
        """Split the log-probabilities of items after histories into the levels of their IDs.

        Args:
            histories: lists of item tokens. items: list of item tokens for each history. user: user token of all histories.

        Returns:
            for each history a list of its items' lists of floats, one per level, whose sum is the item's score; None for a
            model that scores whole items.
        """
        width = max(1, *map(len, items))
        found = self.model.log_probs_of_levels(
            self._read(histories),
            self._slots([user] * len(histories), len(histories)),
            torch.tensor([[*(self._row[item] for item in row), *[1] * (width - len(row))] for row in items]),
        )
        return None if found is None else [part[: len(row)].tolist() for part, row in zip(found, items, strict=True)]

    def _check(self, histories, scoring, draw):
        if scoring not in self.model.scorings:
            raise TigerError(f"unknown scoring {scoring!r}: it may be {' or '.join(self.model.scorings)}")
        for i, history in enumerate(histories):
            where = f"history {i + 1}" if len(histories) > 1 else "the history"
            if not history:
                raise TigerError(f"{where} is empty: give at least one item")
            unknown = [item for item in history if item not in self._row]
            if unknown:
                raise TigerError(
                    f"{where} has {len(unknown)} items that the model does not know: {named(unknown)}; it was trained on "
                    f"{self.config['dataset']}, which has items such as {named(self.items[:2])}"
                )
        if draw["temperature"] is not None:
            check_number("temperature", draw["temperature"], positive=True)
        if not isinstance(draw["seed"], int) or isinstance(draw["seed"], bool):
            raise TigerError(f"seed has to be a whole number, not {draw['seed']!r}")

    def _among(self, among):
        """The rows of the items allowed in a list."""
        if isinstance(among, str):
            raise TigerError("among is a list of item tokens, which are strings")
        among = list(among)
        unknown = [item for item in among if item not in self._row]
        if unknown:
            raise TigerError(f"among has {len(unknown)} items that the model does not know: {named(unknown)}")
        found = {self._row[item] for item in among}
        if not found:
            raise TigerError("among is empty: give the items allowed in a list")
        return found

    def _beam_size(self, k, beam_size, scoring, most):
        """The width of the beam for lists of k items, where at most ``most`` items are allowed."""
        n_items = len(self.items)
        if not isinstance(k, Integral) or not 1 <= k <= n_items:
            raise TigerError(f"k = {k} does not fit the catalogue of {n_items} items: it may be 1 to {n_items}")
        if most < k:
            raise TigerError(
                f"fewer than k = {k} items are left in the catalogue without the history's items and among those allowed: "
                f"lower k"
            )
        if scoring != "beam":
            if beam_size is not None:
                raise TigerError(f"scoring {scoring} scores the whole catalogue: leave out beam_size")
            return None
        beam_size = min(n_items, max(self.model.beam_size, k)) if beam_size is None else beam_size
        if not isinstance(beam_size, Integral) or not k <= beam_size <= n_items:
            raise TigerError(f"beam_size {beam_size} has to be from {k}, the list, to {n_items}, the catalogue")
        return beam_size

    def _lists(self, histories, users, k, beam_size, scoring, chosen, left_out, draw):
        device, among = self.device, None
        if chosen is not None:
            among = torch.zeros(len(self.items) + 1, dtype=torch.bool)
            among[list(chosen)] = True
            among = among.to(device)
        with torch.no_grad():
            items, scores = self.model.recommend(
                self._read(histories),
                self._slots(users, len(histories)),
                k,
                beam_size,
                scoring,
                among,
                padded_left([sorted(rows) for rows in left_out]).to(device) if any(left_out) else None,
                **draw,
            )
        return [
            [
                {"item": self.items[row - 1], "title": self.titles[row - 1], "score": score}
                for row, score in zip(*both, strict=True)
                if score > -math.inf  # fewer items are allowed than the list is long
            ]
            for both in zip(items.tolist(), scores.tolist(), strict=True)
        ]

    def _read(self, histories):
        """The part of each history that the model reads, as its input."""
        longest = self.model.max_seq_length
        return padded_left([[self._row[item] for item in history[-longest:]] for history in histories])

    def _slots(self, users, n):
        size = self.model.n_user_tokens
        if not size:
            if any(user is not None for user in users):
                raise TigerError("this model was trained without user tokens (n_user_tokens): leave out the user")
            return None
        if len(users) != n or any(user is None for user in users):
            raise TigerError("this model was trained with user tokens: give a user with every history")
        if wrong := [user for user in users if not isinstance(user, str | Integral)]:
            raise TigerError(f"a user is a token, a string or a whole number, not {wrong[0]!r}")
        return torch.tensor([user_slot(user, size) for user in users], device=self.device)
