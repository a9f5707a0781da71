"""Checks of settings, made before any long work."""

import importlib.util
import math
import os
import re
from pathlib import Path

from recbole.evaluator.register import metric_information
from recbole.utils import EvaluatorType, ModelType

from recbole_tiger.catalogue.item_text import header, interaction_files
from recbole_tiger.catalogue.quantizers import QUANTIZERS, make_quantizer, quantizer_settings
from recbole_tiger.errors import TigerError, check_number
from recbole_tiger.model import MODELS
from recbole_tiger.settings.properties import protocol_settings, settings_of

# Examples in the messages about missing texts.
EXAMPLES = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
# Settings that RecBole assumes to be lists.
LISTS_OF_COLUMNS = [f"alias_of_{kind}_id" for kind in ("user", "item", "entity", "relation")]
LISTS_OF_COLUMNS += ["numerical_features", "normalize_field", "selected_features"]
# Settings of RecBole's training loader, which WindowTrainer does not use, and their defaults.
UNREAD_BY_WINDOWS = {"transform": None, "shuffle": True, "enable_scaler": False}
# Bytes of the dataset and the label in the names of files; these add the seed, the time and the key, to less than the 255
# bytes that file systems allow.
LONGEST_NAME = 180
# NumPy requires seeds below this.
SEEDS = 2**32
# The data that RecBole's list metrics use; their names include the list length.
LISTS = {"rec.topk", "rec.items"}
# RecBole's ranking modes: all items, labelled items, or a number of drawn items beside the target.
MODE = re.compile(r"full|labeled|(uni|pop)[1-9]\d*")
# RecBole's intervals, for example [5,inf) or (0,1];[3,4).
_BOUND = r"\s*-?(\d+\.?\d*|inf)\s*"
INTERVALS = re.compile(rf"[\[(]{_BOUND},{_BOUND}[\])](\s*;\s*[\[(]{_BOUND},{_BOUND}[\])])*")


def is_list_metric(metric):
    """Whether a metric of RecBole is computed from lists and not from scores."""
    return not LISTS.isdisjoint(metric_information.get(metric.lower(), ()))


def _check_count(key, value, least=1):
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        allowed = "a positive whole number" if least == 1 else f"a whole number from {least} up"
        raise TigerError(f"{key} has to be {allowed}, not {value!r}")


def _check_text(key, value):
    if not isinstance(value, str) or not value:
        quoted = f"'\"{value or EXAMPLES.get(key, '|')}\"'"
        raise TigerError(f"{key} has to be text, not {value!r}: quote it for YAML, as in --{key}={quoted}")


def _check_intervals(config):
    """Refuse malformed intervals, which RecBole ignores without filtering."""
    ranges = {key: config[key] for key in ("user_inter_num_interval", "item_inter_num_interval")}
    values = config["val_interval"] or {}
    if not isinstance(values, dict):
        raise TigerError(f"val_interval has to be of the form {{'price': '[1,inf)'}}, not {values!r}")
    for key, value in values.items():
        if not isinstance(value, list):
            ranges[f"val_interval of {key}"] = value
        elif not all(isinstance(token, str) for token in value):
            raise TigerError(
                f"val_interval of {key} lists values that are not text: {value!r}; put tokens in quotes where YAML would "
                f"read a number, and give a column of numbers an interval like '[5,inf)'"
            )
    for key, value in ranges.items():
        if value is not None and not INTERVALS.fullmatch(str(value).strip()):
            raise TigerError(f"{key} has to be an interval like '[5,inf)', or several joined by a semicolon, not {value!r}")


def _check_columns(config):
    """Refuse malformed lists of columns and files, which RecBole would read letter by letter."""
    columns, files = config["load_col"], config["benchmark_filename"]
    for key in LISTS_OF_COLUMNS:
        value = config[key]
        if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise TigerError(f"{key} has to be a list of columns, like [item_id_list], not {value!r}")
    if columns is not None and not (
        isinstance(columns, dict) and all(names == "*" or isinstance(names, list) for names in columns.values())
    ):
        raise TigerError(f"load_col has to be of the form {{'inter': ['user_id', 'item_id']}}, not {columns!r}")
    if files is not None and not (isinstance(files, list) and len(files) == 3 and all(isinstance(x, str) for x in files)):
        raise TigerError(
            f"benchmark_filename has to be a list of the three parts training, validation and test, like "
            f"[train,valid,test], not {files!r}; if one is missing, split it off another"
        )


