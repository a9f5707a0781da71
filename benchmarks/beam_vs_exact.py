"""What does a beam lose? Recall of beams of several widths compared with exact scores, on test users of a trained model.

python benchmarks/beam_vs_exact.py --checkpoint=saved/TIGER-....pth --output=benchmarks/results/beam_vs_exact.json
"""

import argparse
import time

import numpy as np
import torch
from sampled import sample
from tabulate import tabulate
from tqdm import tqdm

from recbole_tiger.report.results import write_result

TOPK = 10


@torch.no_grad()
def main(argv=None):
    """Print a table, one row per width, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample of users")
    parser.add_argument("--beam_sizes", default="10,20,50,100")
    parser.add_argument("--output")
    args = parser.parse_args(argv)

    chosen = sample(args.checkpoint, args.users, args.seed)
    model, histories, target = chosen.model, chosen.histories, chosen.targets.unsqueeze(1).cpu()

    found, seconds = {}, {}
    begin = time.perf_counter()
    parts = tqdm(torch.arange(len(histories)).split(10), "exact")
    exact = torch.cat([model.exact(histories[part], chosen.slots_of(part)).topk(TOPK)[1] for part in parts])
    exact = exact.cpu()  # which waits for the device
    found["exact"], seconds["exact"] = exact, time.perf_counter() - begin
    for width in map(int, args.beam_sizes.split(",")):
        begin = time.perf_counter()
        found[f"beam {width}"] = model.recommend(histories, chosen.slots, TOPK, width, "beam")[0].cpu()
        seconds[f"beam {width}"] = time.perf_counter() - begin

    def share_of(items):
        return np.mean([len(set(a) & set(b)) / TOPK for a, b in zip(items.tolist(), exact.tolist(), strict=True)])

    table = [
        {
            "scoring": name,
            "recall@10": (items == target).any(dim=1).float().mean().item(),
            "share of the exact top 10": float(share_of(items)),
            "users/s": len(histories) / seconds[name],
        }
        for name, items in found.items()
    ]
    print(tabulate(table, headers="keys", tablefmt="github", floatfmt=".4f"))
    if args.output:
        what = {"dataset": chosen.config["dataset"], "users": len(histories), "seed": args.seed}
        write_result({**what, "rows": table}, args.output)


if __name__ == "__main__":
    main()
