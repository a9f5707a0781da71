"""Where is an ID hard to predict? Negative log-likelihood (nats) of the codes of a TIGER model's targets, level by level.

Comparing training with validation shows over-fitting; comparing levels shows which code is hard for the model.

python benchmarks/likelihood.py --checkpoint=saved/TIGER-....pth --targets=3000
"""

import argparse

import numpy as np
import torch
from recbole.quick_start import load_data_and_model
from tabulate import tabulate
from tqdm import tqdm

import recbole_tiger  # noqa: F401 - registers TIGER
from recbole_tiger.report.results import write_result


@torch.no_grad()
def of_rows(model, rows):
    """Negative log-likelihood of the target of each of RecBole's rows: float tensor [rows, levels]."""
    slots = model.slots_of(rows[model.USER_ID])
    return -model.log_probs_of_levels(model.histories_of(rows), slots, rows[model.ITEM_ID].unsqueeze(1))[:, 0]


def main(argv=None):
    """Print a table, one row per split, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument(
        "--targets", type=int, default=3000, help="most targets drawn from each split (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--output")
    args = parser.parse_args(argv)

    config, model, _, train_data, valid_data, test_data = load_data_and_model(args.checkpoint)
    model.eval()
    table = []
    for name, data in [("training", train_data), ("validation", valid_data), ("test", test_data)]:
        rows = np.random.default_rng(args.seed).permutation(len(data._dataset))[: args.targets]
        interaction = data._dataset[rows].to(config["device"])
        parts = tqdm(torch.arange(len(rows)).split(256), desc=name)
        levels = torch.cat([of_rows(model, interaction[part]) for part in parts]).mean(dim=0).tolist()
        named = {f"level {i}": value for i, value in enumerate(levels, start=1)}
        table.append({"targets of": name, **named, "item": sum(levels)})
    print(tabulate(table, headers="keys", tablefmt="github", floatfmt=".3f"))
    if args.output:
        write_result({"dataset": config["dataset"], "targets": args.targets, "seed": args.seed, "rows": table}, args.output)


if __name__ == "__main__":
    main()