def _check_optimizer(config):
    betas, clip = config.get("betas"), config["clip_grad_norm"]
    pair = isinstance(betas, list | tuple) and len(betas) == 2
    if "betas" in config and not (pair and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas)):
        raise TigerError(f"betas has to be a list of two numbers from 0 up to 1, not {betas!r}")
    if clip is not None:
        if not isinstance(clip, dict) or "max_norm" not in clip or not set(clip) <= {"max_norm", "norm_type"}:
            raise TigerError(f"clip_grad_norm has to be of the form {{'max_norm': 1.0}} or nothing, not {clip!r}")
        for key, value in clip.items():
            check_number(f"clip_grad_norm, {key}", value, positive=True)


def _check_text_fields(config):
    fields = config["text_fields"]
    names = isinstance(fields, list) and all(isinstance(field, str) for field in fields)
    if not names or not fields or len(set(fields)) < len(fields):
        raise TigerError(f"text_fields has to be a list of different column names, not {fields!r}")
    if config["ITEM_ID_FIELD"] in fields:
        raise TigerError(f"text_fields has {config['ITEM_ID_FIELD']}, which is not text: name the columns with text")


def check_topk(topk):
    """Refuse invalid list lengths, before RecBole compares them."""
    lengths = topk if isinstance(topk, list) else [topk]
    if not lengths or not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in lengths):
        raise TigerError(f"topk has to be a list of positive whole numbers, like [5,10], not {topk!r}")


def check_run(config):
    """Refuse settings with which a run of any model would fail late or read a pickle.

    Raises:
        TigerError: with the setting and its allowed values.
    """
    _check_columns(config)
    _check_kinds(config, protocol_settings())
    for key in ("epochs", "eval_step"):
        _check_count(key, config[key])
    _check_text_fields(config)
    texts = ["field_separator", "seq_separator", "LIST_SUFFIX", "checkpoint_dir", "data_path", "label", "valid_metric"]
    texts += [f"{name}_FIELD" for name in ("USER_ID", "ITEM_ID", "TIME", "RATING", "LABEL", "ITEM_LIST_LENGTH")]
    for key in [*texts, *(["encoding"] if config["encoding"] is not None else [])]:
        _check_text(key, config[key])
    try:
        "".encode(config["encoding"] or "utf-8")
    except LookupError as error:
        raise TigerError(f"encoding {config['encoding']!r} is unknown to Python; try utf-8-sig or latin-1") from error
    refuse_pickles(config)
    if config["log_wandb"] and importlib.util.find_spec("wandb") is None:
        raise TigerError("log_wandb needs the package wandb, which is not installed: pip install wandb, or leave it out")
    _check_count("seed", config["seed"], least=0)
    if config["seed"] >= SEEDS:
        raise TigerError(f"seed {config['seed']} is too large: it may be 0 to {SEEDS - 1}")
    if config["model"] not in MODELS and "train_stage" in config and config["train_stage"] != "finetune":
        raise TigerError(
            f"{config['model']} with train_stage {config['train_stage']} is neither validated nor tested; "
            f"give --train_stage=finetune and the pre_model_path that it needs"
        )
    _check_count("metric_decimal_place", config["metric_decimal_place"], least=0)
    _check_intervals(config)
    check_number("learning_rate", config["learning_rate"], positive=True)
    if config["reg_weight"] is not None:  # RecBole's trainer multiplies by it for every model
        check_number("reg_weight", config["reg_weight"])
    # The label and the dataset are parts of the name of the result file.
    if Path(config["dataset"]).name != config["dataset"]:
        raise TigerError(
            f"dataset {config['dataset']!r} has to be a name, not a path: give the folder that has its folder as --data_path"
        )
    if Path(config["label"]).name != config["label"]:
        raise TigerError(f"label {config['label']!r} has to be usable in a file name: leave out its slashes")
    try:
        size = len(os.fsencode(f"{config['dataset']}-{config['label']}"))
    except UnicodeEncodeError as error:
        raise TigerError(
            f"label {config['label']!r} cannot be part of a file name in this locale: choose another, or set PYTHONUTF8=1"
        ) from error
    if size > LONGEST_NAME:
        raise TigerError(
            f"label {config['label']!r} and dataset {config['dataset']!r} are too long for a file name: shorten them to "
            f"{LONGEST_NAME} bytes in all"
        )
    _check_evaluation(config)


