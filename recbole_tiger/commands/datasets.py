"""``recbole-tiger datasets``."""

import textwrap

from recbole_tiger.catalogue.datasets import DATASETS
from recbole_tiger.settings.properties import property_files, read_file, recbole_folder, summary_of

SUMMARY = "List the included datasets and those to download"
EXAMPLE = "recbole-tiger datasets"
SETTINGS = False


def add_arguments(parser):
    """The command has no arguments of its own."""


def execute(args):
    """Print a line for each dataset known to this package, and the names in RecBole's list."""
    from tabulate import tabulate

    rows = [[name, summary_of("dataset", name)] for name in property_files("dataset")]
    rows += [[name, f"Amazon's {amazon.department}, 5-core: {amazon.published}."] for name, amazon in DATASETS.items()]
    print(tabulate(rows, tablefmt="plain"))
    listed = read_file(recbole_folder() / "properties/dataset/url.yaml")
    print("\nin RecBole's list, to fetch with recbole-tiger download:")
    print(textwrap.fill(", ".join(sorted(set(listed) - set(DATASETS))), 100, break_on_hyphens=False))
