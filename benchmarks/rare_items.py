"""Does a model find rare items, too? Test metrics by how often the target occurs in the training data, of all result files.

python benchmarks/rare_items.py --results_dir=benchmarks/results/leaderboard --dataset=amazon-beauty --data_path=dataset
"""

import argparse
import sys

import numpy as np
import pandas as pd
from tabulate import tabulate

from recbole_tiger import experiment
from recbole_tiger.errors import TigerError
from recbole_tiger.leaderboard import rows_of
from recbole_tiger.results import read_results, write_result

EDGES = [-1, 2, 5, 10, 20, 50, np.inf]
NAMES = ["0-2", "3-5", "6-10", "11-20", "21-50", "over 50"]


def by_frequency(counts, values):
    """Mean of the users' values in each range of counts.

    Args:
        counts: int array [users], how often a user's target was trained on.
        values: float array [users].

    Returns:
        pandas.Series, indexed by NAMES; NaN where no target lies.
    """
    return pd.Series(values).groupby(pd.cut(counts, EDGES, labels=NAMES), observed=False).mean()


def main(argv=None):
    """Print a table, one row a model, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--metric", default="recall@10")
    parser.add_argument("--output")
    args = parser.parse_args(argv)

    try:
        config = experiment.prepare("Pop", args.dataset, {"data_path": args.data_path, "show_progress": False})
        train_data, _, test_data = experiment.load(config)
        results = [r for r in read_results(args.results_dir) if r["dataset"] == args.dataset]
        rows = [row for row in rows_of(results, args.results_dir) if row.ranks is not None]
        if not rows:
            raise TigerError(f"{args.results_dir} holds no results of {args.dataset} with ranks")
    except TigerError as error:
        print(f"rare_items.py: error: {error}", file=sys.stderr)
        return 2
    item = config["ITEM_ID_FIELD"]
    trained = np.bincount(train_data.dataset.inter_feat[item].numpy(), minlength=train_data.dataset.item_num)
    test = test_data.dataset
    targets = test.inter_feat[item].numpy()
    users = test.id2token(test.uid_field, test.inter_feat[test.uid_field].numpy())
    counts = pd.Series(trained[targets], index=users)

    ranges = pd.cut(counts, EDGES, labels=NAMES).value_counts(normalize=True, sort=False)
    table = [{"model": "share of the targets", **ranges.round(4)}]
    for row in rows:
        found = by_frequency(counts[row.users].to_numpy(), row.of_users(args.metric))
        table.append({"model": row.label, **found.round(4).astype(object).where(found.notna(), None)})
    print(tabulate(table, headers="keys", tablefmt="github", floatfmt=".4f"))
    if args.output:
        write_result({"dataset": args.dataset, "metric": args.metric, "rows": table}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