def _check_evaluation(config):
    """Refuse metrics, an order, modes and splits that do not fit together or leave nothing to evaluate."""
    metric, _, k = config["valid_metric"].partition("@")
    lengths = [str(length) for length in config["topk"]] if is_list_metric(metric) else [""]
    if metric.lower() not in [name.lower() for name in config["metrics"]] or k not in lengths:
        raise TigerError(
            f"valid_metric {config['valid_metric']} is not among metrics {config['metrics']} at topk {config['topk']}: "
            f"add it to them or choose another; it is written like NDCG@10, or like GAUC for a metric without lists"
        )
    order = config["eval_args"]["order"]
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and order != "TO":
        raise TigerError(f"eval_args: {config['model']} is a sequential model and needs order TO, not {order}")
    for mode in config["eval_args"]["mode"].values():
        if not MODE.fullmatch(str(mode)):
            raise TigerError(f"eval_args: unknown mode {mode!r}: it may be full, or uni100 or pop100 for 100 drawn items")
        if mode == "labeled" and config["eval_type"] != EvaluatorType.VALUE:
            raise TigerError(
                f"eval_args: mode labeled evaluates scores of labelled rows, not lists as {', '.join(config['metrics'])}: "
                f"give metrics among AUC, LogLoss, MAE and RMSE, or mode full"
            )
        if config["worker"] and mode not in ("full", "labeled"):
            raise TigerError(
                f"eval_args: with mode {mode} the items are drawn in other processes, whose draws cannot be repeated: leave "
                f"out worker"
            )
    unlisted = [name for name in config["metrics"] if not is_list_metric(name)]
    if config["exclude_history"] and unlisted:
        raise TigerError(
            f"exclude_history leaves items out of lists, but {', '.join(unlisted)} is not computed from lists: leave the "
            f"metric out"
        )
    split = config["eval_args"]["split"]
    ratios = split.get("RS", [1, 1, 1]) if isinstance(split, dict) and len(split) == 1 else None
    if not isinstance(ratios, list) or not all(isinstance(ratio, int | float) and ratio >= 0 for ratio in ratios):
        raise TigerError(
            f"eval_args: unknown split {split!r}: it may be {{LS: valid_and_test}}, or like {{RS: [0.8,0.1,0.1]}}"
        )
    if not config["benchmark_filename"] and (
        split.get("LS", "valid_and_test") != "valid_and_test" or len(ratios) != 3 or 0 in ratios
    ):
        raise TigerError(
            f"eval_args: the split {split} leaves no validation or no test set, but a run needs both; "
            f"try {{LS: valid_and_test}} or {{RS: [0.8,0.1,0.1]}}"
        )


def check_effect(config, settings):
    """Refuse settings of the user that RecBole accepts silently but that have no effect here.

    Raises:
        TigerError: with the setting and what to give instead.
    """
    label, kept = config["LABEL_FIELD"], config["val_interval"] or {}
    reads_labels = "labeled" in config["eval_args"]["mode"].values() or config["MODEL_TYPE"] == ModelType.CONTEXT
    loaded = (settings.get("load_col") or {}).get("inter", [])
    if loaded == "*":
        loaded = [name for file in interaction_files(config) if file.is_file() for name in header(file, config)]
    unread = next((key for key in ("threshold", "LABEL_FIELD") if settings.get(key) is not None), None)
    if unread is None and label in loaded and label not in kept:
        unread = f"the column {label} in load_col"
    if unread and not reads_labels:
        raise TigerError(
            f"{unread} is for models that read labels, not for {config['label']}: interactions of every label would "
            f"stay in histories and targets; filter them with --val_interval=\"{{'rating': '[4,inf)'}}\" and that column in "
            f"--load_col=..."
        )
    if config["benchmark_filename"]:
        filters = ["val_interval", "rm_dup_inter", "user_inter_num_interval", "item_inter_num_interval"]
        given = [key for key in filters if settings.get(key) is not None]
        if given:
            raise TigerError(f"{', '.join(given)} has no effect on pre-split files: filter the files, and leave it out")
    if settings.get("use_gpu") is False:
        raise TigerError("use_gpu does not choose the device: give --gpu_id= for the CPU, and leave it out")
    if settings.get("valid_metric_bigger", config["valid_metric_bigger"]) != config["valid_metric_bigger"]:
        raise TigerError(f"valid_metric_bigger follows from valid_metric, {config['valid_metric']}: leave it out")


