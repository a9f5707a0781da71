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


def quantizer_settings(config):
    """The settings that the configured quantizer reads, by name."""
    return {key: config[key] for key in inspect.signature(QUANTIZERS[config["quantizer"]]).parameters}


def make_quantizer(config):
    """The configured quantizer."""
    return QUANTIZERS[config["quantizer"]](**quantizer_settings(config))
