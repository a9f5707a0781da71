"""One run from settings to a result file, for any model; and several side by side."""

import contextlib
import copy
import functools
import os
import platform
import shutil
import sys
import time
from collections import Counter
from importlib import metadata
from logging import FileHandler, getLogger
from pathlib import Path

import numpy as np
import psutil
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.utils import get_dataloader
from recbole.utils import get_model, get_trainer, init_logger, init_seed

from recbole_tiger.catalogue.download import ensure_dataset
from recbole_tiger.catalogue.item_text import check_interactions, history_field
from recbole_tiger.errors import TigerError
from recbole_tiger.files import locked, make_folder
from recbole_tiger.model import MODELS
from recbole_tiger.report.results import SCHEMA, WITHOUT_HISTORY, read_result, write_result
from recbole_tiger.report.statistics import GAINS, interval, metric_of_users
from recbole_tiger.settings.arguments import check_keys
from recbole_tiger.settings.checks import of_lists
from recbole_tiger.settings.config import make_config
from recbole_tiger.settings.identity import check_unchanged, run_inputs, run_key
from recbole_tiger.settings.properties import dataset_properties
from recbole_tiger.training.dataset import check_aliases, text_load_col
from recbole_tiger.training.history import copy_leave_out, leaving_out
from recbole_tiger.training.memory import keep_freed_memory

PACKAGES = ("recbole-tiger", "recbole", "torch", "numpy", "pandas", "sentence-transformers", "ray")


def prepare(name, dataset, user_settings):
    """Config of a run, checked against the data: the columns to load are filled in, the same for every model."""
    config = configure(name, dataset, user_settings)
    fit_to_data(config, user_settings)
    return config


def configure(name, dataset, user_settings):
    """Config of a run whose settings are known and fit together."""
    check_keys(user_settings, "the settings")
    return make_config(name, dataset, user_settings)


def fit_to_data(config, user_settings):
    """Check a config against its dataset, which is fetched where RecBole's list has it, and fill in the columns to load."""
    ensure_dataset(config)
    if config["load_col"] is None:
        own = MODELS.get(config["model"])
        of_all = user_settings.get("item_embeddings") is None  # the columns are the same for every model of a comparison
        config["load_col"] = text_load_col(config, own.needs_text(config) if own else of_all)
    if "load_col" not in user_settings:
        config["load_col"] = {**_of_knowledge(config), **config["load_col"]}
    check_aliases(config)
    _check_columns(config)
    check_interactions(config)


def _of_knowledge(config):
    """Columns of the files beside users, items and interactions that RecBole gives models of a knowledge graph.

    Raises:
        TigerError: the dataset has no such file.
    """
    columns = config.internal_config_dict.get("load_col") or {}
    found = {kind: names for kind, names in columns.items() if kind not in ("inter", "item", "user")}
    for kind in found:
        file = Path(config["data_path"]) / f"{config['dataset']}.{kind}"
        if not file.is_file():
            raise TigerError(f"{config['model']} needs {file}, which does not exist: add it, or choose another model")
    return found


def _check_columns(config):
    """Refuse settings that name columns which are not loaded."""
    if "*" in config["load_col"].values():
        return
    loaded = {column for columns in config["load_col"].values() for column in columns}
    for key in ("val_interval", "selected_features"):
        absent = [column for column in config[key] or [] if column not in loaded]
        if absent:
            raise TigerError(
                f"{key} of {config['label']} names {', '.join(absent)}, and loaded are {', '.join(sorted(loaded))}: "
                f"give --{key}=... of these, or load more by --load_col=..."
            )


def budget(name, dataset, user_settings):
    """Settings that bound the cost of a model in a comparison (``properties/budget``); {} where there are none."""
    return dataset_properties("budget", dataset, user_settings).get(name, {})


class OutOfTime(Exception):
    """Training has passed ``max_minutes``."""


