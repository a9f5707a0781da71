"""Are items found that came after training (Rajput et al. 2023, section 4.3 and figure 5)?

python benchmarks/cold_start.py --data_path=dataset --output=benchmarks/results/cold_start.json
    --plot=benchmarks/results/cold_start.png

Holds out a share of the test items with all their interactions, trains on the rest, adds the items from their text, and
recommends to the users whose test item was held out, from all items before it. A list of K has at most epsilon K new items,
as in the paper, so the target is found if it is among the first epsilon K of the new items. For comparison, the nearest
neighbours by text of the last item, and of the mean of the history, take as many places. A model with an embedding of every
item, such as SASRec, has none for new items and finds none.

The order of new items and the start of the embeddings of their prefixes are chosen on the users whose validation item was
held out. Any setting of the model may be given as --key=value.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tabulate import tabulate
from tqdm import tqdm

from recbole_tiger.catalogue.quantizers.kmeans import means
from recbole_tiger.files import whole_file
from recbole_tiger.report.results import write_result
from recbole_tiger.report.statistics import RESAMPLES, percentile_interval
from recbole_tiger.runs import experiment
from recbole_tiger.runs.recommend import Recommender, padded_left
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.training.dataset import CatalogueDataset

USER, ITEM, TIME = "user_id:token", "item_id:token", "timestamp:float"
KS = (5, 10, 20, 50, 100)
EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
ORDERS = ("score of the item", "score of the prefix, then text")
# Starts of the embeddings of new prefixes, other than their siblings, which are the package's start.
STARTS = ("zero", "text")
# Users and items of a slice of scores.
SLICE = 64


def read_table(file):
    """An atomic file as text."""
    return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, quoting=3)


def sequences_of(inter):
    """Items of each user, oldest first, as a pandas.Series of lists; equal times keep the order of the file."""
    inter = inter.assign(at=inter[TIME].astype(float)).sort_values([USER, "at"], kind="stable")
    return inter.groupby(USER, sort=False)[ITEM].apply(list)


def held_out(sequences, share, seed):
    """Draw a share of the items that are the last of some user, as a set."""
    last = sorted({items[-1] for items in sequences})
    return set(np.random.default_rng(seed).choice(last, size=round(share * len(last)), replace=False))


def write_without(inter, items, new, folder, name):
    """Write the dataset without the interactions and the rows of new items; return the item file of the new items."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    is_new, new_items = items[ITEM].isin(new), folder / f"{name}.new.item"
    parts = {
        folder / name / f"{name}.inter": inter[~inter[ITEM].isin(new)],
        folder / name / f"{name}.item": items[~is_new],
        new_items: items[is_new],
    }
    for file, table in parts.items():
        with whole_file(file) as part:
            table.to_csv(part, sep="\t", index=False, quoting=3)
    return new_items


def asked(sequences, new):
    """Users whose last item is new: their histories before that item, and the item."""
    wanted = [items for items in sequences if len(items) > 1 and items[-1] in new]
    return [items[:-1] for items in wanted], [items[-1] for items in wanted]


def scores_of(recommender, histories, candidates):
    """Log-probabilities of the codes of some items after each history, float tensor [histories, candidates, levels].

    A model that scores whole items has one level.
    """
    model = recommender.model
    rows = {item: i for i, item in enumerate(recommender.items, start=1)}
    candidates = torch.tensor([rows[item] for item in candidates])
    longest, parts = model.max_seq_length, []
    for begin in tqdm(range(0, len(histories), SLICE), "scores"):
        items = padded_left([[rows[item] for item in one[-longest:]] for one in histories[begin : begin + SLICE]])
        levels = model.log_probs_of_levels(items, None, candidates.expand(len(items), -1))
        parts.append(model.exact(items, None)[:, candidates, None] if levels is None else levels)
    return torch.cat(parts)


