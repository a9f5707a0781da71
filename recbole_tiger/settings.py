"""Settings: property files, what the command line says, the checks before any long work, and what tells runs apart."""

import ast
import codecs
import contextlib
import difflib
import hashlib
import json
import re
import sys
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import recbole
import yaml
from recbole.config import Config
from recbole.evaluator.register import metric_information
from recbole.utils import ModelType, argument_list, get_model

from recbole_tiger.encoder import encoder_hash
from recbole_tiger.errors import TigerError, check_number
from recbole_tiger.files import content_hash
from recbole_tiger.item_text import interaction_files
from recbole_tiger.quantizers import QUANTIZERS, make_quantizer

PROPERTIES = "recbole_tiger.properties"
RECBOLE = Path(recbole.__file__).parent

# Settings that do not change what a run computes: a resumed or moved run may differ in them.
NOT_OF_THE_RUN = {
    "data_path",
    "checkpoint_dir",
    "cache_dir",
    "show_progress",
    "state",
    "resume",
    "gpu_id",
    "use_gpu",
    "device",
    "worker",
    "log_wandb",
    "wandb_project",
    "label",
    "eval_batch_size",
    "save_dataset",
    "dataset_save_path",
    "save_dataloaders",
    "dataloaders_save_path",
}

# NumPy takes seeds below this.
SEEDS = 2**32
# What RecBole's metrics of lists look at: their names carry the length.
LISTS = {"rec.topk", "rec.items"}
# What metrics look at that need a score of every item, as GAUC does.
WHOLE = {"rec.meanrank", "rec.score", "data.label"}

EVAL_ARGS = ("split", "group_by", "order", "mode")
# How RecBole ranks: all items, or so many that are drawn beside the target.
MODE = re.compile(r"full|labeled|(uni|pop)[1-9]\d*")
# RecBole's intervals, as [5,inf) or (0,1];[3,4).
_BOUND = r"\s*-?(\d+\.?\d*|inf)\s*"
INTERVALS = re.compile(rf"[\[(]{_BOUND},{_BOUND}[\])](\s*;\s*[\[(]{_BOUND},{_BOUND}[\])])*")

# Keys that RecBole reads and no file of its properties lists.
UNLISTED = {"benchmark_filename", "encoding", "token_num_threshold", "selected_features", "label"}


class Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number, as RecBole's loader does."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text, source):
    """Parse YAML without running code.

    Raises:
        TigerError: it is no YAML; ``source`` says where.
    """
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise TigerError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def _read(file):
    """What a property file holds, or {} where there is none."""
    return parse_yaml(file.read_text(encoding="utf-8"), file) or {} if file.is_file() else {}


def property_file(*place):
    """What a file of ``properties/`` holds, named by its place: ("model", "TIGER"); {} where there is none."""
    return _read(resources.files(PROPERTIES).joinpath(*place[:-1], f"{place[-1]}.yaml"))


def property_files(kind):
    """Names of the files in a folder of ``properties/``."""
    return sorted(file.name.removesuffix(".yaml") for file in (resources.files(PROPERTIES) / kind).iterdir())


def protocol():
    """The field's protocol, which every model of a comparison follows."""
    return property_file("protocol")


def recipes():
    """Names of the recipes: a model with settings of its own and a row of its own in every table."""
    return property_files("recipe")


