"""VQ-VAE: the RQ-VAE with a single codebook (paper section 3.1; van den Oord et al. 2017)."""

import inspect

from recbole_tiger.catalogue.quantizers.rq_vae import RQVAE


class VQ(RQVAE):
    """One code per item; the settings are those of :class:`RQVAE` without ``codebook_depth``."""

    # The signature defines the settings.
    __signature__ = inspect.Signature(
        [parameter for name, parameter in inspect.signature(RQVAE).parameters.items() if name != "codebook_depth"]
    )

    def __init__(self, **settings):
        super().__init__(codebook_depth=1, **settings)