def time_epochs(trainer, max_minutes):
    """Let any RecBole trainer keep in ``epoch_log`` what each epoch took and reached, one dict an epoch.

    Keys: ``train_seconds``, ``train_loss``, and where it was evaluated ``eval_seconds``, ``valid_score`` and
    ``valid_result``. An epoch that would begin after ``max_minutes`` of training and validation (None: no limit) raises
    OutOfTime.
    """
    if not hasattr(trainer, "epoch_log"):
        trainer.epoch_log = []
    train, valid = trainer._train_epoch, trainer._valid_epoch

    def timed_train(*args, **kwargs):
        spent = sum(epoch["train_seconds"] + epoch.get("eval_seconds", 0) for epoch in trainer.epoch_log)
        # By now the epoch before is validated and saved.
        if max_minutes is not None and spent > 60 * max_minutes and trainer.best_valid_result is not None:
            raise OutOfTime
        begin = time.perf_counter()
        loss = train(*args, **kwargs)
        total = float(sum(loss)) if isinstance(loss, tuple) else float(loss)
        trainer.epoch_log.append({"train_seconds": time.perf_counter() - begin, "train_loss": total})
        return loss

    def timed_valid(*args, **kwargs):
        begin = time.perf_counter()
        score, result = valid(*args, **kwargs)
        entry = {"eval_seconds": time.perf_counter() - begin, "valid_score": float(score), "valid_result": plain(result)}
        if trainer.epoch_log:
            trainer.epoch_log[-1].update(entry)
        return score, result

    trainer._train_epoch, trainer._valid_epoch = timed_train, timed_valid


def keep_ranks(trainer):
    """Let a RecBole trainer keep in ``ranks`` what its last evaluation found: the rank of every user's target.

    An int32 array in the order of the evaluated rows, 0 where the target is not among the first max(topk); None where a row
    has several targets, or no metric looks at ranks.
    """
    evaluate = trainer.evaluator.evaluate

    def keeping(struct):
        trainer.ranks = None
        if "rec.topk" in struct:
            hits = struct.get("rec.topk").numpy()
            if (hits[:, -1] == 1).all():
                trainer.ranks = np.where(hits[:, :-1].any(axis=1), hits[:, :-1].argmax(axis=1) + 1, 0).astype(np.int32)
        return evaluate(struct)

    trainer.evaluator.evaluate = keeping


def evaluated_ids(data):
    """RecBole's ids of the users of an evaluation's rows, in their order: int array."""
    dataset = data.dataset
    return np.asarray(data.uid_list if hasattr(data, "uid_list") else dataset.inter_feat[dataset.uid_field])


def evaluated_users(data):
    """Tokens of the same."""
    return data.dataset.id2token(data.dataset.uid_field, evaluated_ids(data))


def plain(result):
    """Metrics as a dict of floats."""
    return {name: float(value) for name, value in result.items()}


def hardware():
    """What the run ran on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions():
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # all but a sweep works without Ray
            found[name] = metadata.version(name)
    return found


def result_path(config, results_dir):
    """Where the result of a run is written."""
    return Path(results_dir) / f"{config['dataset']}-{config['label']}-{config['seed']}-{run_key(config)}.json"


def start_logging(config):
    """Hand RecBole's log over to a run.

    Raises:
        TigerError: the folder of the command takes no logs.
    """
    root = getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    try:
        init_logger(config)
        Path("log_tensorboard").mkdir(exist_ok=True)
    except OSError as error:
        raise TigerError(
            f"RecBole writes log/ and log_tensorboard/ into the folder of the command, and cannot write {error.filename} in "
            f"{Path.cwd()} ({error.strerror}): give the command in another folder"
        ) from error
    for handler in root.handlers:
        if isinstance(handler, FileHandler):
            handler.handleError = functools.partial(_cut_short, handler)
    root.info(config)


def _cut_short(handler, record):
    """End a log that cannot be written, in a sentence and not in a traceback for each of its lines; the run goes on."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        raise
    getLogger().removeHandler(handler)
    with contextlib.suppress(OSError):  # of what it still holds
        handler.close()
    print(f"recbole-tiger: warning: the log {handler.baseFilename} is cut short: {error}", file=sys.stderr)


