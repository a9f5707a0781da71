"""Quantizers: embeddings -> codes, one file a quantizer.

The protocol is :class:`Quantizer`: a constructor that takes the settings by name, ``fit``, ``encode``, ``learnt``, ``widths``,
``reconstruct``, ``distinct``, ``REVISION``. The same input and seed give the same codes on the same kind of processor, on a GPU
up to the order in which it adds.
"""

import inspect

from recbole_tiger.catalogue.quantizers.atomic import Atomic
from recbole_tiger.catalogue.quantizers.base import Quantizer
from recbole_tiger.catalogue.quantizers.hierarchical_kmeans import HierarchicalKMeans
from recbole_tiger.catalogue.quantizers.lsh import LSH
from recbole_tiger.catalogue.quantizers.opq import OPQ
from recbole_tiger.catalogue.quantizers.random_codes import RandomCodes
from recbole_tiger.catalogue.quantizers.rq_kmeans import RQKMeans
from recbole_tiger.catalogue.quantizers.rq_vae import RQVAE
from recbole_tiger.catalogue.quantizers.string_codes import StringCodes
from recbole_tiger.catalogue.quantizers.vq import VQ

__all__ = ["QUANTIZERS", "Quantizer", "make_quantizer", "quantizer_settings"]

QUANTIZERS = {
    "rq_vae": RQVAE,
    "rq_kmeans": RQKMeans,
    "vq": VQ,
    "opq": OPQ,
    "hierarchical_kmeans": HierarchicalKMeans,
    "lsh": LSH,
    "random": RandomCodes,
    "atomic": Atomic,
    "string": StringCodes,
}


def quantizer_settings(config):
    """The settings that the configured quantizer reads, by name."""
    return {key: config[key] for key in inspect.signature(QUANTIZERS[config["quantizer"]]).parameters}


def make_quantizer(config):
    """The configured quantizer."""
    return QUANTIZERS[config["quantizer"]](**quantizer_settings(config))
