"""Test users of a trained model, for scripts that examine its lists."""

from typing import NamedTuple

import numpy as np
import torch
from recbole.quick_start import load_data_and_model

import recbole_tiger  # noqa: F401 - registers TIGER


class Sample(NamedTuple):
    """The model of a checkpoint and some test users.

    Attributes:
        config, model, dataset: as RecBole's ``load_data_and_model`` returns them; the model evaluates.
        histories: int tensor [users, n], padded with zeros on the left. slots: int tensor [users] of user slots, or None.
        targets: int tensor [users].
    """

    config: object
    model: object
    dataset: object
    histories: torch.Tensor
    slots: torch.Tensor | None
    targets: torch.Tensor

    def slots_of(self, part):
        """The token slots of some of the users."""
        return None if self.slots is None else self.slots[part]


def sample(checkpoint, users, seed):
    """Draw test users of the dataset on which a checkpoint was trained."""
    config, model, dataset, _, _, test_data = load_data_and_model(checkpoint)
    rows = np.random.default_rng(seed).permutation(len(test_data._dataset))[:users]
    interaction = test_data._dataset[rows].to(config["device"])
    histories, slots = model.histories_of(interaction), model.slots_of(interaction[model.USER_ID])
    return Sample(config, model.eval(), dataset, histories, slots, interaction[model.ITEM_ID])