@contextlib.contextmanager
def refused_by_recbole(config):
    """What RecBole raises as it makes a dataset or a model of settings, as a sentence."""
    try:
        yield
    except TigerError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, ImportError) as error:
        reason = " ".join(str(error).split())
        if "num_samples=0" in reason:
            raise _nothing_left(config, "training") from error
        if "Some feat is empty" in reason:
            reason = (
                "its filters leave no interaction, user or item: loosen user_inter_num_interval, val_interval and the like"
            )
        raise TigerError(
            f"{config['label']} on {config['dataset']}: RecBole refuses the data or the settings, "
            f"{type(error).__name__}: {reason}"
        ) from error


@contextlib.contextmanager
def told_of_memory(config):
    """What PyTorch raises where a GPU has no memory left, as a sentence."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        sizes = ", ".join(f"{name} (now {config[name]})" for name in ("train_batch_size", "eval_batch_size"))
        raise TigerError(f"{config['label']}: the GPU is out of memory: lower {sizes} or the widths of the model") from error


def _nothing_left(config, part):
    return TigerError(
        f"dataset {config['dataset']}: with eval_args split {config['eval_args']['split']} no interaction is left "
        f"for {part}; leave-one-out needs users with at least four"
    )


def _check_lengths(config, dataset):
    """Refuse pre-split histories that a model of RecBole's has no positions for; those of MODELS read the last of them."""
    longest = dataset.field2seqlen.get(history_field(config), 0) if config["benchmark_filename"] else 0
    if config["model"] not in MODELS and longest > config["MAX_ITEM_LIST_LENGTH"]:
        raise TigerError(
            f"the pre-split files have histories of up to {longest} items, MAX_ITEM_LIST_LENGTH is "
            f"{config['MAX_ITEM_LIST_LENGTH']}: raise it, or cut them to their last items"
        )


def _check_lists(config, dataset):
    """Refuse lists that are longer than the catalogue, which RecBole would find out after training."""
    n_items = dataset.item_num - 1
    if any(map(of_lists, config["metrics"])) and max(config["topk"]) > n_items:
        raise TigerError(
            f"topk {max(config['topk'])} of {config['label']} is longer than the catalogue of {n_items} items; lower it"
        )


def load(config):
    """Training, validation (cut down to ``valid_users``) and test data of a run.

    Raises:
        TigerError: one of them is empty, RecBole cannot make them, or the files have changed since the run began.
    """
    init_seed(config["seed"], config["reproducibility"])
    run_inputs(config)
    with refused_by_recbole(config):
        dataset = create_dataset(config)
        getLogger().info(dataset)
        _check_lengths(config, dataset)
        _check_lists(config, dataset)
        train_data, valid_data, test_data = data_preparation(config, dataset)
    check_unchanged(config)
    for part, data in (("training", train_data), ("validation", valid_data), ("test", test_data)):
        if not len(data._dataset):
            raise _nothing_left(config, part)
    if config["valid_users"] is not None:
        valid_data = of_some_users(config, valid_data)
    return train_data, valid_data, test_data


def of_some_users(config, valid_data):
    """Validation data of ``valid_users`` users: with one seed the same for every model, by their tokens."""
    dataset = valid_data._dataset
    users = dataset.inter_feat[dataset.uid_field].numpy()
    tokens = dataset.field2id_token[dataset.uid_field]
    ordered = sorted(np.unique(users), key=lambda user: tokens[user])
    chosen = np.random.default_rng(config["seed"]).permutation(ordered)[: config["valid_users"]]
    rows = dataset.copy(dataset.inter_feat[np.flatnonzero(np.isin(users, chosen))])
    return copy_leave_out(get_dataloader(config, "valid")(config, rows, valid_data._sampler, shuffle=False), valid_data)


