"""What do codes mean? Categories over the first code, and over the second given the first (Rajput et al. 2023, figure 4).

python benchmarks/categories.py --data_path=dataset --output=benchmarks/results/categories.json
    --plot=benchmarks/results/categories.png

The category of an item is one level of its path in the item file, like Makeup in "Beauty > Makeup > Nails". The entropy
given the codes is compared with that given random codes, which also falls with the number of groups. Any setting of TIGER
may be given as --key=value.
"""

import argparse

import numpy as np
import pandas as pd
from scipy.stats import entropy
from tabulate import tabulate

from recbole_tiger.report.results import write_result
from recbole_tiger.runs import experiment
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.training.dataset import CatalogueDataset

# Number of first and second codes in the picture, those with most items; number of categories with a colour.
SHOWN, COLOURS = 12, 8


def entropy_given(categories, groups):
    """Entropy of the categories in bits, given the group of an item.

    Args:
        categories, groups: pandas.Series, indexed by item.
    """
    counts = pd.crosstab(groups, categories)
    sizes = counts.sum(axis=1)
    return float((entropy(counts, axis=1, base=2) * sizes).sum() / sizes.sum())


def measure(codes, categories, seed):
    """Entropy of the categories given the first codes of an item, and given random groups of the same sizes.

    Args:
        codes: int array [n_items, levels] without the collision level. categories: pandas.Series, one an item.

    Returns:
        list of dicts, one for each number of codes from 0.
    """
    shuffled = pd.Series(np.random.default_rng(seed).permutation(categories))
    rows = []
    for known in range(codes.shape[1] + 1):
        groups = pd.Series(
            pd.DataFrame(codes[:, :known]).groupby(list(range(known))).ngroup() if known else [0] * len(codes)
        )
        rows.append(
            {
                "codes": known,
                "groups": int(groups.nunique()),
                "bits": entropy_given(categories, groups),
                "bits_at_random": entropy_given(shuffled, groups),
            }
        )
    return rows


def plot(codes, categories, finer, file):
    """Plot the categories of the first codes with most items, and finer categories of second codes under the largest."""
    import matplotlib.pyplot as plt

    first, second = pd.Series(codes[:, 0]), pd.Series(codes[:, 1])
    largest = first.value_counts().index[0]
    under = first == largest
    parts = {"first code": (first, categories), f"second code under the first code {largest}": (second[under], finer[under])}
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", sharey=True)
    for axis, (title, (groups, names)) in zip(axes, parts.items(), strict=True):
        common = list(names.value_counts().index[:COLOURS])
        shares = pd.crosstab(groups, names.where(names.isin(common), "other"), normalize="index")
        shares = shares.loc[groups.value_counts().index[:SHOWN]].reindex(columns=[*common, "other"], fill_value=0)
        bottom = np.zeros(len(shares))
        for number, name in enumerate(shares):
            colour = "lightgrey" if name == "other" else f"C{number}"
            axis.bar(shares.index.astype(str), shares[name], bottom=bottom, label=name, color=colour)
            bottom += shares[name].to_numpy()
        axis.set(xlabel=f"{title}, most items first", ylim=(0, 1))
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize="small")
    axes[0].set(ylabel="share of the items")
    figure.savefig(file, dpi=120)


def main(argv=None):
    """Print a table; write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset/", help="parent folder of the dataset (default: %(default)s)")
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--level", type=int, default=1, help="level of the category's path, from 0 (default: %(default)s)")
    parser.add_argument("--output", help="JSON file of all numbers")
    parser.add_argument("--plot", help="PNG file")
    args, rest = parser.parse_known_args(argv)
    settings = {"gpu_id": "", "data_path": args.data_path, **parse_arguments(rest)}
    catalogue = CatalogueDataset(experiment.prepare("TIGER", args.dataset, settings)).catalogue
    paths = pd.Series(catalogue.columns["categories"]).str.split(" > ")
    categories, finer = (paths.str[level].fillna(paths.str[-1]) for level in (args.level, args.level + 1))
    codes = catalogue.semantic_ids.codes[:, :-1]
    rows = measure(codes, categories, seed=0)
    print(tabulate(rows, headers="keys", floatfmt=".3f", tablefmt="github"))
    if args.output:
        write_result(
            {"dataset": args.dataset, "level": args.level, "categories": categories.nunique(), "rows": rows}, args.output
        )
    if args.plot:
        plot(codes, categories, finer, args.plot)


if __name__ == "__main__":
    main()