def prefixes_of(recommender):
    """The embeddings of prefixes, or None for a model without them."""
    network = getattr(recommender.model, "network", None)
    return network and network.softmax.prefixes


@torch.no_grad()
def start_prefixes(recommender, start, n_old, text):
    """Set the start of the embeddings of new prefixes to one of STARTS.

    Args:
        n_old: items that were trained on. text: float tensor [n_items, dim], standardised.
    """
    prefixes, trie = prefixes_of(recommender), recommender.model.network.trie
    paths = trie.paths()[1:]
    for level in range(1, trie.levels):
        n_nodes = trie.n_nodes(level)
        old = torch.zeros(n_nodes, dtype=torch.bool)
        old[paths[:n_old, level]] = True
        table = prefixes.table.weight[prefixes.rows(level)]
        if start == "zero":
            table[~old] = 0
        else:  # what a ridge regression over the trained ones makes of the mean text of their items
            mean = means(text, paths[:, level], n_nodes)[0]
            x = mean[old]
            weights = torch.linalg.solve(x.T @ x + len(x) * torch.eye(x.shape[1]), x.T @ table[old])
            table[~old] = mean[~old] @ weights


def ranks_of(scores, target):
    """Rank of each row's target, from 1; ties with other candidates count half, so it may lie between two places.

    Args:
        scores: float array [n, candidates]. target: int array [n].
    """
    own = scores[np.arange(len(scores)), target][:, None]
    return 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2


def in_order(levels, text, order):
    """Scores [n, candidates] that sort new items by one of ORDERS.

    Args:
        levels: of :func:`scores_of`. text: float array [n, candidates], similarity of the text to the last item.
    """
    if order == ORDERS[0]:
        return levels.sum(dim=-1).double().numpy()
    prefix = levels[..., :-1].sum(dim=-1).double().numpy()
    # The rank of the prefix, then the text within it; items of one prefix have equal scores up to rounding.
    place = np.argsort(np.argsort(-prefix.round(4), axis=1, kind="stable"), axis=1)
    rows = zip(place, prefix.round(4), strict=True)
    first = np.array([pd.Series(row).groupby(score).transform("min") for row, score in rows])
    return -first + text / 4