def make_model(config, train_data):
    """A new model."""
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    with refused_by_recbole(config), told_of_memory(config):
        return get_model(config["model"])(config, train_data._dataset).to(config["device"])


def make_trainer(config, train_data):
    """A new model and its trainer."""
    keep_freed_memory()
    model = make_model(config, train_data)
    getLogger().info(model)
    with told_of_memory(config):
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    key = run_key(config)
    if key not in trainer.saved_model_file:  # RecBole's name tells seconds: runs that begin together would share a file
        trainer.saved_model_file = trainer.saved_model_file.removesuffix(".pth") + f"-{key}.pth"
    return trainer


def train(config, after_epoch=None):
    """Train one model, as RecBole's ``run_recbole`` does.

    Args:
        config: of :func:`prepare`.
        after_epoch: called after every evaluation on validation with the result so far.

    Returns:
        dict: the result without the fields of :func:`finish`; the trainer; the test data.
    """
    of_run = run_inputs(config)
    begin = time.perf_counter()
    train_data, valid_data, test_data = load(config)
    prepare_seconds = time.perf_counter() - begin
    trainer = make_trainer(config, train_data)
    time_epochs(trainer, config["max_minutes"])
    out_of_time = False

    def result():
        log = trainer.epoch_log
        scored = [i for i, epoch in enumerate(log) if "valid_score" in epoch]
        best = max(scored, key=lambda i: (log[i]["valid_score"] * (1 if config["valid_metric_bigger"] else -1), i))
        found = {
            "schema": SCHEMA,
            "model": config["model"],
            "label": config["label"],
            "dataset": config["dataset"],
            "seed": config["seed"],
            "best_valid_score": log[best]["valid_score"],
            "valid_score_bigger": config["valid_metric_bigger"],
            "best_valid_result": log[best]["valid_result"],
            "epochs": len(log),
            "best_epoch": best,
            "out_of_time": out_of_time,
            "still_improving": (len(log) == config["epochs"] or out_of_time) and best == scored[-1],
            "prepare_seconds": round(prepare_seconds, 2),
            "train_seconds": round(sum(epoch["train_seconds"] for epoch in log), 2),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "epoch_log": log,
            **of_run,
            "versions": versions(),
            "hardware": hardware(),
            "checkpoint": str(trainer.saved_model_file),
        }
        if config["model"] in MODELS:
            # A resumed run keeps the codes of its checkpoint, which those made now need not be.
            found["semantic_ids"] = trainer.model.semantic_ids().statistics()
        return found

    callback = {} if after_epoch is None else {"callback_fn": lambda epoch, score: after_epoch(result())}
    try:
        with told_of_memory(config):
            trainer.fit(train_data, valid_data, saved=True, show_progress=config["show_progress"], **callback)
    except OutOfTime:
        out_of_time = True
    except ValueError as error:
        if isinstance(error, TigerError) or "nan" not in str(error):
            raise
        raise TigerError(
            f"{config['label']}: {error}: training has diverged; lower learning_rate, now {config['learning_rate']}"
        ) from error
    return result(), trainer, test_data


