"""``recbole-tiger models``."""

import textwrap

from recbole_tiger.commands.shared import add_plugins
from recbole_tiger.model import MODELS
from recbole_tiger.settings.properties import recbole_models, recipes, summary_of

SUMMARY = "List the models and recipes"
EXAMPLE = "recbole-tiger models"
SETTINGS = False


def add_arguments(parser):
    """Add the command's own arguments."""
    add_plugins(parser)


def execute(args):
    """Print a line for each model of this package and for each recipe, and the names of RecBole's models."""
    from tabulate import tabulate

    rows = [["model", name, summary_of("model", name)] for name in MODELS]
    rows += [["recipe", name, summary_of("recipe", name)] for name in recipes()]
    print(tabulate(rows, tablefmt="plain"))
    print("\nmodels of RecBole:")
    print(textwrap.fill(", ".join(recbole_models()), 100, break_on_hyphens=False))
