"""Quantizers: embeddings -> codes, one file a quantizer.

The protocol is :class:`~recbole_tiger.catalogue.quantizers.base.Quantizer`, of which every quantizer is a subclass: a
constructor that takes its settings by name, ``fit``, ``encode``, ``learnt``, ``widths``, ``reconstruct``, ``distinct``,
``REVISION``. The same input and seed give the same codes on the same kind of processor, on a GPU up to the order in which it
adds.
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
        name: what the setting ``quantizer`` calls it. cls: a class of the protocol above.
        settings: its own settings and their defaults, a dict or the path of a YAML file as ``properties/catalogue.yaml``.

    Raises:
        TigerError: the name is taken.
    """
    QUANTIZERS.register(name, cls, settings or {})


def _read_by(quantizer):
    return inspect.signature(QUANTIZERS[quantizer]).parameters.keys()


def quantizer_settings(config):
    """The settings that the configured quantizer reads, by name."""
    return {key: config[key] for key in _read_by(config["quantizer"])}


def unread_settings(config, given):
    """Those of the settings ``given`` that other quantizers read than the configured one; none with IDs from a file."""
    if config["semantic_ids"]:
        return []
    of_any = {key for quantizer in QUANTIZERS for key in _read_by(quantizer)}
    return sorted(set(given) & of_any - _read_by(config["quantizer"]))


def make_quantizer(config):
    """The configured quantizer."""
    return QUANTIZERS[config["quantizer"]](**quantizer_settings(config))