@cache
def recbole_models():
    """Names of RecBole's models, read off its modules without importing those that need further packages."""
    names = set()
    for file in RECBOLE.joinpath("model").glob("*_recommender/*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names |= {node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name.lower() == file.stem}
    return sorted(names)


def model_of(name):
    """The RecBole model behind a name: a recipe's ``model``, or the name itself.

    Raises:
        TigerError: there is no such model.
    """
    if name in recipes():
        return property_file("recipe", name)["model"]
    models = [*recbole_models(), "TIGER"]
    if name not in models:
        raise TigerError(f"unknown model {name!r}{nearest(name, [*models, *recipes()])}")
    if name in ("XGBoost", "LightGBM"):
        raise TigerError(f"{name} is not trained in epochs, which all runs here are: choose another model")
    try:
        get_model(name)
    except ModuleNotFoundError as error:
        raise TigerError(f"model {name} needs the package {error.name}: pip install {error.name}") from error
    return name


def nearest(word, words):
    """'; did you mean ...?' where a known word is near."""
    near = [w for w in words if w.lower() == word.lower()] or difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def known_settings():
    """Every key that RecBole or this package reads."""
    known = set(UNLISTED)
    for name in ("general", "training", "evaluation", "dataset"):
        known |= set(getattr(argument_list, f"{name}_arguments"))
    for file in RECBOLE.joinpath("properties").rglob("*.yaml"):
        if not file.name.endswith("url.yaml"):
            known |= set(_read(file))
    known |= set(property_file("model", "TIGER")) | set(protocol())
    return known


def _glued(value):
    """Keys of mappings within a value that YAML made of ``key:value``, without the space after the colon."""
    if isinstance(value, list):
        return [key for one in value for key in _glued(one)]
    if not isinstance(value, dict):
        return []
    own = [key for key, inner in value.items() if inner is None and isinstance(key, str) and ":" in key]
    return own + [key for inner in value.values() for key in _glued(inner)]


def check_keys(settings, source):
    """Refuse a setting that nothing reads, and a mapping whose colon is no colon to YAML.

    Raises:
        TigerError: with the nearest known one.
    """
    for key, value in settings.items():
        if glued := _glued(value):
            raise TigerError(f"{key} in {source}: {glued[0]!r} lacks the space after its colon, which YAML wants")
        if key in ("model", "dataset"):
            raise TigerError(f"{key} in {source} is no setting: it is an argument of a command's own, see its --help")
        if key not in known_settings():
            raise TigerError(f"unknown setting {key!r} in {source}{nearest(key, sorted(known_settings()))}")


def parse_arguments(arguments):
    """``--key=value`` arguments -> settings; values are safe YAML, never evaluated.

    Raises:
        TigerError: an argument is of another form, is given twice, or nothing reads it.
    """
    settings = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise TigerError(f"cannot read the argument {argument!r}: settings are given as --key=value")
        if key in settings:
            raise TigerError(f"setting {key!r} is given twice on the command line")
        try:
            settings[key] = yaml.load(value, Loader=Loader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError:
            settings[key] = value
    check_keys(settings, "the command line")
    return settings


def read_yaml(file):
    """The mapping in a YAML file of the user's; {} where it is empty.

    Raises:
        TigerError: it does not exist or holds something else.
    """
    if not Path(file).is_file():
        raise TigerError(f"config file {file} does not exist")
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TigerError(f"config file {file} is not UTF-8 text ({error}); save it as UTF-8") from error
    content = parse_yaml(text, file)
    if content is not None and not isinstance(content, dict):
        raise TigerError(f"config file {file} has to hold key: value lines")
    return content or {}


def read_config_files(files):
    """Merge the user's YAML files, later ones over earlier ones."""
    settings = {}
    for file in files:
        content = read_yaml(file)
        check_keys(content, file)
        settings.update(content)
    return settings


def plugin_layer(dataset):
    """What lies over RecBole's properties and under the user's settings, for TIGER."""
    return {**protocol(), **property_file("model", "TIGER"), **property_file("dataset", dataset)}


def _read_by_all():
    """Settings that every model reads."""
    files = [RECBOLE / "properties" / file for file in ("overall.yaml", "dataset/sample.yaml")]
    return {"text_fields", "resume"} | set(protocol()) | {key for file in files for key in _read(file)}


@cache
def _of_tiger_alone(model):
    """Settings of TIGER that ``model`` does not read: to it they make no other run."""
    return set(property_file("model", "TIGER")) - _read_by_all() - set(_read(RECBOLE / f"properties/model/{model}.yaml"))


@cache
def _of_other_models():
    """Settings of RecBole's models that TIGER does not read."""
    settings = {key for file in RECBOLE.glob("properties/model/*.yaml") for key in _read(file)}
    return settings - _read_by_all() - set(property_file("model", "TIGER"))


def unread(name, user_settings):
    """Those of the user's settings that do nothing for ``name``, a RecBole model or a recipe.

    To TIGER those of RecBole's models; to these those of TIGER.
    """
    model = model_of(name)
    others = _of_other_models() if model == "TIGER" else _of_tiger_alone(model)
    return sorted(set(user_settings) & others - NOT_OF_THE_RUN)


def make_config(name, dataset, user_settings):
    """RecBole's Config for one run.

    Args:
        name: a RecBole model or a recipe.
        user_settings: what the user said; lies over everything else.

    Raises:
        TigerError: a setting does not fit.
    """
    model = model_of(name)
    layers = {**protocol(), **property_file("dataset", dataset)}
    if model != "TIGER":
        # The keys of the item text serve to load the same columns for every model.
        layers["text_fields"] = layers.get("text_fields", property_file("model", "TIGER")["text_fields"])
    layers.update(property_file("recipe", name))
    layers.update(user_settings)
    if isinstance(layers["eval_args"], dict):
        if foreign := sorted(map(str, set(layers["eval_args"]) - set(EVAL_ARGS))):
            raise TigerError(f"eval_args has no {', '.join(foreign)}: it may have {', '.join(EVAL_ARGS)}")
        layers["eval_args"] = {**protocol()["eval_args"], **layers["eval_args"]}
    layers.setdefault("label", name)
    if "gpu_id" in layers and layers["gpu_id"] is None:
        layers["gpu_id"] = ""  # --gpu_id= is nothing in YAML, which RecBole would read as a GPU called None
    left_out = {"model", "dataset"} | (set() if model == "TIGER" else _of_tiger_alone(model))
    layers = {key: value for key, value in layers.items() if key not in left_out}
    loss = {**_read(RECBOLE / f"properties/model/{model}.yaml"), **layers}.get("loss_type")
    if "train_neg_sample_args" not in layers and loss == "CE":
        layers["train_neg_sample_args"] = None  # cross-entropy wants no negatives
    with tempfile.TemporaryDirectory() as folder, plain_argv():
        file = Path(folder) / "settings.yaml"
        file.write_text(yaml.safe_dump(layers), encoding="utf-8")
        try:
            config = Config(model=model, dataset=dataset, config_file_list=[str(file)])
        except TigerError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError, AssertionError) as error:
            raise TigerError(f"{model}: {error}") from error
    check_run(config)
    return config


@contextlib.contextmanager
def plain_argv():
    """Hide the command line from RecBole's Config, which would read and judge it by itself."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv


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
            quoted = f"'\"{config[key] or '|'}\"'"
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


def check_run(config):
    """Refuse settings with which a run of any model would fail after its data are made or its epochs are over, or unpickle.

    Raises:
        TigerError: with the setting and what it may be.
    """
    _check_counts(config, ["epochs", "eval_step"])
    _check_text_fields(config)
    texts = ["field_separator", "seq_separator", "LIST_SUFFIX", "checkpoint_dir", "data_path", "label", "valid_metric"]
    _check_texts(config, [*texts, *(["encoding"] if config["encoding"] is not None else [])])
    try:
        codecs.lookup(config["encoding"] or "utf-8")
    except LookupError as error:
        raise TigerError(f"encoding {config['encoding']!r} is none that Python knows; try utf-8-sig or latin-1") from error
    refuse_pickles(config)
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
    check_number("learning_rate", config["learning_rate"], positive=True)
    if config["valid_users"] is not None:
        _check_counts(config, ["valid_users"])
    minutes = config["max_minutes"]
    if minutes is not None:
        check_number("max_minutes", minutes, positive=True)
    # The label is part of the name of the result file.
    if Path(config["label"]).name != config["label"]:
        raise TigerError(f"label {config['label']!r} has to be usable in a file name: leave out its slashes")
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


def data_files(config):
    """The dataset's atomic files that a run reads."""
    kinds = ["item", *(kind for kind in config["load_col"] or [] if kind not in ("inter", "item"))]
    others = [Path(config["data_path"]) / f"{config['dataset']}.{kind}" for kind in kinds]
    return [file for file in [*interaction_files(config), *others] if file.is_file()]


def data_hash(config):
    """Hash of the dataset's files."""
    digest = hashlib.sha256()
    for file in data_files(config):
        digest.update(content_hash(file))
    return digest.hexdigest()[:16]


def run_settings(config):
    """The settings that decide what a run computes, as plain JSON values."""
    settings = {key: value for key, value in config.final_config_dict.items() if key not in NOT_OF_THE_RUN}
    return json.loads(json.dumps(settings, default=str, sort_keys=True))


def own_inputs(config):
    """Hashes of what a run of TIGER reads beside the dataset: the user's embeddings, IDs, and folder of an encoder."""
    if config["model"] != "TIGER":
        return []
    files = [Path(config[name]) for name in ("item_embeddings", "semantic_ids") if config[name]]
    encoder = [encoder_hash(config["text_encoder"])] if Path(str(config["text_encoder"])).is_dir() else []
    return [*(content_hash(file).hex() for file in files if file.is_file()), *encoder]


def run_inputs(config):
    """What decides what a run computes, as result files have it: settings and hashes of files."""
    return {"settings": run_settings(config), "data_hash": data_hash(config), "inputs": own_inputs(config)}


def run_key(config):
    """Hash of the settings and the data of a run."""
    of_run = run_inputs(config)
    text = json.dumps([of_run["settings"], of_run["data_hash"], *of_run["inputs"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
