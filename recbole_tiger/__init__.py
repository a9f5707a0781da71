"""TIGER (generative retrieval over semantic IDs) as a plugin of RecBole: importing this package registers its models.

The models are registered when RecBole is first imported, or at once if it is imported already. This package imports neither
RecBole nor PyTorch before a name that needs them is used.
"""

import importlib

from recbole_tiger import compat, plugin  # noqa: F401 - they act when RecBole is imported
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
