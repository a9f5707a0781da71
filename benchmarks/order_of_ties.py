"""How much depends on the order of interactions within a day? Test metrics of a trained model with that order drawn anew.

Amazon's reviews have dates without times, and the order within a day is that of a file. This shuffles every user's history
within its days. If the last two items share a day, one of them is drawn as the target; neither was trained on, because the
other one is the validation target. The model does not change.

python benchmarks/order_of_ties.py --checkpoint=saved/TIGER-....pth --output=benchmarks/results/order_of_ties.json
"""

import argparse

import numpy as np
import torch
from recbole.utils import get_trainer
from tabulate import tabulate
from tqdm import tqdm

import recbole_tiger  # noqa: F401 - registers TIGER
from recbole_tiger.catalogue.download import DAY
from recbole_tiger.report.results import write_result
from recbole_tiger.training.history import leaving_out

from recbole.quick_start import load_data_and_model  # isort: skip - after the plugin's import


def shuffled(history, length, target, history_time, target_time, rng):
    """Draw the order of histories and targets within a day at random.

    Args:
        history: int tensor [users, n] of items, oldest first, padded with 0 on the right. length: int tensor [users].
        target: int tensor [users].
        history_time, target_time: their times in seconds.
        rng: NumPy's generator.

    Returns:
        history, target: of the same shapes.
    """
    rows = np.arange(len(target))
    items, days = history.numpy().copy(), history_time.double().numpy() // DAY
    last = length.numpy() - 1
    swap = (days[rows, last] == target_time.double().numpy() // DAY) & (rng.random(len(rows)) < 0.5)
    new_target = np.where(swap, items[rows, last], target.numpy())
    items[rows[swap], last[swap]] = target.numpy()[swap]
    days[np.arange(items.shape[1]) > last[:, None]] = np.inf  # padding stays at the end
    order = np.lexsort((rng.random(items.shape), days))
    return torch.from_numpy(np.take_along_axis(items, order, axis=1)), torch.from_numpy(new_target)


def main(argv=None):
    """Print a table, one row per seed, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="checkpoint of TIGER or another sequential model of RecBole")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output")
    args = parser.parse_args(argv)

    config, model, _, _, _, test_data = load_data_and_model(args.checkpoint)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    rows = test_data.dataset.inter_feat
    suffix = config["LIST_SUFFIX"]
    item, time = config["ITEM_ID_FIELD"], config["TIME_FIELD"]
    names = [item + suffix, config["ITEM_LIST_LENGTH_FIELD"], item, time + suffix, time]
    original = [rows[name].clone() for name in names]
    same = (original[3].double() // DAY)[torch.arange(len(rows)), original[1] - 1] == original[4].double() // DAY

    with leaving_out(test_data, False):  # the histories that the loader knows are those of the file
        results = [trainer.evaluate(test_data, load_best_model=False, show_progress=True)]
        for seed in tqdm(range(args.seeds), desc="seeds"):
            rows.interaction[names[0]], rows.interaction[item] = shuffled(*original, np.random.default_rng(seed))
            results.append(trainer.evaluate(test_data, load_best_model=False))
    metrics = list(results[0])
    table = [{"order": "as in the file", **results[0]}]
    table += [{"order": f"seed {seed}", **result} for seed, result in enumerate(results[1:])]
    drawn = np.array([[result[name] for name in metrics] for result in results[1:]])
    spread = {"order": "standard deviation", **dict(zip(metrics, drawn.std(axis=0, ddof=1).round(5), strict=True))}
    print(tabulate([*table, spread], headers="keys", tablefmt="github", floatfmt=".4f"))
    print(f"\n{same.float().mean():.1%} of the test users have their two last items on one day")
    if args.output:
        share = round(same.double().mean().item(), 4)
        names = {"model": config["label"], "dataset": config["dataset"], "seed": config["seed"]}
        write_result({**names, "two_last_on_one_day": share, "rows": table}, args.output)


if __name__ == "__main__":
    main()