def similarities(x, row_of, histories, candidates):
    """Cosine of candidates with each history's last item, and with the mean of its items; two arrays [n, candidates]."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    of = x[[row_of[item] for item in candidates]]
    last = x[[row_of[history[-1]] for history in histories]]
    mean = np.stack([x[[row_of[item] for item in history]].mean(axis=0) for history in histories])
    return last @ of.T, mean / np.linalg.norm(mean, axis=1, keepdims=True) @ of.T


def draw(args, settings, full, inter, items, sequences, seed):
    """Train without the items of a draw, add them and rank them; return the measurements."""
    new = held_out(sequences, args.share, seed)
    name = f"{args.dataset}-without-{seed}"
    new_file = write_without(inter, items, new, args.folder, name)
    own = {**settings, "data_path": str(args.folder), "seed": seed}
    trained = experiment.run_or_read(experiment.prepare(args.model, name, own), args.folder / "results")
    before = Recommender.load(trained["checkpoint"], "cpu")
    begin = time.perf_counter()
    after = before.add_items(new_file, settings.get("item_embeddings"))
    seconds = time.perf_counter() - begin
    candidates = sorted(new)
    column = {item: i for i, item in enumerate(candidates)}

    catalogue = full.catalogue
    row_of = {item: i for i, item in enumerate(catalogue.items)}
    x = catalogue.embeddings
    of_model = x[[row_of[item] for item in after.items]]
    standard = torch.from_numpy((of_model - of_model.mean(axis=0)) / of_model.std(axis=0).clip(1e-6))
    recommenders = {"siblings": after}
    for start in STARTS if prefixes_of(after) else ():
        recommenders[start] = before.add_items(new_file, settings.get("item_embeddings"))
        start_prefixes(recommenders[start], start, len(before.items), standard)

    # Validation, with the history before the last item.
    histories, targets = asked([one[:-1] for one in sequences], new)
    target = np.array([column[item] for item in targets])
    text, _ = similarities(x, row_of, histories, candidates)
    tried, validation_users = [], len(targets)
    for start, recommender in recommenders.items():
        levels = scores_of(recommender, histories, candidates)
        for order in ORDERS if levels.shape[-1] > 1 else ORDERS[:1]:
            ranks = ranks_of(in_order(levels, text, order), target)
            tried.append({"start": start, "order": order, "recall@10 of the new": float((ranks <= 10).mean())})
    best = max(tried, key=lambda row: row["recall@10 of the new"])
    lists = {start: in_lists(recommender, histories, targets) for start, recommender in recommenders.items()}
    valid_others = others(before, recommenders, [one[:-1] for one in sequences], new)

    histories, targets = asked(sequences, new)
    target = np.array([column[item] for item in targets])
    last, mean = similarities(x, row_of, histories, candidates)
    levels = scores_of(recommenders[best["start"]], histories, candidates)
    ranks = {
        args.model: ranks_of(in_order(levels, last, best["order"]), target),
        "text of the last item": ranks_of(last, target),
        "mean text of the history": ranks_of(mean, target),
    }
    # Ranks of new items in the lists of all items, without a share for new items.
    lists_on_test = in_lists(after, histories, targets)
    return {
        "seed": seed,
        "new_items": len(new),
        "users": len(targets),
        "validation_users": validation_users,
        "trained": {key: trained[key] for key in ("epochs", "best_epoch", "train_seconds", "test_result")},
        "add_seconds": seconds,
        "tried": tried,
        "chosen": best,
        "valid": {"recall@10 of new targets": lists, "others": valid_others},
        "test": {"recall@10 of new targets": lists_on_test, "others": others(before, {"siblings": after}, sequences, new)},
        "targets": targets,
        "ranks": {name: values.tolist() for name, values in ranks.items()},
    }


def lists_of(recommender, histories):
    """Lists of the ten best of all items, old and new."""
    beam = {"beam_size": 20} if "beam" in recommender.model.scorings else {}
    return recommender.recommend(histories, k=10, **beam)


def in_lists(recommender, histories, targets):
    """Share of the targets among the ten best of all items, old and new."""
    lists = lists_of(recommender, histories)
    return float(np.mean([any(row["item"] == item for row in one) for one, item in zip(lists, targets, strict=True)]))


def others(before, recommenders, sequences, new, users=500):
    """Changes in the lists of ten of users without new items, for each of several recommenders that know new items."""
    known = [one for one in sequences if not new.intersection(one)]
    known = [known[i] for i in np.random.default_rng(0).permutation(len(known))[:users]]
    histories, targets = [one[:-1] for one in known], [one[-1] for one in known]
    lists = {
        name: [[row["item"] for row in one] for one in lists_of(model, histories)]
        for name, model in {"before": before, **recommenders}.items()
    }
    return {
        name: {
            "users": len(known),
            "share of the list that stays": float(
                np.mean([len({*a} & {*b}) / 10 for a, b in zip(lists["before"], found, strict=True)])
            ),
            "share of new items": float(np.mean([sum(item in new for item in one) / 10 for one in found])),
            "recall@10": float(np.mean([item in one for one, item in zip(found, targets, strict=True)])),
        }
        for name, found in lists.items()
    }


def table_of(draws):
    """Recall of every method by K and by epsilon, over all users of the draws.

    Rows have intervals, and the difference from the model, the first method, with its interval.
    """
    ranks = {name: np.concatenate([one["ranks"][name] for one in draws]) for name in draws[0]["ranks"]}
    interval = interval_over_items([item for one in draws for item in one["targets"]])
    of_model = next(iter(ranks.values()))
    rows = []
    for name, values in ranks.items():
        for k, epsilon in [*((k, 0.1) for k in KS), *((10, epsilon) for epsilon in EPSILONS)]:
            places = int(epsilon * k + 1e-9)
            hits = (values <= places).astype(float)
            row = {"method": name, "k": k, "epsilon": epsilon, "recall": float(hits.mean())}
            row["interval"] = interval(hits)
            if values is not of_model:
                by = hits - (of_model <= places)
                row["minus_model"], row["interval_minus_model"] = float(by.mean()), interval(by)
            rows.append(row)
    return rows


def interval_over_items(items):
    """A function of hits [users]: the percentile bootstrap interval of their mean, which draws items with all their users.

    The users of one target have the same chance of a hit, so they are no sample of their own.

    Args:
        items: targets of the users, of all draws.
    """
    number, place = np.unique(items, return_inverse=True)
    drawn = np.random.RandomState(0).multinomial(len(number), np.full(len(number), 1 / len(number)), size=RESAMPLES)
    users = drawn @ np.bincount(place)
    return lambda hits: list(percentile_interval((drawn @ np.bincount(place, weights=hits)) / users))


def plot(rows, file):
    """Plot recall over K at an epsilon of .1, and over epsilon at K = 10, as in the paper's figure 5."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        by_k, by_epsilon = own[: len(KS)], own[len(KS) :]
        axes[0].plot([row["k"] for row in by_k], [row["recall"] for row in by_k], "o-", label=name)
        axes[1].plot([row["epsilon"] for row in by_epsilon], [row["recall"] for row in by_epsilon], "o-", label=name)
    axes[0].set(xlabel="K (epsilon .1)", ylabel="Recall@K of the new items", xticks=KS, ylim=0)
    axes[1].set(xlabel="epsilon (K = 10)", ylabel="Recall@10 of the new items", ylim=0)
    axes[0].legend()
    figure.savefig(file, dpi=120)


