"""Which targets does a model find? Test metrics of all result files by how often the target occurs in training, and by
whether it follows an item of the user's history in training.

python benchmarks/rare_items.py --results_dir=benchmarks/results/leaderboard --dataset=amazon-beauty --data_path=dataset
"""

import argparse
import sys

import numpy as np
import pandas as pd
from tabulate import tabulate

from recbole_tiger.errors import TigerError
from recbole_tiger.report.leaderboard import comparison, rows_of
from recbole_tiger.report.results import read_results, write_result
from recbole_tiger.report.statistics import GAINS, RANGES, range_of
from recbole_tiger.runs import experiment
from recbole_tiger.settings.identity import run_inputs

# The target and some item of the history, in training histories: in this order, only in the other order, never together.
SEEN, REVERSED, UNSEEN = "in order", "reversed", "in none"


def ranges_of(counts):
    """The name in RANGES of each count of occurrences in training; a categorical pandas.Series."""
    return pd.Series(pd.Categorical.from_codes(range_of(counts), list(RANGES.values()), ordered=True), index=counts.index)


def by_group(groups, values):
    """Mean of the values of the users in each group.

    Args:
        groups, values: pandas.Series, indexed by user.

    Returns:
        pandas.Series, indexed by group in its order; NaN for a range where no target lies.
    """
    return values.groupby(groups, observed=False).mean()


def pairs_of(histories, items):
    """Pairs of items of which the first precedes the second in the history of a user, at most ``items`` apart.

    Args:
        histories: pandas.Series of item numbers, indexed by user, oldest first.

    Returns:
        pandas.MultiIndex of distinct pairs.
    """
    table = pd.DataFrame({"item": histories, "place": histories.groupby(level=0).cumcount()})
    both = table.join(table, lsuffix="_before")
    apart = both.place - both.place_before
    both = both[(apart > 0) & (apart <= items)]
    return pd.MultiIndex.from_frame(both[["item_before", "item"]].drop_duplicates())


def seen(training, histories, targets, items):
    """Whether each user's target follows, or only precedes, an item of the user's history in training.

    Args:
        training, histories: as :func:`pairs_of` takes them; of a history the last ``items`` count.
        targets: pandas.Series of item numbers, indexed by user.

    Returns:
        pandas.Series of SEEN, REVERSED or UNSEEN, indexed as ``targets``.
    """
    pairs = pairs_of(training, items)
    last = histories.groupby(level=0).tail(items).rename("before").to_frame().join(targets.rename("target"))
    in_order = pd.MultiIndex.from_frame(last[["before", "target"]]).isin(pairs)
    other_way = pd.MultiIndex.from_frame(last[["target", "before"]]).isin(pairs)
    found = pd.DataFrame({SEEN: in_order, REVERSED: other_way}, index=last.index).groupby(level=0).any()
    found = found.reindex(targets.index, fill_value=False)
    return pd.Series(np.select([found[SEEN], found[REVERSED]], [SEEN, REVERSED], UNSEEN), index=targets.index)


def main(argv=None):
    """Print two tables, one row per model, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--metric", default="recall@10")
    parser.add_argument("--output")
    args = parser.parse_args(argv)

    try:
        config = experiment.prepare("Pop", args.dataset, {"data_path": args.data_path, "show_progress": False})
        train_data, valid_data, test_data = experiment.load(config)
        kind, _, k = args.metric.partition("@")
        if kind not in GAINS or not k.isdigit() or not 1 <= int(k) <= max(config["topk"]):
            kinds = " or ".join(GAINS)
            raise TigerError(f"--metric={args.metric} has to be {kinds} at 1 to {max(config['topk'])}, as recall@10")
        here = {"dataset": args.dataset, **run_inputs(config)}
        results = [result for result in read_results(args.results_dir) if comparison(result) == comparison(here)]
        all_rows = rows_of(results, args.results_dir)
        rows = [row for row in all_rows if row.ranks is not None]
        if short := [row.label for row in rows if any(int(k) > max(run["settings"]["topk"]) for run in row.results)]:
            raise TigerError(f"--metric={args.metric}: ranks of {', '.join(short)} end before that place; take a smaller")
        if not rows:
            raise TigerError(
                f"{args.results_dir} holds no results of {args.dataset} with ranks, made of the files of {args.data_path}"
            )
    except TigerError as error:
        print(f"rare_items.py: error: {error}", file=sys.stderr)
        return 2
    if bare := [row.label for row in all_rows if row.ranks is None]:
        print(f"rare_items.py: left out, for their ranks are not here: {', '.join(bare)}", file=sys.stderr)
    item, user = config["ITEM_ID_FIELD"], config["USER_ID_FIELD"]

    def items(data):
        data = data.dataset
        return pd.Series(data.inter_feat[item].numpy(), index=data.id2token(user, data.inter_feat[user].numpy()))

    training, validation, targets = map(items, (train_data, valid_data, test_data))
    counts = targets.map(training.value_counts()).fillna(0)
    known = seen(training, pd.concat([training, validation]), targets, config["MAX_ITEM_LIST_LENGTH"])

    def table(groups):
        lines = [{"model": "share of the targets", **groups.value_counts(normalize=True).sort_index().round(4)}]
        for row in rows:
            found = by_group(groups, pd.Series(row.per_user(args.metric), index=row.users))
            lines.append({"model": row.label, **found.round(4).astype(object).where(found.notna(), None)})
        print(tabulate(lines, headers="keys", tablefmt="github", floatfmt=".4f"), end="\n\n")
        return lines

    tables = {"rows": table(ranges_of(counts)), "pairs": table(known)}
    if args.output:
        write_result({"dataset": args.dataset, "metric": args.metric, **tables}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
