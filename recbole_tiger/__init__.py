"""TIGER (generative retrieval over semantic IDs) as a plugin of RecBole: importing this package registers the model."""

import warnings

with warnings.catch_warnings():
    # Ray 2.6.3 imports pkg_resources, which says that it will go; the bound on setuptools keeps it.
    warnings.simplefilter("ignore")
    from recbole.quick_start import run_recbole

from recbole_tiger import compat, memory, plugin

compat.mend()
plugin.register()
memory.keep_freed_memory()

from recbole_tiger.recommend import Recommender  # noqa: E402 - RecBole is mended first
from recbole_tiger.semantic_ids import SemanticIDs  # noqa: E402
from recbole_tiger.version import __version__  # noqa: E402

__all__ = ["Recommender", "SemanticIDs", "__version__", "run_recbole"]
