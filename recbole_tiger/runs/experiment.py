"""One run of any model, from settings to a result file, and comparisons of several models."""

import contextlib
import copy
import functools
import gc
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
from recbole.utils import ModelType, get_model, get_trainer, init_logger, init_seed

from recbole_tiger.catalogue.item_text import history_field
from recbole_tiger.errors import TigerError
from recbole_tiger.files import check_writable, locked, make_folder
from recbole_tiger.model import MODELS
from recbole_tiger.report.results import SCHEMA, WITHOUT_HISTORY, read_result, write_result
from recbole_tiger.report.statistics import has_gain, interval, metric_per_user
from recbole_tiger.settings.arguments import check_keys
from recbole_tiger.settings.checks import is_list_metric
from recbole_tiger.settings.config import make_config
from recbole_tiger.settings.identity import check_unchanged, run_inputs, run_key
from recbole_tiger.settings.properties import dataset_properties, defaults_of
from recbole_tiger.training.checkpoint import checkpoint_name
from recbole_tiger.training.dataset import prepare_columns
from recbole_tiger.training.history import copy_leave_out, leaving_out
from recbole_tiger.training.memory import keep_freed_memory

PACKAGES = ("recbole-tiger", "recbole", "torch", "numpy", "pandas", "sentence-transformers", "ray")


def prepare(name, dataset, user_settings):
    """Make the config of a run and check it against the data; every model loads the same columns."""
    config = configure(name, dataset, user_settings)
    fit_to_data(config, user_settings)
    return config


def configure(name, dataset, user_settings):
    """Make the config of a run and check that its settings are known and fit together."""
    check_keys(user_settings, "the settings")
    return make_config(name, dataset, user_settings)


def fit_to_data(config, user_settings):
    """Check a config against its dataset and fill in the columns to load; download the dataset if RecBole lists it."""
    own = MODELS.get(config["model"])
    # Every model of a comparison loads the same columns, so those of RecBole need the text that TIGER would read.
    as_tiger = {**defaults_of("TIGER"), **user_settings}
    text_needed = own.needs_text(config) if own else config["load_col"] is None and MODELS["TIGER"].needs_text(as_tiger)
    prepare_columns(config, text_needed)
    if "load_col" not in user_settings:
        config["load_col"] = {**_knowledge_graph_columns(config), **config["load_col"]}
    _check_loaded(config)


def _knowledge_graph_columns(config):
    """Columns of the knowledge graph files that RecBole loads for models of a knowledge graph.

    Raises:
        TigerError: the dataset lacks such a file.
    """
    columns = config.internal_config_dict.get("load_col") or {}
    found = {kind: names for kind, names in columns.items() if kind not in ("inter", "item", "user")}
    for kind in found:
        file = Path(config["data_path"]) / f"{config['dataset']}.{kind}"
        if not file.is_file():
            raise TigerError(f"{config['model']} needs {file}, which does not exist: add it, or choose another model")
    return found


def _check_loaded(config):
    """Refuse settings that name columns not loaded."""
    if "*" in config["load_col"].values():
        return
    loaded = {column for columns in config["load_col"].values() for column in columns}
    for key in ("val_interval", "selected_features"):
        absent = [column for column in config[key] or [] if column not in loaded]
        if absent:
            raise TigerError(
                f"{key} of {config['label']} names {', '.join(absent)}, but the loaded columns are "
                f"{', '.join(sorted(loaded))}: name some of these in --{key}=..., or load more with --load_col=..."
            )


def budget(name, dataset, user_settings):
    """Settings that limit the cost of a model in a comparison (``properties/budget``); {} if there are none."""
    return dataset_properties("budget", dataset, user_settings).get(name, {})


class OutOfTime(Exception):
    """Training and validation took longer than ``max_minutes``."""


def time_epochs(trainer, max_minutes):
    """Make a RecBole trainer log the time, loss and validation result of each epoch in ``epoch_log``, one dict per epoch.

    The keys are ``train_seconds`` and ``train_loss``, and for evaluated epochs ``eval_seconds``, ``valid_score`` and
    ``valid_result``. An epoch that would begin after ``max_minutes`` of training and validation (None: no limit) raises
    OutOfTime.
    """
    if not hasattr(trainer, "epoch_log"):
        trainer.epoch_log = []
    train, valid = trainer._train_epoch, trainer._valid_epoch

    def timed_train(*args, **kwargs):
        spent = sum(epoch["train_seconds"] + epoch.get("eval_seconds", 0) for epoch in trainer.epoch_log)
        # The previous epoch is validated and saved by now.
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
        entry = {"eval_seconds": time.perf_counter() - begin, "valid_score": float(score), "valid_result": as_floats(result)}
        if trainer.epoch_log:
            trainer.epoch_log[-1].update(entry)
        return score, result

    trainer._train_epoch, trainer._valid_epoch = timed_train, timed_valid


