"""The digits of an arbitrary number per item (DSI's naively structured string identifiers)."""

import torch

from recbole_tiger.catalogue.quantizers.base import Arbitrary


class StringCodes(Arbitrary):
    """The decimal digits of a number drawn for the item, one per level, with leading zeros.

    See Tay et al. 2022, section 3.2. The item's number in the catalogue would not do: it follows the order of the
    interactions, so the digits of a user's items, held-out ones included, would be alike. There are no settings.
    """

    REVISION = 2
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
        number = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        return number.unsqueeze(1) // powers % 10
