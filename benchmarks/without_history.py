"""How many places of their lists do models spend on items that the user has already? Test metrics as they are, and with the
items of the history left out of every list; the latter also for targets of a later day than the item before them. The
history is the part that models read, the last MAX_ITEM_LIST_LENGTH items.

The protocol does not mask histories, because a user may take an item again. If nobody does, as in the Amazon datasets,
models lose places to the history unless they learn that nobody repeats.

python benchmarks/without_history.py --checkpoints saved/SASRec-....pth saved/TIGER-....pth --output=without-history.json
"""

import argparse

import torch
from tabulate import tabulate
from tqdm import tqdm

from recbole_tiger.catalogue.download import DAY
from recbole_tiger.model.tiger import TIGER
from recbole_tiger.report.results import write_result
from recbole_tiger.report.statistics import interval, metric_per_user
from recbole_tiger.training.history import leaving_out

from recbole.quick_start import load_data_and_model  # isort: skip - after the plugin's import

METRICS = ("recall@10", "ndcg@10")
LIST = 10


def ranks_of(scores, target):
    """Rank of each row's target among the scores of all items, from 1, before items of equal score; 0 if its score is -inf.

    Args:
        scores: float tensor [users, items]. target: int tensor [users].
    """
    own = scores.gather(1, target.unsqueeze(1))
    return torch.where(own.squeeze(1).isneginf(), 0, (scores > own).sum(dim=1) + 1)


def evaluate(checkpoint):
    """Lists of a model for the test users.

    Returns:
        dict: name of the model, its dataset and its seed; ranks of the targets [users] as they are and without the history;
        share of the first LIST places, and of the first alone, that items of the history take; whether any target is one of
        them; bool array [users], whether the target is of a later day than the item before it.
    """
    config, model, _, _, _, test_data = load_data_and_model(checkpoint)
    model.eval()
    history_field = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    if isinstance(model, TIGER):
        # As many more places as the history can take.
        model.beam_size = min(model.beam_size + config["MAX_ITEM_LIST_LENGTH"], model.n_items - 1)
    time, length = config["TIME_FIELD"], config["ITEM_LIST_LENGTH_FIELD"]
    found = {"as it is": [], "without history": [], "first": [], "list": [], "repeats": [], "later": []}
    with leaving_out(test_data, False):  # a model may have been validated without the history
        for interaction, _, rows, target in tqdm(test_data, desc=config["model"]):
            interaction, target = interaction.to(model.device), target.to(model.device)
            history = interaction[history_field][rows]
            with torch.no_grad():
                scores = model.full_sort_predict(interaction).view(len(target), -1).float()
            scores[:, 0] = -torch.inf
            known = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, history, True)
            known[:, 0] = False
            top = known.gather(1, scores.topk(LIST, dim=1).indices).float()
            found["as it is"].append(ranks_of(scores, target))
            found["without history"].append(ranks_of(scores.masked_fill(known, -torch.inf), target))
            found["first"].append(top[:, 0])
            found["list"].append(top.mean(dim=1))
            before = interaction[time + config["LIST_SUFFIX"]].gather(1, interaction[length].unsqueeze(1) - 1).squeeze(1)
            found["later"].append((interaction[time] // DAY > before // DAY)[rows])
            found["repeats"].append(known.gather(1, target.unsqueeze(1)).squeeze(1).float())
    found = {key: torch.cat(values).cpu().numpy() for key, values in found.items()}
    return {
        "model": config["label"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "ranks": {key: found[key] for key in ("as it is", "without history")},
        "later": found["later"],
        "shares": {key: float(found[key].mean()) for key in ("repeats", "first", "list")},
    }


def main(argv=None):
    """Print a table, one row per model, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoints", nargs="+", required=True, help="checkpoints of TIGER or other sequential models of RecBole"
    )
    parser.add_argument("--output")
    args = parser.parse_args(argv)

    rows = []
    for checkpoint in args.checkpoints:
        found = evaluate(checkpoint)
        row = {name: found[name] for name in ("model", "dataset", "seed")}
        for how, ranks in found["ranks"].items():
            for metric in METRICS:
                values = metric_per_user(ranks, metric)
                row[f"{metric} {how}"] = round(float(values.mean()), 4)
                low, high = interval(values)
                row[f"95% of {metric} {how}"] = f"{low:.4f} to {high:.4f}"
        for metric in METRICS if found["later"].any() else ():
            values = metric_per_user(found["ranks"]["without history"], metric)[found["later"]]
            row[f"{metric} without history, later day"] = round(float(values.mean()), 4)
        row.update(
            {
                "history among the first": round(found["shares"]["first"], 4),
                f"history among the {LIST}": round(found["shares"]["list"], 4),
                "targets of the history": round(found["shares"]["repeats"], 4),
            }
        )
        rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4f"))
    if args.output:
        write_result({"rows": rows}, args.output)


if __name__ == "__main__":
    main()