def main(argv=None):
    """Print a table; write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset/", help="parent folder of the dataset (default: %(default)s)")
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--model", default="TIGER-text", help="a model of semantic IDs, or a recipe (default: %(default)s)")
    parser.add_argument(
        "--share", type=float, default=0.05, help="share of the test items to hold out (default: %(default)s)"
    )
    parser.add_argument(
        "--draws", type=int, default=3, help="number of draws of held-out items; seeds from 2020 (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, default=Path("cold_start"), help="folder for datasets and checkpoints")
    parser.add_argument("--output", help="JSON file of all numbers")
    parser.add_argument("--plot", help="PNG file")
    args, rest = parser.parse_known_args(argv)
    settings = {"epochs": 12, "eval_step": 4, "valid_users": 2000, "gpu_id": "", "resume": True, **parse_arguments(rest)}
    place = Path(args.data_path) / args.dataset / args.dataset
    inter, items = read_table(f"{place}.inter"), read_table(f"{place}.item")
    sequences = sequences_of(inter)
    whole = {**settings, "data_path": args.data_path, "quantizer": "rq_kmeans"}  # for its embeddings
    full = CatalogueDataset(experiment.prepare("TIGER", args.dataset, whole))
    draws = [draw(args, settings, full, inter, items, sequences, seed) for seed in range(2020, 2020 + args.draws)]
    rows = table_of(draws)
    result = {
        "dataset": args.dataset,
        "model": args.model,
        "settings": parse_arguments(rest),
        "share": args.share,
        "draws": draws,
        "table": rows,
        "hardware": experiment.hardware(),
    }
    shown = [[row[key] for key in ("method", "k", "epsilon", "recall")] for row in rows]
    print(tabulate(shown, ["method", "K", "epsilon", "Recall@K"], floatfmt=".4f", tablefmt="github"))
    for one in draws:
        print({key: one[key] for key in ("seed", "new_items", "users", "add_seconds", "chosen", "valid", "test")})
    if args.output:
        write_result(result, args.output)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
