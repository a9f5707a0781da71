"""Quantizers: embeddings -> codes, one file per quantizer.

Every quantizer is a subclass of :class:`~recbole_tiger.catalogue.quantizers.base.Quantizer`: a constructor that takes the
settings by name, ``fit``, ``encode``, ``learnt``, ``widths``, ``reconstruct``, ``distinct``, ``REVISION``. The same input
and seed give the same codes on the same kind of processor; on a GPU, sums may differ by rounding.
"""

import inspect

from recbole_tiger.registry import Registry

QUANTIZERS = Registry(
    "quantizer",
    rq_vae="recbole_tiger.catalogue.quantizers.rq_vae.RQVAE",
    rq_kmeans="recbole_tiger.catalogue.quantizers.rq_kmeans.RQKMeans",
    vq="recbole_tiger.catalogue.quantizers.vq.VQ",
    opq="recbole_tiger.catalogue.quantizers.opq.OPQ",
    hierarchical_kmeans="recbole_tiger.catalogue.quantizers.hierarchical_kmeans.HierarchicalKMeans",
    lsh="recbole_tiger.catalogue.quantizers.lsh.LSH",
    random="recbole_tiger.catalogue.quantizers.random_codes.RandomCodes",
    atomic="recbole_tiger.catalogue.quantizers.atomic.Atomic",
    string="recbole_tiger.catalogue.quantizers.string_codes.StringCodes",
)


def register_quantizer(name, cls, settings=None):
    """Add a quantizer from outside of this package to QUANTIZERS.

    Args:
        name: its value of the setting ``quantizer``. cls: the subclass of Quantizer.
        settings: its own settings and their defaults, a dict or the path of a YAML file like ``properties/catalogue.yaml``.

    Raises:
        TigerError: the name is taken.
    """
    QUANTIZERS.register(name, cls, settings or {})


def _setting_names(quantizer):
    return inspect.signature(QUANTIZERS[quantizer]).parameters.keys()


def quantizer_settings(config):
    """The settings that the configured quantizer reads, by name."""
    return {key: config[key] for key in _setting_names(config["quantizer"])}


def unread_settings(config, given):
    """Those of the ``given`` settings that only other quantizers read; an empty list with IDs from a file."""
    if config["semantic_ids"]:
        return []
    all_names = {key for quantizer in QUANTIZERS for key in _setting_names(quantizer)}
    return sorted(set(given) & all_names - _setting_names(config["quantizer"]))


def make_quantizer(config):
    """The configured quantizer."""
    return QUANTIZERS[config["quantizer"]](**quantizer_settings(config))
