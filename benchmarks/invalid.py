"""How often does a beam over all codes end at an ID that no item has (Rajput et al. 2023, section 4.5)?

python benchmarks/invalid.py --checkpoint=saved/TIGER-....pth --output=invalid.json --plot=invalid.png

Decodes lists for test users of a trained TIGER, whose softmax is over all codes, with the trie and without. Measures the
share of IDs that no item has among the first 10, 20 and 50, and the recall lost by them. The paper reports .1 to 1.6 % at
10.
"""

import argparse

import numpy as np
import torch
from sampled import sample
from tabulate import tabulate
from tqdm import tqdm

from recbole_tiger.report.results import write_result
from recbole_tiger.report.statistics import interval

LENGTHS = (10, 20, 50)
BEAM = 50
# Least and most of the paper's shares in percent, by the length of the list (section 4.5).
PAPER = {10: (0.1, 1.6), 20: (0.3, 6.0)}
# Users per slice.
SLICE = 500


def shares(found, free, targets):
    """Share of invalid IDs, and recall with and without the trie, by the length of the list.

    Args:
        found, free: int tensors [users, BEAM] of items with the trie and without, best first, 0 for an ID of no item.
        targets: int tensor [users].

    Returns:
        list of dicts, one a length.
    """
    rows = []
    for length in LENGTHS:
        invalid = (free[:, :length] == 0).double().mean(dim=1).numpy()
        recalls = [(lists[:, :length] == targets.unsqueeze(1)).any(dim=1).double() for lists in (found, free)]
        rows.append(
            {
                "first": length,
                "invalid": invalid.mean().item(),
                "interval": list(map(float, interval(invalid))),
                "recall_with_the_trie": recalls[0].mean().item(),
                "recall_without": recalls[1].mean().item(),
            }
        )
    return rows


def plot(rows, file):
    """Write a PNG of the share of invalid IDs in percent by the length of the list, beside the paper's range."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    lengths, values = [row["first"] for row in rows], np.array([row["invalid"] for row in rows])
    low, high = np.array([row["interval"] for row in rows]).T
    axes.errorbar(lengths, 100 * values, 100 * np.array([values - low, high - values]), fmt="o-", capsize=4, label="here")
    axes.vlines(
        [length + 0.7 for length in PAPER], *zip(*PAPER.values(), strict=True), linewidth=4, color="C1", label="paper"
    )
    axes.set(xlabel="first IDs of the list", ylabel="invalid IDs, %", xticks=lengths, yscale="symlog")
    axes.set_ylim(0, 10)
    axes.set_yticks([0, 1, 10], ["0", "1", "10"])
    axes.legend()
    figure.savefig(file, dpi=120)


@torch.no_grad()
def main(argv=None):
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample of users")
    parser.add_argument("--output")
    parser.add_argument("--plot")
    args = parser.parse_args(argv)

    chosen = sample(args.checkpoint, args.users, args.seed)
    model, histories = chosen.model, chosen.histories
    found, free = [], []
    for part in tqdm(torch.arange(len(histories)).split(SLICE), "decoding"):
        slots = chosen.slots_of(part)
        found.append(model.recommend(histories[part], slots, BEAM, BEAM, "beam")[0])
        free.append(model.unconstrained(histories[part], slots, BEAM)[0])
    result = shares(torch.cat(found).cpu(), torch.cat(free).cpu(), chosen.targets.cpu())
    print(tabulate(result, headers="keys", floatfmt=".4f", tablefmt="github"))
    if args.output:
        what = {
            "dataset": chosen.config["dataset"],
            "checkpoint": args.checkpoint,
            "users": len(histories),
            "seed": args.seed,
        }
        write_result({**what, "rows": result}, args.output)
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()