def keep_ranks(trainer):
    """Make a RecBole trainer keep the ranks of the targets in its last evaluation as its attribute ``ranks``.

    ``ranks`` is an int32 array in the order of the evaluated rows, 0 where the target is not among the first max(topk). It
    is None if a row has several targets or no metric uses ranks.
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
    """RecBole's user ids of the evaluated rows, in their order: int array."""
    dataset = data.dataset
    return np.asarray(data.uid_list if hasattr(data, "uid_list") else dataset.inter_feat[dataset.uid_field])


def evaluated_users(data):
    """User tokens of the evaluated rows, in their order."""
    return data.dataset.id2token(data.dataset.uid_field, evaluated_ids(data))


def as_floats(result):
    """Convert metrics to a dict of floats."""
    return {name: float(value) for name, value in result.items()}


def hardware():
    """Describe the machine of a run."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions():
    """Versions of Python and of the packages on which results depend."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # only sweeps need Ray
            found[name] = metadata.version(name)
    return found


def result_path(config, results_dir):
    """Path of the result file of a run."""
    return Path(results_dir) / f"{config['dataset']}-{config['label']}-{config['seed']}-{run_key(config)}.json"


def start_logging(config):
    """Start RecBole's log for a run.

    Raises:
        TigerError: logs cannot be written in the working directory.
    """
    root = getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    try:
        init_logger(config)
        Path("log_tensorboard").mkdir(exist_ok=True)
    except OSError as error:
        raise TigerError(
            f"RecBole writes log/ and log_tensorboard/ in the working directory, and cannot write {error.filename} in "
            f"{Path.cwd()} ({error.strerror}): run the command in another folder"
        ) from error
    for handler in root.handlers:
        if isinstance(handler, FileHandler):
            handler.handleError = functools.partial(_close_log, handler)
    root.info(config)


def _close_log(handler, record):
    """Close a log that cannot be written or encoded and warn once, instead of a traceback per line; the run goes on."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError | UnicodeError):
        raise
    getLogger().removeHandler(handler)
    with contextlib.suppress(OSError):  # closing writes the rest of the buffer
        handler.close()
    print(f"recbole-tiger: warning: the log {handler.baseFilename} is cut short: {error}", file=sys.stderr)


@contextlib.contextmanager
def recbole_errors_as_sentences(config):
    """Turn exceptions of RecBole about the data or the settings into a TigerError of one sentence."""
    try:
        yield
    except TigerError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, ImportError) as error:
        reason = " ".join(str(error).split())
        if "num_samples=0" in reason:
            raise _empty_part_error(config, "training") from error
        if "Some feat is empty" in reason:
            reason = "its filters leave no interaction, user or item: loosen user_inter_num_interval, val_interval or others"
        raise TigerError(
            f"{config['label']} on {config['dataset']}: RecBole refuses the data or the settings, "
            f"{type(error).__name__}: {reason}"
        ) from error


@contextlib.contextmanager
def memory_error_as_sentence(config):
    """Turn PyTorch's out-of-memory error of a GPU into a TigerError of one sentence."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        sizes = ", ".join(f"{name} (now {config[name]})" for name in ("train_batch_size", "eval_batch_size"))
        raise TigerError(f"{config['label']}: the GPU is out of memory: lower {sizes} or the widths of the model") from error


def _empty_part_error(config, part):
    return TigerError(
        f"dataset {config['dataset']}: with eval_args split {config['eval_args']['split']} no interaction is left "
        f"for {part}; leave-one-out needs users with at least four"
    )


def _check_lengths(config, dataset):
    """Refuse pre-split histories too long for a sequential model of RecBole; those of MODELS read the most recent items."""
    longest = dataset.field2seqlen.get(history_field(config), 0) if config["benchmark_filename"] else 0
    reads_all = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and config["model"] not in MODELS
    if reads_all and longest > config["MAX_ITEM_LIST_LENGTH"]:
        raise TigerError(
            f"the pre-split files have histories of up to {longest} items, but MAX_ITEM_LIST_LENGTH is "
            f"{config['MAX_ITEM_LIST_LENGTH']}: raise it, or cut the histories to their last items"
        )


def _check_lists(config, dataset):
    """Refuse lists longer than the catalogue before training; RecBole would fail after it."""
    n_items = dataset.item_num - 1
    if any(map(is_list_metric, config["metrics"])) and max(config["topk"]) > n_items:
        raise TigerError(
            f"topk {max(config['topk'])} of {config['label']} is longer than the catalogue of {n_items} items; lower it"
        )


