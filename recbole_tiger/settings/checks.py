"""The checks of settings, before any long work."""

import importlib.util
import os
import re
from pathlib import Path

from recbole.evaluator.register import metric_information
from recbole.utils import ModelType

from recbole_tiger.catalogue.quantizers import QUANTIZERS, make_quantizer
from recbole_tiger.errors import TigerError, check_number

# What is given where a text is missing.
EXAMPLES = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
# Settings that RecBole takes for lists without looking.
LISTS_OF_COLUMNS = [f"alias_of_{kind}_id" for kind in ("user", "item", "entity", "relation")]
LISTS_OF_COLUMNS += ["numerical_features", "normalize_field", "selected_features"]
# NumPy takes seeds below this.
SEEDS = 2**32
# What RecBole's metrics of lists look at: their names carry the length.
LISTS = {"rec.topk", "rec.items"}
# What metrics look at that need a score of every item, as GAUC does.
WHOLE = {"rec.meanrank", "rec.score", "data.label"}
# How RecBole ranks: all items, or so many that are drawn beside the target.
MODE = re.compile(r"full|labeled|(uni|pop)[1-9]\d*")
# RecBole's intervals, as [5,inf) or (0,1];[3,4).
_BOUND = r"\s*-?(\d+\.?\d*|inf)\s*"
INTERVALS = re.compile(rf"[\[(]{_BOUND},{_BOUND}[\])](\s*;\s*[\[(]{_BOUND},{_BOUND}[\])])*")


def _check_counts(config, keys):
    for key in keys:
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < 1:
            raise TigerError(f"{key} has to be a positive whole number, not {config[key]!r}")


def _check_whole(key, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TigerError(f"{key} has to be a whole number from 0 up, not {value!r}")


def _check_texts(config, keys):
    for key in keys:
        if not isinstance(config[key], str) or not config[key]:
            quoted = f"'\"{config[key] or EXAMPLES.get(key, '|')}\"'"
            raise TigerError(f"{key} has to be text, not {config[key]!r}: quote it for YAML, as in --{key}={quoted}")


def _check_intervals(config):
    """Refuse what RecBole passes over as no interval, and then filters by nothing."""
    ranges = {key: config[key] for key in ("user_inter_num_interval", "item_inter_num_interval")}
    values = config["val_interval"] or {}
    if not isinstance(values, dict):
        raise TigerError(f"val_interval has to be of the form {{'price': '[1,inf)'}}, not {values!r}")
    # Of a column of tokens it is a list of them.
    ranges.update({f"val_interval of {key}": value for key, value in values.items() if not isinstance(value, list)})
    for key, value in ranges.items():
        if value is not None and not INTERVALS.fullmatch(str(value).strip()):
            raise TigerError(f"{key} has to be an interval as '[5,inf)', or several joined by a semicolon, not {value!r}")


def _check_columns(config):
    """Refuse what names no columns and no files, before RecBole looks for them letter by letter."""
    columns, files = config["load_col"], config["benchmark_filename"]
    for key in LISTS_OF_COLUMNS:
        value = config[key]
        if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise TigerError(f"{key} has to be a list of columns, as [item_id_list], not {value!r}")
    if columns is not None and not (
        isinstance(columns, dict) and all(names == "*" or isinstance(names, list) for names in columns.values())
    ):
        raise TigerError(f"load_col has to be of the form {{'inter': ['user_id', 'item_id']}}, not {columns!r}")
    if files is not None and not (isinstance(files, list) and len(files) == 3 and all(isinstance(x, str) for x in files)):
        raise TigerError(
            f"benchmark_filename has to be a list of three, of training, validation and test, as [train,valid,test], not "
            f"{files!r}; where one is missing, cut it off another"
        )


def _check_optimizer(config):
    learners = ("adam", "adamw", "sgd", "adagrad", "rmsprop")
    if str(config["learner"]).lower() not in learners:
        raise TigerError(f"unknown learner {config['learner']!r}: it may be {' or '.join(learners)}")
    betas, clip = config["betas"], config["clip_grad_norm"]
    pair = isinstance(betas, list | tuple) and len(betas) == 2
    if not pair or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
        raise TigerError(f"betas has to be a list of two numbers from 0 up to 1, not {betas!r}")
    if clip is not None:
        if not isinstance(clip, dict) or "max_norm" not in clip or not set(clip) <= {"max_norm", "norm_type"}:
            raise TigerError(f"clip_grad_norm has to be of the form {{'max_norm': 1.0}} or nothing, not {clip!r}")
        for key, value in clip.items():
            check_number(f"clip_grad_norm, {key}", value, positive=True)
    for key in ("weight_decay", "initializer_range"):
        check_number(key, config[key])


def _check_text_fields(config):
    fields = config["text_fields"]
    if not isinstance(fields, list) or not fields or len(set(map(str, fields))) < len(fields):
        raise TigerError(f"text_fields has to be a list of different column names, not {fields!r}")
    if config["ITEM_ID_FIELD"] in fields:
        raise TigerError(f"text_fields has {config['ITEM_ID_FIELD']}, which holds no text: name the columns with text")


def check_topk(topk):
    """Refuse lengths of lists that are none, before RecBole compares them."""
    lengths = topk if isinstance(topk, list) else [topk]
    if not lengths or not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in lengths):
        raise TigerError(f"topk has to be a list of positive whole numbers, as [5,10], not {topk!r}")


