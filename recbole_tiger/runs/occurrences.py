"""How often the test targets occur in the training interactions."""

from pathlib import Path

import numpy as np

from recbole_tiger.report.leaderboard import FILTERS, LABELS, PROTOCOL, comparison
from recbole_tiger.runs import experiment
from recbole_tiger.settings.identity import data_hash, run_inputs
from recbole_tiger.settings.properties import is_sample

# How the files are read.
READING = ("load_col", "LIST_SUFFIX", "field_separator", "seq_separator", "encoding")
# Lengths that have to fit the data, and metrics that have to fit the lengths.
LENGTHS = ("MAX_ITEM_LIST_LENGTH", "topk", "metrics", "valid_metric")


def target_occurrences(result, data_path):
    """Count how often the target of each test user occurs in the training interactions of a result's dataset.

    Args:
        result: a dict, as in a result file. data_path: the folder of datasets.

    Returns:
        users (tokens, sorted), counts: arrays [users]. None if a user has several targets, if targets are drawn, or if
        ``data_path`` lacks the dataset or holds other files than those of the result.

    Raises:
        TigerError: RecBole cannot make the dataset.
    """
    dataset, settings = result["dataset"], result["settings"]
    if not is_sample(dataset, data_path) and not (Path(data_path) / dataset).is_dir():
        return None
    # Pop reads no labels.
    keys = [key for key in (*PROTOCOL, *READING, *LENGTHS) if key not in LABELS and settings.get(key) is not None]
    same = {key: settings[key] for key in keys}
    if same.get("benchmark_filename"):  # pre-split files are not filtered
        same = {key: value for key, value in same.items() if key == "benchmark_filename" or key not in FILTERS}
    # Pop learns nothing, so RecBole does not augment its interactions.
    same |= {"data_path": str(data_path), "show_progress": False}
    config = experiment.configure("Pop", dataset, same)
    if config["eval_args"]["order"] != "TO" or data_hash(config) != result["data_hash"]:
        return None
    experiment.fit_to_data(config, same)
    train_data, _, test_data = experiment.load(config)
    if comparison({**result, **run_inputs(config)}) != comparison(result):
        return None
    item, training, test = config["ITEM_ID_FIELD"], train_data.dataset.inter_feat, test_data.dataset.inter_feat
    users = test_data.dataset.id2token(config["USER_ID_FIELD"], test[config["USER_ID_FIELD"]].numpy()).astype(str)
    if len(np.unique(users)) < len(users):
        return None
    counts = np.bincount(training[item].numpy(), minlength=test_data.dataset.item_num)[test[item].numpy()]
    order = np.argsort(users)
    return users[order], counts[order]