def check_kind(key, value, kind):
    """Refuse a value that is not of the kind given in a property file.

    Args:
        kind: ``int``, ``int > 0``, ``int > 1``, ``float``, ``float > 0``, ``float < 1`` (all from 0 up), ``bool``, ``str``,
            ``dict``, ``list of`` one of these, or the allowed words, as in ``beam or exact``.

    Raises:
        TigerError: with the setting and its allowed values.
    """
    element_kind = kind.removeprefix("list of ")
    if element_kind != kind:
        if not isinstance(value, list | tuple):
            raise TigerError(f"{key} has to be a list, not {value!r}")
        for one in value:
            check_kind(key, one, element_kind)
    elif kind == "bool":
        if value not in (True, False):
            raise TigerError(f"unknown {key} {value!r}: it may be True or False")
    elif kind == "str":
        _check_text(key, value)
    elif kind == "dict":
        if not isinstance(value, dict):
            raise TigerError(f"{key} has to be a mapping, not {value!r}")
    elif kind == "int":
        _check_count(key, value, least=0)
    elif kind in ("int > 0", "int > 1"):
        _check_count(key, value, least=int(kind[-1]) + 1)
    elif kind == "float < 1":
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise TigerError(f"{key} has to be a number from 0 up to 1, not {value!r}")
    elif kind.startswith("float"):
        check_number(key, value, positive=kind == "float > 0")
    elif value not in kind.split(" or "):
        raise TigerError(f"unknown {key} {value!r}: it may be {kind}")


def _check_kinds(config, settings):
    for key, setting in settings.items():
        absent = config[key] is None and setting.default is None
        if setting.kind is not None and not absent:
            check_kind(key, config[key], setting.kind)


def check_model(config):
    """Refuse settings of a model of MODELS that cannot work, before any long work.

    Raises:
        TigerError: with the setting and its allowed values.
    """
    model = config["model"]
    _check_kinds(config, settings_of(model))
    _check_count("MAX_ITEM_LIST_LENGTH", config["MAX_ITEM_LIST_LENGTH"])
    _check_optimizer(config)
    _check_text_fields(config)
    if config["quantizer"] not in QUANTIZERS:
        raise TigerError(f"unknown quantizer {config['quantizer']!r}: it may be {' or '.join(QUANTIZERS)}")
    make_quantizer(config)
    read = quantizer_settings(config)
    if read.get("kmeans_sample", math.inf) < read.get("codebook_size", 0):
        raise TigerError(
            f"kmeans_sample {config['kmeans_sample']} is less than codebook_size {config['codebook_size']}; raise it"
        )
    check_topk(config["topk"])
    if "labeled" in config["eval_args"]["mode"].values():
        raise TigerError(
            f"eval_args: mode labeled is for models that read labels, which {model} does not: give full or uni100"
        )
    for key, default in UNREAD_BY_WINDOWS.items() if MODELS[model].trainer_class else ():
        if config[key] != default:
            raise TigerError(f"{key} has no effect on {model}, whose batches are windows of histories: leave it out")
    if "local_rank" in config:
        raise TigerError(f"{model} trains in one process on one device: leave out nproc; a sweep can run one trial per GPU")
    MODELS[model].check_settings(config)


def refuse_pickles(config):
    """Refuse settings about pickles, which a loaded checkpoint may have, and RecBole's caches in ``checkpoint_dir``.

    Unpickling can run code, and the caches ignore the settings of semantic IDs.
    """
    for key in ("dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders"):
        if config[key]:
            raise TigerError(
                f"{key} is about a pickle, which can run code, and pickles are not used here: remove the setting"
            )
    folder, model = Path(config["checkpoint_dir"]), config["model"]
    # RecBole reads the cache of the model's own dataset class if it has one, or else that of its type.
    kinds = [model] if model in MODELS else [model, "", "Sequential", "KnowledgeBased"]
    for name in [*(f"{kind}Dataset" for kind in kinds), f"for-{model}-dataloader"]:
        file = folder / f"{config['dataset']}-{name}.pth"
        if file.exists():
            raise TigerError(
                f"{file} is a pickled dataset cache, which can run code and is not read here: "
                f"remove it or choose another checkpoint_dir"
            )