def finish(result, trainer, test_data, file):
    """Evaluate the best epoch on the test set, with and without what users have already, and write what comes out.

    Each is done once. In sampled evaluation both rank the same draw.

    Args:
        result, trainer, test_data: of :func:`train`; the first gains the fields that tell the test.
        file: the result file to write; beside it goes the rank of every user's target.
    """
    keep_ranks(trainer)
    config, users, kept = trainer.config, evaluated_users(test_data), {}
    # With several targets a user, as a split by ratio has them, rows are no sample of users.
    of_users = len(np.unique(users)) == len(users)
    random_state = np.random.get_state()
    for suffix in ("", WITHOUT_HISTORY) if any(map(of_lists, config["metrics"])) else ("",):
        np.random.set_state(random_state)
        begin = time.perf_counter()
        with told_of_memory(config), leaving_out(test_data, suffix == WITHOUT_HISTORY):
            found = plain(
                trainer.evaluate(
                    test_data,
                    load_best_model=not suffix,
                    model_file=result["checkpoint"],
                    show_progress=config["show_progress"],
                )
            )
        seconds = time.perf_counter() - begin
        if suffix:
            found = {name: value for name, value in found.items() if of_lists(name.partition("@")[0])}
        else:
            result["eval_seconds"] = round(seconds, 2)
            result["eval_users_per_second"] = round(len(test_data._dataset) / seconds, 2)
        ranks = trainer.ranks if of_users else None
        of_ranks = [name for name in found if ranks is not None and name.partition("@")[0] in GAINS]
        result[f"test_result{suffix}"] = found
        result[f"intervals{suffix}"] = {name: interval(metric_of_users(ranks, name)) for name in of_ranks}
        if ranks is not None:
            kept[f"ranks{suffix}"] = ranks
    later_day = test_data.collate_fn.known.later_day(evaluated_ids(test_data)) if kept else None
    if later_day is not None:
        kept["later_day"] = later_day
    result["ranks"] = file.with_suffix(".ranks.npz").name if kept else None
    write_result(result, file, users, kept)


def remove_state(trainer):
    """Remove what a trainer resumes from, where it does so, which has served; the best epoch's checkpoint stays."""
    if hasattr(trainer, "state_file"):
        shutil.rmtree(trainer.state_file.parent, ignore_errors=True)


def make_folders(config, results_dir):
    """Make the folders that a run writes to."""
    make_folder(results_dir)
    make_folder(config["checkpoint_dir"])
    if config["model"] in MODELS:
        make_folder(config["cache_dir"])


def rehearse(config):
    """Make the data and the model of a run, so that what cannot work is refused before other runs begin."""
    config = copy.deepcopy(config)  # some models write into their settings
    make_model(config, load(config)[0])


def run(config, results_dir):
    """Train and test one model and write the result file.

    Args:
        config: of :func:`prepare`.

    Raises:
        TigerError: another process trains the same in the same ``checkpoint_dir``, or the run cannot work.

    Returns:
        dict: the result, with ``checkpoint`` the path of the best epoch's.
    """
    file = result_path(config, results_dir)
    make_folders(config, results_dir)
    key = run_key(config)  # some models write into their settings as they run
    with locked(Path(config["checkpoint_dir"]) / f"{config['model']}-{key}.lock", f"the same run of {config['label']}"):
        start_logging(config)
        result, trainer, test_data = train(config)
        finish(result, trainer, test_data, file)
        remove_state(trainer)
    return result


def run_or_read(config, results_dir):
    """The result of a finished run of the same settings and data, or else of a run now."""
    file = result_path(config, results_dir)
    if file.is_file():
        print(f"{config['label']} on {config['dataset']}: already run, {file}")
        return read_result(file)
    return run(config, results_dir)


def compare(names, dataset, user_settings, results_dir):
    """Run several models on one dataset under one protocol; finished runs are not run again.

    What cannot work is refused before any model is trained.

    Returns:
        list of results in the order of ``names``.
    """
    if not names:
        raise TigerError("no model to compare: name some by --models=GRU4Rec,TIGER")
    if "label" in user_settings:
        raise TigerError("label names the row of one run, and here every model has a row: leave it out")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise TigerError(f"models named twice: {', '.join(twice)}")
    configs = [
        prepare(name, dataset, {**budget(name, dataset, user_settings), **user_settings, "resume": True}) for name in names
    ]
    files = [result_path(config, results_dir) for config in configs]
    for file in files:
        if file.is_file():
            read_result(file)
    waiting = [config for config, file in zip(configs, files, strict=True) if not file.is_file()]
    for config in waiting:
        make_folders(config, results_dir)
    for config in waiting[1:]:  # the first is checked as it begins
        rehearse(config)
    return [run_or_read(config, results_dir) for config in configs]
