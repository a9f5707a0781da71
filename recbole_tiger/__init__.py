"""TIGER (generative retrieval over semantic IDs) as a plugin of RecBole: importing this package registers the model."""

from recbole.quick_start import run_recbole

from recbole_tiger import compat, plugin
from recbole_tiger.semantic_ids import SemanticIDs
from recbole_tiger.version import __version__

__all__ = ["__version__", "Recommender", "SemanticIDs", "run_recbole"]

compat.mend()
plugin.register()

from recbole_tiger.recommend import Recommender  # noqa: E402 - reads checkpoints, so after the mending
