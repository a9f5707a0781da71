"""Settings: property files, what the command line says, and what tells runs apart."""

import ast
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
from recbole.utils import argument_list, get_model

from recbole_tiger.checks import check_run
from recbole_tiger.encoder import encoder_hash
from recbole_tiger.errors import TigerError
from recbole_tiger.files import content_hash
from recbole_tiger.item_text import interaction_files

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

EVAL_ARGS = ("split", "group_by", "order", "mode")
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
