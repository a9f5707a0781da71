"""The digits of the item's number (DSI's naively structured string identifiers)."""

import torch

from recbole_tiger.catalogue.quantizers.base import Arbitrary


class StringCodes(Arbitrary):
    """The decimal digits of the item's number in the catalogue, one per level, with leading zeros.

    See Tay et al. 2022, section 3.2. There are no settings.
    """

    distinct = True

    @property
    def widths(self):
        """Number of codes of each level."""
        return [10] * int(self.learnt["digits"])

    def fit(self, x, *, seed, show_progress=False):
        """Codes of ``x`` [n_items, dim], an int64 tensor [n_items, digits]."""
        digits = len(str(len(x) - 1))
        self.learnt = {"digits": torch.tensor(digits)}
        powers = 10 ** torch.arange(digits, device=x.device).flip(0)
        return torch.arange(len(x), device=x.device).unsqueeze(1) // powers % 10
