"""What does a temperature bring and cost (Rajput et al. 2023, section 4.3 and table 4)?

python benchmarks/diversity.py --checkpoint=saved/TIGER-....pth --output=benchmarks/results/diversity.json
    --plot=benchmarks/results/diversity.png

Draws lists for test users at several temperatures, and measures the entropy of the categories in the first 10, 20 and 50
items of a list, averaged over users, and the recall of the lists. A list without a temperature is the beam's best. The paper
does not say at which level of the path it takes categories, nor how it ranks drawn items.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from sampled import sample
from scipy.stats import entropy
from tabulate import tabulate
from tqdm import tqdm

from recbole_tiger.report.results import write_result

LENGTHS = (10, 20, 50)
TEMPERATURES = (None, 1.0, 1.5, 2.0)
# Table 4 of the paper, amazon-beauty: entropy by temperature and length.
PAPER = {1.0: (0.76, 1.14, 1.70), 1.5: (1.14, 1.52, 2.06), 2.0: (1.38, 1.76, 2.28)}
# Users per slice.
SLICE = 500


def entropies(categories):
    """Entropy in nats of each list of categories, int array [users, n] -> float array [users]."""
    counts = np.zeros((len(categories), categories.max() + 1))
    np.add.at(counts, (np.arange(len(categories))[:, None], categories), 1)
    return entropy(counts, axis=1)


def plot(rows, file):
    """Plot entropy over recall, one point per temperature and one line per length."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for length in LENGTHS:
        own = [row for row in rows if row["first"] == length]
        axis.plot([row["recall"] for row in own], [row["entropy"] for row in own], "o-", label=f"first {length}")
        for row in own:
            name = "best" if row["temperature"] is None else f"T = {row['temperature']:g}"
            axis.annotate(name, (row["recall"], row["entropy"]), xytext=(4, 4), textcoords="offset points", fontsize="small")
    most = {name: max(row[name] for row in rows) for name in ("recall", "entropy")}
    axis.set(xlabel="Recall of the list", ylabel="entropy of its categories, nats")
    axis.set(xlim=(0, 1.1 * most["recall"]), ylim=(0, 1.1 * most["entropy"]))
    axis.legend()
    figure.savefig(file, dpi=120)


@torch.no_grad()
def main(argv=None):
    """Print a table; write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample of users and of the draws")
    parser.add_argument("--column", default="categories", help="column of the item file (default: %(default)s)")
    parser.add_argument("--level", type=int, default=1, help="level of the category's path, from 0 (default: %(default)s)")
    parser.add_argument("--output")
    parser.add_argument("--plot", help="PNG file")
    args = parser.parse_args(argv)

    chosen = sample(args.checkpoint, args.users, args.seed)
    model, histories, target = chosen.model, chosen.histories, chosen.targets.cpu().unsqueeze(1)
    paths = pd.Series(chosen.dataset.catalogue.columns[args.column]).str.split(" > ")
    category = np.append(-1, pd.factorize(paths.str[args.level].fillna(paths.str[-1]))[0])
    table, longest = [], max(LENGTHS)
    for temperature in TEMPERATURES:
        found = []
        for part in tqdm(torch.arange(len(histories)).split(SLICE), f"temperature {temperature}"):
            draw = {"temperature": temperature, "seed": args.seed}
            slots = chosen.slots_of(part)
            found.append(model.recommend(histories[part], slots, longest, longest, "beam", **draw)[0].cpu())
        items = torch.cat(found)
        for length, published in zip(LENGTHS, PAPER.get(temperature, (None,) * 3), strict=True):
            first = items[:, :length]
            table.append(
                {
                    "temperature": temperature,
                    "first": length,
                    "entropy": entropies(category[first.numpy()]).mean().item(),
                    "of the paper": published,
                    "recall": (first == target).any(dim=1).double().mean().item(),
                    "items in all lists": len(first.unique()),
                }
            )
    print(tabulate(table, headers="keys", floatfmt=".4f", tablefmt="github"))
    if args.output:
        what = {
            "dataset": chosen.config["dataset"],
            "checkpoint": args.checkpoint,
            "users": len(histories),
            "seed": args.seed,
            "column": args.column,
            "level": args.level,
        }
        write_result({**what, "rows": table}, args.output)
    if args.plot:
        plot(table, args.plot)


if __name__ == "__main__":
    main()
