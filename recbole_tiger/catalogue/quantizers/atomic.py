"""One code per item, without semantics, for an ablation (DSI's unstructured atomic identifiers)."""

import torch

from recbole_tiger.catalogue.quantizers.base import Arbitrary


class Atomic(Arbitrary):
    """The code is the item's number in the catalogue (Tay et al. 2022, section 3.2). There are no settings."""

    distinct = True

    @property
    def widths(self):
        """Number of codes of each level."""
        return [int(self.learnt["items"])]

    def fit(self, x, *, seed, show_progress=False):
        """Codes of ``x`` [n_items, dim], an int64 tensor [n_items, 1]."""
        self.learnt = {"items": torch.tensor(len(x))}
        return torch.arange(len(x), device=x.device).unsqueeze(1)
