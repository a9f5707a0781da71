"""Load a checkpoint, recommend for a history."""

from types import SimpleNamespace

import numpy as np
import torch

from recbole_tiger.catalogue import Catalogue
from recbole_tiger.checkpoint import load_checkpoint
from recbole_tiger.errors import TigerError, named
from recbole_tiger.model.tiger import TIGER, check_revision, user_slot
from recbole_tiger.semantic_ids import SemanticIDs


class Recommender:
    """A trained TIGER that recommends without the dataset's folder.

    Attributes:
        items: item tokens of the catalogue.
        titles: their titles.
        semantic_ids: their SemanticIDs.
    """

    def __init__(self, model, semantic_ids):
        self.model = model.eval()
        self.semantic_ids = semantic_ids
        self.items, self.titles = model.items, model.titles
        self._row = {item: i for i, item in enumerate(self.items, start=1)}

    @classmethod
    def load(cls, checkpoint, device=None):
        """Read a checkpoint that TIGER's trainer wrote; nothing in it is run.

        Args:
            checkpoint: path of a ``TIGER-*.pth``.
            device: a torch device; the default is CUDA where there is one.

        Raises:
            TigerError: the file is absent, cut short, of another model, or carries code; or the device is not there.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise TigerError(f"device {str(device)!r}: this PyTorch finds no GPU here; give 'cpu', or none")
        state = load_checkpoint(checkpoint, device)
        config = state["config"]
        if config["model"] != "TIGER":
            raise TigerError(f"{checkpoint} is a checkpoint of {config['model']}, not of TIGER; give a TIGER-*.pth")
        weights, other = state["state_dict"], state["other_parameter"]
        check_revision(other, checkpoint)
        codes = weights["network.codes"][1:].cpu().numpy()
        text = weights.get("network.text")
        catalogue = Catalogue(
            other["titles"],
            SemanticIDs(other["items"], codes),
            # The model standardises what it is given; the stored text is loaded over it.
            None if text is None else np.ascontiguousarray(text[1:].float().cpu().numpy()),
        )
        config["device"] = device
        config["text_initializer"] = False  # the weights are loaded over it
        stand_in = SimpleNamespace(
            catalogue=catalogue,
            num=lambda field: len(catalogue.items) + 1,
            field2id_token={config["USER_ID_FIELD"]: ["[PAD]"]},
        )
        model = TIGER(config, stand_in).to(device)
        model.load_state_dict(weights)
        return cls(model, catalogue.semantic_ids)

    def recommend(self, history, k=10, beam_size=None, scoring="beam", exclude_history=False, user=None):
        """The k most likely next items.

        Args:
            history: item tokens, oldest first, or a list of such lists; the last MAX_ITEM_LIST_LENGTH are read.
            k: length of the list.
            beam_size: width of the beam; the default is the larger of the trained model's setting and k. With
                ``exclude_history`` it is as wide as a history needs, whatever the others are.
            scoring: "beam", or "exact" to score the whole catalogue.
            exclude_history: leave out the items of the history; where fewer than k others are, the list is shorter.
            user: user token, or a list of them, one a history; for a model trained with user tokens.

        Returns:
            best first, a list of dicts with ``item``, ``title`` and ``score`` (log-probability); a list of such lists where
            ``history`` was one.

        Raises:
            TigerError: a history is empty or has unknown items, or k or beam_size does not fit the catalogue.
        """
        batch = not isinstance(history, str) and len(history) and not isinstance(history[0], str)
        if isinstance(history, str) or (batch and not all(isinstance(one, list | tuple) for one in history)):
            raise TigerError("a history is a list of item tokens, which are strings; several are a list of such lists")
        if batch:
            users = [user] * len(history) if user is None or isinstance(user, str) else user
            return self._recommend([list(one) for one in history], users, k, beam_size, scoring, exclude_history)
        return self._recommend([list(history)], [user], k, beam_size, scoring, exclude_history)[0]

    def _recommend(self, histories, users, k, beam_size, scoring, exclude_history):
        n_items = len(self.items)
        if scoring not in ("beam", "exact"):
            raise TigerError(f"unknown scoring {scoring!r}: it may be beam or exact")
        for i, history in enumerate(histories):
            where = f"history {i + 1}" if len(histories) > 1 else "the history"
            if not history:
                raise TigerError(f"{where} is empty: give at least one item")
            unknown = [item for item in history if item not in self._row]
            if unknown:
                raise TigerError(f"{where} has {len(unknown)} items that the model does not know: {named(unknown)}")
        if not 1 <= k <= n_items:
            raise TigerError(f"k = {k} does not fit the catalogue of {n_items} items: it may be 1 to {n_items}")
        spare = [len(set(history)) if exclude_history else 0 for history in histories]
        if min(spare) + k > n_items:
            raise TigerError(f"without the history's items the catalogue has fewer than k = {k} items")
        beam_size = max(self.model.beam_size, k) if beam_size is None else beam_size
        if scoring == "beam" and not k <= beam_size <= n_items:
            raise TigerError(f"beam_size {beam_size} has to be from {k}, what the list needs, to {n_items}, the catalogue")

        slots = self._slots(users, len(histories))
        longest = self.model.max_seq_length
        rows = [[self._row[item] for item in history[-longest:]] for history in histories]
        device = self.model.network.codes.device
        found, scored = [None] * len(rows), [None] * len(rows)
        for more in sorted(set(spare)):  # a list depends on its own history alone
            group = [i for i, own in enumerate(spare) if own == more]
            width = max(len(rows[i]) for i in group)
            padded = torch.tensor([[0] * (width - len(rows[i])) + rows[i] for i in group], device=device)
            wanted = min(k + more, n_items)
            own_slots = None if slots is None else slots[torch.tensor(group, device=device)]
            with torch.no_grad():
                items, scores = self.model.recommend(padded, own_slots, wanted, max(beam_size, wanted), scoring)
            for i, own_items, own_scores in zip(group, items.tolist(), scores.tolist(), strict=True):
                found[i], scored[i] = own_items, own_scores
        result = []
        for history, items, scores in zip(histories, found, scored, strict=True):
            left_out = {self._row[item] for item in history} if exclude_history else set()
            kept = [(row, value) for row, value in zip(items, scores, strict=True) if row not in left_out][:k]
            result.append(
                [{"item": self.items[row - 1], "title": self.titles[row - 1], "score": value} for row, value in kept]
            )
        return result

    def _slots(self, users, n):
        size = self.model.n_user_tokens
        if not size:
            if any(user is not None for user in users):
                raise TigerError("this model was trained without user tokens (n_user_tokens): leave out the user")
            return None
        if len(users) != n or any(user is None for user in users):
            raise TigerError("this model was trained with user tokens: give a user with every history")
        return torch.tensor([user_slot(user, size) for user in users], device=self.model.network.codes.device)