def load(config):
    """Load the training, validation (``valid_users`` of its users) and test data of a run.

    Raises:
        TigerError: a part is empty, RecBole refuses the data, or the files have changed since the run began.
    """
    init_seed(config["seed"], config["reproducibility"])
    run_inputs(config)
    with recbole_errors_as_sentences(config):
        dataset = create_dataset(config)
        getLogger().info(dataset)
        _check_lengths(config, dataset)
        _check_lists(config, dataset)
        train_data, valid_data, test_data = data_preparation(config, dataset)
    check_unchanged(config)
    for part, data in (("training", train_data), ("validation", valid_data), ("test", test_data)):
        if not len(data._dataset):
            raise _empty_part_error(config, part)
    if config["valid_users"] is not None:
        valid_data = subset_of_users(config, valid_data)
    return train_data, valid_data, test_data


def subset_of_users(config, valid_data):
    """Validation data of ``valid_users`` users, drawn by token: the same users for every model with the same seed."""
    dataset = valid_data._dataset
    users = dataset.inter_feat[dataset.uid_field].numpy()
    tokens = dataset.field2id_token[dataset.uid_field]
    ordered = sorted(np.unique(users), key=lambda user: tokens[user])
    chosen = np.random.default_rng(config["seed"]).permutation(ordered)[: config["valid_users"]]
    rows = dataset.copy(dataset.inter_feat[np.flatnonzero(np.isin(users, chosen))])
    return copy_leave_out(get_dataloader(config, "valid")(config, rows, valid_data._sampler, shuffle=False), valid_data)


def make_model(config, train_data):
    """Make an untrained model."""
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    with recbole_errors_as_sentences(config), memory_error_as_sentence(config):
        return get_model(config["model"])(config, train_data._dataset).to(config["device"])


def make_trainer(config, train_data):
    """Make the trainer of an untrained model."""
    keep_freed_memory()
    model = make_model(config, train_data)
    getLogger().info(model)
    with memory_error_as_sentence(config):
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_step = min(trainer.eval_step, trainer.epochs)  # RecBole sets one epoch for models without training
    key = run_key(config)
    if key not in Path(trainer.saved_model_file).name:  # RecBole names files by the second, which runs begun together share
        trainer.saved_model_file = checkpoint_name(trainer.saved_model_file, config, key)
    return trainer


def parameters_of(model):
    """Number of the parameters that scores depend on: all but those of a stage of training alone."""
    unread = getattr(model, "training_only", ())
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in unread)


def train(config, after_epoch=None):
    """Train one model, as RecBole's ``run_recbole`` does.

    Args:
        config: from :func:`prepare`.
        after_epoch: called with the result so far after every evaluation on the validation set.

    Returns:
        the result (a dict, without the fields that :func:`finish` adds); the trainer; the test data.
    """
    inputs = run_inputs(config)
    begin = time.perf_counter()
    train_data, valid_data, test_data = load(config)
    prepare_seconds = time.perf_counter() - begin
    trainer = make_trainer(config, train_data)
    time_epochs(trainer, config["max_minutes"])
    out_of_time = False
    learns = config["MODEL_TYPE"] != ModelType.TRADITIONAL  # RecBole gives the others a single epoch

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
            "still_improving": learns and (len(log) == config["epochs"] or out_of_time) and best == scored[-1],
            "prepare_seconds": round(prepare_seconds, 2),
            "train_seconds": round(sum(epoch["train_seconds"] for epoch in log), 2),
            "parameters": parameters_of(trainer.model),
            "epoch_log": log,
            **inputs,
            "versions": versions(),
            "hardware": hardware(),
            "checkpoint": str(trainer.saved_model_file),
        }
        if config["model"] in MODELS:
            # A resumed run keeps the codes of its checkpoint, which may differ from newly made ones.
            found["semantic_ids"] = trainer.model.semantic_ids().statistics()
        return found

    callback = {} if after_epoch is None else {"callback_fn": lambda epoch, score: after_epoch(result())}
    try:
        with memory_error_as_sentence(config):
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
    """Evaluate the best epoch on the test set, with and without the users' history in the lists, and write the result.

    Each of the two evaluations runs once. In sampled evaluation both rank the same drawn items.

    Args:
        result, trainer, test_data: from :func:`train`; ``result`` gains the fields of the test.
        file: the result file to write; the ranks of the users' targets are written beside it.
    """
    keep_ranks(trainer)
    config, users, kept = trainer.config, evaluated_users(test_data), {}
    # A split by ratio gives users several targets, so rows are not a sample of users.
    one_target = len(np.unique(users)) == len(users)
    random_state = np.random.get_state()
    for suffix in ("", WITHOUT_HISTORY) if any(map(is_list_metric, config["metrics"])) else ("",):
        np.random.set_state(random_state)
        begin = time.perf_counter()
        with memory_error_as_sentence(config), leaving_out(test_data, suffix == WITHOUT_HISTORY):
            found = as_floats(
                trainer.evaluate(
                    test_data,
                    load_best_model=not suffix,
                    model_file=result["checkpoint"],
                    show_progress=config["show_progress"],
                )
            )
        seconds = time.perf_counter() - begin
        if suffix:
            found = {name: value for name, value in found.items() if is_list_metric(name.partition("@")[0])}
        else:
            result["eval_seconds"] = round(seconds, 2)
            result["eval_users_per_second"] = round(len(test_data._dataset) / seconds, 2)
        ranks = trainer.ranks if one_target else None
        ranked = [name for name in found if ranks is not None and has_gain(name)]
        result[f"test_result{suffix}"] = found
        result[f"intervals{suffix}"] = {name: interval(metric_per_user(ranks, name)) for name in ranked}
        if ranks is not None:
            kept[f"ranks{suffix}"] = ranks
    in_order = kept and config["eval_args"]["order"] == "TO"  # otherwise targets are drawn
    later_day = test_data.collate_fn.known.later_day(evaluated_ids(test_data)) if in_order else None
    if later_day is not None:
        kept["later_day"] = later_day
    result["ranks"] = file.with_suffix(".ranks.npz").name if kept else None
    write_result(result, file, users, kept)


