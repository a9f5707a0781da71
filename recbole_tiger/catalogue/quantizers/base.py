"""Base classes of the quantizers."""

from itertools import takewhile

import torch

from recbole_tiger.catalogue.quantizers.kmeans import CHUNK
from recbole_tiger.errors import TigerError


class Quantizer:
    """Embeddings -> codes.

    A subclass defines :meth:`fit` and ``encode_part(x)``, which encodes as many rows as fit in memory. It may define
    ``reconstruct(codes)``: codes [n, levels] -> float tensor [n, dim], in the space of ``x``.

    Attributes:
        learnt: dict of name -> tensor. Together with the settings it is all that :meth:`encode` and ``reconstruct`` need; it
            includes ``mean``, the mean of the embeddings, if the quantizer reads them. It is empty before :meth:`fit`.
            Assigning it to a new quantizer with the same settings restores the fitted one.
    """

    # Raise it with every change that makes other codes from the same settings; it invalidates cached semantic IDs.
    REVISION = 1
    # True if no two items share all codes, so that no collision level is needed.
    distinct = False
    reconstruct = None

    def __init__(self):
        self.learnt = {}

    @property
    def widths(self):
        """List of the number of codes of each level; valid after :meth:`fit`."""
        return [self.codebook_size] * self.codebook_depth

    def check_width(self, dim):
        """Refuse embeddings of a width that the settings do not fit, before texts are encoded; here none.

        Raises:
            TigerError: with the width and the setting.
        """

    def fit(self, x, *, seed, show_progress=False):
        """Learn from the embeddings of a catalogue, and encode them.

        Args:
            x: float tensor [n_items, dim].

        Returns:
            int64 tensor [n_items, levels]; the codes of a level are below its width.
        """
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, x):
        """Codes of any embeddings; for the embeddings of :meth:`fit` they are the codes that it returned.

        Args:
            x: float tensor [n, dim].

        Returns:
            int64 tensor [n, levels].

        Raises:
            TigerError: the embeddings have another width than those of :meth:`fit`.
        """
        width = len(self.learnt["mean"])
        if x.shape[1] != width:
            raise TigerError(
                f"embeddings of width {x.shape[1]} do not fit a quantizer that was fitted on embeddings of width {width}; "
                f"make them with the same text encoder"
            )
        self._move(x.device)
        return torch.cat([self.encode_part(part) for part in x.split(self._chunk(width))])

    def _chunk(self, dim):
        """Number of rows to encode at once."""
        return CHUNK

    def _move(self, device):
        self.learnt = {name: tensor.to(device) for name, tensor in self.learnt.items()}

    def levels_to_check(self, statistics):
        """The first levels, from 0, whose codes must be used evenly: at least as many items as codes are left to tell apart.

        Args:
            statistics: of the SemanticIDs.
        """
        left = [statistics["items"] - apart for apart in (0, *statistics["distinct_prefixes"])]
        return list(takewhile(lambda level: left[level] >= self.widths[level], range(len(self.widths))))


class Arbitrary(Quantizer):
    """Base class of quantizers whose codes do not depend on the embeddings."""

    def encode(self, x):
        """Not supported.

        Raises:
            TigerError: always.
        """
        raise TigerError(
            f"codes of {type(self).__name__} do not depend on the embeddings, so it cannot encode new items; "
            f"train anew with these items, or with a quantizer that reads embeddings, such as rq_vae"
        )

    def levels_to_check(self, statistics):
        """No level: these codes keep nothing of the embeddings."""
        return []
