"""TIGER (generative retrieval over semantic IDs) as a plugin of RecBole: importing this package registers the model.

RecBole learns of it with its own first import, or at once where it is imported already; this package imports neither it nor
PyTorch before a name of theirs is asked for.
"""

import importlib

from recbole_tiger import compat, plugin  # noqa: F401 - they wait for RecBole
from recbole_tiger.version import __version__

_HOMES = {
    "Recommender": "recbole_tiger.runs.recommend",
    "SemanticIDs": "recbole_tiger.catalogue.semantic_ids",
    "SemanticIDModel": "recbole_tiger.model.base",
    "register_model": "recbole_tiger.model",
    "register_quantizer": "recbole_tiger.catalogue.quantizers",
    "run_recbole": "recbole.quick_start",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
