"""Quantizers: embeddings -> codes, one file a quantizer.

The protocol: a class whose constructor takes its settings by name and whose
``fit(x, *, seed, show_progress=False)`` maps a float tensor [n_items, dim] to an int64 tensor of codes
[n_items, codebook_depth], each below ``codebook_size``; the same input and seed give the same codes
on the same kind of processor, on a GPU up to the order in which it adds.
"""

import inspect

from recbole_tiger.registry import Registry

# To be raised with every change by which the same settings make other codes: cached semantic IDs count no longer then.
REVISION = 3

QUANTIZERS = Registry(
    "quantizer",
    rq_vae="recbole_tiger.catalogue.quantizers.rq_vae.RQVAE",
    rq_kmeans="recbole_tiger.catalogue.quantizers.rq_kmeans.RQKMeans",
    lsh="recbole_tiger.catalogue.quantizers.lsh.LSH",
    random="recbole_tiger.catalogue.quantizers.random_codes.RandomCodes",
)


def register_quantizer(name, cls, settings=None):
    """Add a quantizer from outside of this package to QUANTIZERS.

    Args:
        name: what the setting ``quantizer`` calls it. cls: a class of the protocol above.
        settings: its own settings and their defaults, a dict or the path of a YAML file as ``properties/catalogue.yaml``.

    Raises:
        TigerError: the name is taken.
    """
    QUANTIZERS.register(name, cls, settings or {})


def quantizer_settings(config):
    """The settings that the configured quantizer reads, by name."""
    return {key: config[key] for key in inspect.signature(QUANTIZERS[config["quantizer"]]).parameters}


def make_quantizer(config):
    """The configured quantizer."""
    return QUANTIZERS[config["quantizer"]](**quantizer_settings(config))
