"""Does one tokenizer serve several catalogues, and what does the user token bring (Rajput et al. 2023, tables 5 and 8)?

python benchmarks/joint.py --data_path=dataset --epochs=10 --output=joint.json --plot=joint.png

Fits the quantizer to the items of three datasets together and to those of amazon-beauty alone, and trains TIGER on
amazon-beauty with either kind of IDs; and compares a token of the hashed user (2,000 rows) with none. Any setting of TIGER
may be given as --key=value and applies to all models.
"""

import argparse
from pathlib import Path

import numpy as np
from tabulate import tabulate

from recbole_tiger.catalogue.catalogue import quantize
from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.commands.shared import names
from recbole_tiger.report.results import read_ranks, write_result
from recbole_tiger.report.statistics import metric_per_user, paired_p
from recbole_tiger.runs import experiment
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.training.dataset import CatalogueDataset

SHOWN = ("recall@10", "ndcg@10")
# NDCG@10 on amazon-beauty in the paper.
PAPER = {"a tokenizer of its own": 0.0384, "one tokenizer for all": 0.03676}


def joint_ids(datasets, settings, file):
    """Write the semantic IDs of the first dataset's items, with codes fitted to the items of all datasets.

    An item of several datasets counts once in each.

    Args:
        datasets: names; the tested one is the first. file: path of the table.
    """
    catalogues = []
    for name in datasets:
        own = {**settings, "quantizer": "rq_kmeans"}  # what is read of this catalogue are the embeddings
        catalogues.append(CatalogueDataset(experiment.prepare("TIGER", name, own)).catalogue)
    items = [f"{name}:{item}" for name, one in zip(datasets, catalogues, strict=True) for item in one.items]
    embeddings = np.concatenate([one.embeddings for one in catalogues])
    config = experiment.prepare("TIGER", datasets[0], settings)
    codes = quantize(config, items, embeddings)[0].codes[: len(catalogues[0].items), :-1]
    SemanticIDs(list(catalogues[0].items), add_collision_level(codes)).save(file)


def p_of(metric, folder, first, second):
    """The p-value of a paired bootstrap over the test users of two results of a folder."""
    return paired_p(*(metric_per_user(read_ranks(folder / one["ranks"])["ranks"], metric) for one in (first, second)))


def plot(rows, file):
    """Write a PNG of NDCG@10 with its intervals, and of the paper's."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    cells = [row["cell"] for row in rows][::-1]
    values = np.array([row["ndcg@10"] for row in rows][::-1])
    low, high = np.array([row["interval of ndcg@10"] for row in rows][::-1]).T
    axes.errorbar(values, cells, xerr=[values - low, high - values], fmt="o", capsize=4, label="here, 95 %")
    axes.plot(list(PAPER.values()), list(PAPER), "D", label="paper")
    axes.set(xlabel="NDCG@10 on the tested dataset", xlim=(0, None))
    axes.margins(y=0.2)
    axes.legend(loc="lower left")
    figure.savefig(file, dpi=120)


def main(argv=None):
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset/", help="parent folder of the datasets (default: %(default)s)")
    parser.add_argument(
        "--datasets",
        type=names,
        default=["amazon-beauty", "amazon-sports-outdoors", "amazon-toys-games"],
        help="separated by commas, the tested one first (default: the three of the paper)",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("joint"), help="folder for IDs and results (default: %(default)s)"
    )
    parser.add_argument("--output", help="JSON file of all numbers")
    parser.add_argument("--plot", help="PNG file")
    args, rest = parser.parse_known_args(argv)
    settings = {"data_path": args.data_path, "resume": True, **parse_arguments(rest)}
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "joint.tsv"
    joint_ids(args.datasets, settings, file)
    cells = {
        "a tokenizer of its own": {},
        "one tokenizer for all": {"semantic_ids": str(file)},
        "a token of the user": {"n_user_tokens": 2000},
    }
    results, rows = {}, []
    for name, own in cells.items():
        config = experiment.prepare("TIGER", args.datasets[0], {**settings, **own})
        results[name] = experiment.run_or_read(config, args.folder / "results")
        first = results["a tokenizer of its own"]
        row = {"cell": name, **{metric: results[name]["test_result"][metric] for metric in SHOWN}}
        row["interval of ndcg@10"] = results[name]["intervals"]["ndcg@10"]
        row["epochs"], row["still_improving"] = results[name]["epochs"], results[name]["still_improving"]
        if results[name] is not first:
            row["p of ndcg@10"] = p_of("ndcg@10", args.folder / "results", first, results[name])
        rows.append(row)
    print(tabulate(rows, headers="keys", floatfmt=".4f", tablefmt="github"))
    if args.output:
        write_result({"datasets": args.datasets, "settings": settings, "rows": rows}, args.output)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