def check_run(config):
    """Refuse settings with which a run of any model would fail after its data are made or its epochs are over, or unpickle.

    Raises:
        TigerError: with the setting and what it may be.
    """
    _check_counts(config, ["epochs", "eval_step"])
    _check_text_fields(config)
    texts = ["field_separator", "seq_separator", "LIST_SUFFIX", "checkpoint_dir", "data_path", "label", "valid_metric"]
    texts += [f"{name}_FIELD" for name in ("USER_ID", "ITEM_ID", "TIME", "RATING", "LABEL", "ITEM_LIST_LENGTH")]
    _check_texts(config, [*texts, *(["encoding"] if config["encoding"] is not None else [])])
    try:
        "".encode(config["encoding"] or "utf-8")
    except LookupError as error:
        raise TigerError(f"encoding {config['encoding']!r} is none that Python knows; try utf-8-sig or latin-1") from error
    refuse_pickles(config)
    if config["log_wandb"] and importlib.util.find_spec("wandb") is None:
        raise TigerError("log_wandb needs the package wandb, which is not installed: pip install wandb, or leave it out")
    _check_whole("seed", config["seed"])
    if config["seed"] >= SEEDS:
        raise TigerError(f"seed {config['seed']} is too large: it may be 0 to {SEEDS - 1}")
    _check_whole("stopping_step", config["stopping_step"])
    if "train_stage" in config and config["train_stage"] != "finetune":
        raise TigerError(
            f"{config['model']} with train_stage {config['train_stage']} is neither validated nor tested; "
            f"give --train_stage=finetune and what pre_model_path it asks for"
        )
    _check_whole("metric_decimal_place", config["metric_decimal_place"])
    _check_intervals(config)
    _check_columns(config)
    check_number("learning_rate", config["learning_rate"], positive=True)
    if config["valid_users"] is not None:
        _check_counts(config, ["valid_users"])
    minutes = config["max_minutes"]
    if minutes is not None:
        check_number("max_minutes", minutes, positive=True)
    # The label is part of the name of the result file.
    if Path(config["label"]).name != config["label"]:
        raise TigerError(f"label {config['label']!r} has to be usable in a file name: leave out its slashes")
    try:
        os.fsencode(config["label"])
    except UnicodeEncodeError as error:
        raise TigerError(
            f"label {config['label']!r} cannot be part of a file name in this locale: choose another, or set PYTHONUTF8=1"
        ) from error
    metric, _, k = config["valid_metric"].partition("@")
    of_lists = not LISTS.isdisjoint(metric_information.get(metric.lower(), ()))
    lengths = [str(length) for length in config["topk"]] if of_lists else [""]
    if metric.lower() not in [name.lower() for name in config["metrics"]] or k not in lengths:
        raise TigerError(
            f"valid_metric {config['valid_metric']} is not among metrics {config['metrics']} at topk {config['topk']}: "
            f"add it to them or choose another; it is written as NDCG@10, or as GAUC where a metric is not of lists"
        )
    order = config["eval_args"]["order"]
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and order != "TO":
        raise TigerError(f"eval_args: {config['model']} is a model of sequences, whose order has to be TO, not {order}")
    for mode in config["eval_args"]["mode"].values():
        if not MODE.fullmatch(str(mode)):
            raise TigerError(f"eval_args: unknown mode {mode!r}: it may be full, or uni100 or pop100 for 100 drawn items")
    split = config["eval_args"]["split"]
    ratios = split.get("RS", [1, 1, 1]) if isinstance(split, dict) else None
    if not isinstance(ratios, list) or not all(isinstance(ratio, int | float) and ratio >= 0 for ratio in ratios):
        raise TigerError(
            f"eval_args: the split {split!r} is none; it may be {{LS: valid_and_test}} or as {{RS: [0.8,0.1,0.1]}}"
        )
    if not config["benchmark_filename"] and (
        split.get("LS", "valid_and_test") != "valid_and_test" or len(ratios) != 3 or 0 in ratios
    ):
        raise TigerError(
            f"eval_args: the split {split} leaves no validation or no test set, and a run needs both; "
            f"try {{LS: valid_and_test}} or {{RS: [0.8,0.1,0.1]}}"
        )


