"""VQ-VAE: the RQ-VAE with a single codebook, as the paper's section 3.1 remarks on it (van den Oord et al. 2017)."""

import inspect

from recbole_tiger.catalogue.quantizers.rq_vae import RQVAE


class VQ(RQVAE):
    """One code an item; the settings are those of :class:`RQVAE` without ``codebook_depth``."""

    # The settings are read off the signature.
    __signature__ = inspect.Signature(
        [parameter for name, parameter in inspect.signature(RQVAE).parameters.items() if name != "codebook_depth"]
    )

    def __init__(self, **settings):
        super().__init__(codebook_depth=1, **settings)
