"""Quantizers: embeddings -> codes, one file per quantizer.

Every quantizer is a subclass of :class:`~recbole_tiger.catalogue.quantizers.base.Quantizer`, which says what it has to and
what it may define; its constructor takes the settings by name. The same input and seed give the same codes on the same kind
of processor; on a GPU, sums may differ by rounding.
"""

import inspect

from recbole_tiger.errors import TigerError
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
        TigerError: ``cls`` is no such class, or the name is taken.
    """
    from recbole_tiger.catalogue.quantizers.base import Quantizer

    if not isinstance(cls, type) or not issubclass(cls, Quantizer):
        raise TigerError(f"{cls!r} is no subclass of Quantizer: derive it from that, see quantizers/base.py")
    QUANTIZERS.register(name, cls, settings or {})


def _setting_names(quantizer):
    return inspect.signature(QUANTIZERS[quantizer]).parameters.keys()


def quantizer_settings(config):
    """The settings that the configured quantizer reads, by name.

    Raises:
        TigerError: a parameter of the quantizer is no setting.
    """
    names = _setting_names(config["quantizer"])
    if absent := [key for key in names if key not in config]:
        raise TigerError(f"quantizer {config['quantizer']} takes {', '.join(absent)}: register it with a default for this")
    return {key: config[key] for key in names}


def unread_settings(config, given):
    """Those of the ``given`` settings that only other quantizers read; an empty list with IDs from a file."""
    if config["semantic_ids"]:
        return []
    all_names = {key for quantizer in QUANTIZERS for key in _setting_names(quantizer)}
    return sorted(set(given) & all_names - _setting_names(config["quantizer"]))


def make_quantizer(config):
    """The configured quantizer."""
    return QUANTIZERS[config["quantizer"]](**quantizer_settings(config))