def check_effect(config, settings):
    """Refuse settings of the user's that RecBole takes without a word and that do nothing here.

    Raises:
        TigerError: with the setting and what to give in its place.
    """
    label, kept = config["LABEL_FIELD"], config["val_interval"] or {}
    reads_labels = "labeled" in config["eval_args"]["mode"].values() or config["MODEL_TYPE"] == ModelType.CONTEXT
    loaded = (settings.get("load_col") or {}).get("inter", [])
    unread = next((key for key in ("threshold", "LABEL_FIELD") if settings.get(key) is not None), None)
    if unread is None and label in loaded and label not in kept:
        unread = f"the column {label} in load_col"
    if unread and not reads_labels:
        raise TigerError(
            f"{unread} is for models of labels, which {config['label']} is not: interactions of every label would stay in "
            f"histories and targets; leave the unwanted out by --val_interval=\"{{'rating': '[4,inf)'}}\", with that column "
            f"in --load_col=..."
        )
    if config["benchmark_filename"]:
        filters = ["val_interval", "rm_dup_inter", "user_inter_num_interval", "item_inter_num_interval"]
        given = [key for key in filters if settings.get(key) is not None]
        if given:
            raise TigerError(f"{', '.join(given)} does nothing with pre-split files: filter them, and leave it out")
    if settings.get("use_gpu") is False:
        raise TigerError("use_gpu does not choose the device: give --gpu_id= for the CPU, and leave it out")
    if settings.get("valid_metric_bigger", config["valid_metric_bigger"]) != config["valid_metric_bigger"]:
        raise TigerError(f"valid_metric_bigger follows from valid_metric, {config['valid_metric']}: leave it out")


