"""What every quantizer keeps to."""

from itertools import takewhile

import torch

from recbole_tiger.catalogue.quantizers.kmeans import CHUNK
from recbole_tiger.errors import TigerError


class Quantizer:
    """Embeddings -> codes.

    A quantizer defines :meth:`fit`, ``encode_part(x)``, which is :meth:`encode` of so many rows as fit in memory, and
    ``reconstruct(codes)`` if it reconstructs: codes [n, levels] -> float tensor [n, dim], in the space of ``x``.

    Attributes:
        learnt: dict of name -> tensor, all that :meth:`encode` and ``reconstruct`` need beside the settings; ``mean``, of
            the embeddings, is among them. Empty before :meth:`fit`. Assigned to a new quantizer of the same settings, it
            restores the fitted one.
    """

    # To be raised with every change by which the same settings make other codes: cached semantic IDs count no longer then.
    REVISION = 1
    # Whether no two items share all codes, so that no collision level is needed.
    distinct = False
    reconstruct = None

    def __init__(self):
        self.learnt = {}

    @property
    def widths(self):
        """Number of codes of each level, a list, once it is fitted; here for levels of equal width."""
        return [self.codebook_size] * self.codebook_depth

    def fit(self, x, *, seed, show_progress=False):
        """Learn from the embeddings of a catalogue, and code it.

        Args:
            x: float tensor [n_items, dim].

        Returns:
            int64 tensor [n_items, levels], each level below its width.
        """
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, x):
        """Codes of any embeddings; of those it was fitted on the same as from :meth:`fit`.

        Args:
            x: float tensor [n, dim].

        Returns:
            int64 tensor [n, levels].

        Raises:
            TigerError: their width is another than that of the embeddings it was fitted on.
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
        """Rows that are coded at once."""
        return CHUNK

    def _move(self, device):
        self.learnt = {name: tensor.to(device) for name, tensor in self.learnt.items()}

    def judged(self, statistics):
        """Levels, from 0, whose codes have to be used evenly: up to where fewer items are left to tell apart than codes.

        Args:
            statistics: of the SemanticIDs.
        """
        left = [statistics["items"] - apart for apart in (0, *statistics["distinct_prefixes"])]
        return list(takewhile(lambda level: left[level] >= self.widths[level], range(len(self.widths))))


class Arbitrary(Quantizer):
    """Codes that do not come from the embeddings."""

    def encode(self, x):
        """Refuse, as there is nothing to code by.

        Raises:
            TigerError: always.
        """
        raise TigerError(
            f"{type(self).__name__} gives codes that say nothing of the embeddings, so that new items get none from it; "
            f"train anew with these items, or with a quantizer that reads embeddings, as rq_vae"
        )

    def judged(self, statistics):
        """None of the levels: these codes have nothing to keep."""
        return []