def remove_state(trainer):
    """Remove the files from which a trainer resumes, if it has any; the best epoch's checkpoint stays."""
    if hasattr(trainer, "state_file"):
        shutil.rmtree(trainer.state_file.parent, ignore_errors=True)


def make_folders(config, file):
    """Make the folders in which a run writes, and check that its result and its checkpoint can be written.

    Args:
        file: the result file.
    """
    check_writable(file)
    check_writable(Path(config["checkpoint_dir"]) / f"{file.stem}.pth")
    if config["model"] in MODELS:
        make_folder(config["cache_dir"])


def rehearse(config):
    """Make the data and the model of a run, to refuse what cannot work before other runs begin."""
    config = copy.deepcopy(config)  # some models write into their settings
    make_model(config, load(config)[0])


def run(config, results_dir):
    """Train and test one model and write the result file.

    Args:
        config: from :func:`prepare`.

    Raises:
        TigerError: another process does the same run in the same ``checkpoint_dir``, or the run cannot work.

    Returns:
        dict: the result; ``checkpoint`` is the path of the best epoch's checkpoint.
    """
    file = result_path(config, results_dir)
    make_folders(config, file)
    key = run_key(config)  # some models write into their settings as they run
    gc.collect()  # an earlier run's model and data refer to each other, so they would stay in memory
    with locked(Path(config["checkpoint_dir"]) / f"{config['model']}-{key}.lock", f"the same run of {config['label']}"):
        start_logging(config)
        result, trainer, test_data = train(config)
        finish(result, trainer, test_data, file)
        remove_state(trainer)
    return result


def run_or_read(config, results_dir):
    """Read the result of a finished run with the same settings and data, or run now if there is none."""
    file = result_path(config, results_dir)
    if file.is_file():
        print(f"{config['label']} on {config['dataset']}: already run, {file}")
        return read_result(file)
    return run(config, results_dir)


def compare(names, dataset, user_settings, results_dir):
    """Run several models on one dataset under one protocol; finished runs are not repeated.

    Settings that cannot work are refused before any model is trained.

    Returns:
        list of results in the order of ``names``.
    """
    if not names:
        raise TigerError("no model to compare: name some, as in --models=GRU4Rec,TIGER")
    if "label" in user_settings:
        raise TigerError("label names the row of one run, but here every model has a row: leave it out")
    if user_settings.get("resume") is False:
        raise TigerError("a comparison reads finished runs: leave resume out, and remove their result files to repeat them")
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
    waiting = [(config, file) for config, file in zip(configs, files, strict=True) if not file.is_file()]
    for config, file in waiting:
        make_folders(config, file)
    for config, _ in waiting[1:]:  # the first one is checked when its run begins
        rehearse(config)
    results = []
    for number, config in enumerate(configs, start=1):
        print(f"{number} of {len(configs)}: {config['label']}, at most {config['epochs']} epochs")
        results.append(run_or_read(config, results_dir))
    return results