def check_tiger(config):
    """Refuse settings of TIGER that cannot work, before any long work.

    Raises:
        TigerError: with the setting and what it may be.
    """
    choices = {
        "quantizer": tuple(QUANTIZERS),
        "scoring": ("beam", "exact"),
        "encoder_tokens": ("code", "item"),
        "bidirectional_encoder": (True, False),
        "encoder_text": (True, False),
        "text_initializer": (True, False),
        "trie_softmax": (True, False),
        "prefix_embedding": (True, False),
        "history_bias": (True, False),
        "enable_amp": (True, False),
    }
    for key, allowed in choices.items():
        if config[key] not in allowed:
            raise TigerError(f"unknown {key} {config[key]!r}: it may be {' or '.join(map(str, allowed))}")
    if config["prefix_embedding"] and not config["trie_softmax"]:
        raise TigerError("prefix_embedding needs --trie_softmax=True: only prefixes that the trie holds have an embedding")
    if config["history_bias"] and not config["trie_softmax"]:
        raise TigerError("history_bias needs --trie_softmax=True: it is a logit of the nodes of the trie")
    counts = ["codebook_size", "codebook_depth", "beam_size", "MAX_ITEM_LIST_LENGTH", "train_batch_size", "epochs"]
    counts += ["hidden_size", "n_heads", "head_size", "inner_size", "n_layers", "n_decoder_layers", "rq_vae_latent_size"]
    counts += ["rq_vae_steps", "rq_vae_batch_size", "kmeans_iterations", "kmeans_sample"]
    _check_counts(config, counts)
    if config["eval_batch_size"] is not None:
        _check_counts(config, ["eval_batch_size"])
    if config["kmeans_sample"] < config["codebook_size"]:
        raise TigerError(
            f"kmeans_sample {config['kmeans_sample']} is less than codebook_size {config['codebook_size']}; raise it"
        )
    _check_whole("n_user_tokens", config["n_user_tokens"])
    make_quantizer(config)
    _check_optimizer(config)
    given = [key for key in ("item_embeddings", "semantic_ids") if config[key] is not None]
    _check_texts(config, ["cache_dir", "text_encoder", *given])
    probabilities = ["hidden_dropout_prob", "attn_dropout_prob", "code_dropout_prob", "label_smoothing"]
    for key in [*probabilities, "warmup_ratio", "ema_decay"]:
        if not isinstance(config[key], int | float) or not 0 <= config[key] < 1:
            raise TigerError(f"{key} has to be a number from 0 up to 1, not {config[key]!r}")
    _check_text_fields(config)
    if not config["topk"]:
        raise TigerError("topk is empty: give the lengths of the lists that are evaluated, as --topk=[5,10]")
    if config["beam_size"] < max(config["topk"]):
        raise TigerError(
            f"beam_size {config['beam_size']} is less than the largest topk {max(config['topk'])}: "
            f"a shorter list would be filled with arbitrary items; raise beam_size"
        )
    whole = [metric for metric in config["metrics"] if WHOLE.intersection(metric_information.get(metric.lower(), ()))]
    if whole and config["scoring"] == "beam" and "full" in config["eval_args"]["mode"].values():
        raise TigerError(
            f"metrics: {', '.join(whole)} ranks the whole catalogue, and a beam finds {config['beam_size']} items of it: "
            f"give --scoring=exact, or leave the metric out"
        )
    if "labeled" in config["eval_args"]["mode"].values():
        raise TigerError("eval_args: mode labeled is for models of labels, which TIGER is not: give full, or uni100")
    if "local_rank" in config:
        raise TigerError("TIGER trains in one process, on one device: leave out nproc; a sweep runs a trial a GPU")


def refuse_pickles(config):
    """Refuse settings that name a pickle, as those of a loaded checkpoint may, and RecBole's caches in ``checkpoint_dir``.

    Unpickling runs code, and the caches ignore TIGER's settings.
    """
    for key in ("dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders"):
        if config[key]:
            raise TigerError(f"{key} is about a pickle, which can run code: none is used here; remove the setting")
    folder, model = Path(config["checkpoint_dir"]), config["model"]
    # RecBole reads that of the model's own kind of dataset, where it has one, or else that of the kind of its type.
    kinds = [model] if model == "TIGER" else [model, "", "Sequential", "KnowledgeBased"]
    for name in [*(f"{kind}Dataset" for kind in kinds), f"for-{model}-dataloader"]:
        file = folder / f"{config['dataset']}-{name}.pth"
        if file.exists():
            raise TigerError(
                f"{file} is a pickled dataset cache, which can run code: none is read here; "
                f"remove it or choose another checkpoint_dir"
            )
