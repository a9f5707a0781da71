"""The property files: RecBole's and this package's, the models and settings that they name; read without PyTorch."""

import ast
import difflib
import itertools
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from recbole_tiger.catalogue.quantizers import QUANTIZERS
from recbole_tiger.errors import TigerError
from recbole_tiger.model import MODELS

PROPERTIES = "recbole_tiger.properties"

# Keys that RecBole reads and no file of its properties lists.
UNLISTED = {"benchmark_filename", "encoding", "token_num_threshold", "selected_features", "label"}

# Settings of RecBole before 1.1, and those in their place.
OLDER = {
    **dict.fromkeys(
        ("neg_sampling", "training_neg_sample_num", "training_neg_sample_distribution"), "train_neg_sample_args"
    ),
    **dict.fromkeys(("eval_setting", "group_by_user", "split_ratio", "leave_one_num", "real_time_process"), "eval_args"),
    **dict.fromkeys(("min_user_inter_num", "max_user_inter_num"), "user_inter_num_interval"),
    **dict.fromkeys(("min_item_inter_num", "max_item_inter_num"), "item_inter_num_interval"),
    **dict.fromkeys(("lowest_val", "highest_val", "equal_val", "not_equal_val"), "val_interval"),
    "fields_in_same_space": "alias_of_item_id",
}

# Settings that do not change what a run computes: a resumed or moved run may differ in them.
NOT_IN_RUN_KEY = {
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
    "input_hashes",  # these are told beside the settings
}

# Settings that came after runs had been made, and the values at which a run is what it was without them.
ADDED_LATER = {"exclude_history": False}


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


def read_file(file):
    """What a property file holds, or {} where there is none."""
    return parse_yaml(file.read_text(encoding="utf-8"), file) or {} if file.is_file() else {}


# A line of a property file: the setting, its default, what it may be, and what it says.
LINE = re.compile(r"^(?P<key>\w+):.*?\s# \((?P<kind>[^()]+)\) (?P<text>.*)$")


@dataclass(frozen=True)
class Setting:
    """What a property file says of a setting.

    Attributes:
        default: its value where nobody gives another.
        kind: what it may be, as :func:`~recbole_tiger.settings.checks.check_kind` reads it, or None.
        text: what it is for.
    """

    default: object
    kind: str | None
    text: str


def described(file):
    """The settings of a property file by name, each a :class:`Setting`."""
    lines = [LINE.match(line) for line in file.read_text(encoding="utf-8").splitlines()]
    said = {line["key"]: line for line in lines if line}
    return {
        key: Setting(value, *((said[key]["kind"], said[key]["text"]) if key in said else (None, "")))
        for key, value in read_file(file).items()
    }


@cache
def recbole_folder():
    """The folder of the installed RecBole."""
    import recbole

    return Path(recbole.__file__).parent


def _place(*place):
    return resources.files(PROPERTIES).joinpath(*place[:-1], f"{place[-1]}.yaml")


def property_file(*place):
    """What a file of ``properties/`` holds, named by its place, as ("recipe", "TIGER-text"); {} where there is none."""
    return read_file(_place(*place))


@cache
def _described(*place):
    return described(_place(*place))


def _registered(settings):
    """Settings that came with a class from outside of this package: a dict or a YAML file."""
    if isinstance(settings, dict):
        return {key: Setting(value, None, "") for key, value in settings.items()}
    return described(settings)


def catalogue_settings():
    """The settings of item text and semantic IDs, which every model of MODELS has, by name, each a :class:`Setting`."""
    found = dict(_described("catalogue"))
    for settings in QUANTIZERS.settings.values():
        found.update(_registered(settings))
    return found


def settings_of(model):
    """Every setting of a model of MODELS but RecBole's own, by name, each a :class:`Setting`.

    Those of the catalogue lie beneath those of the model, and those of a model beneath those of its subclass.
    """
    found = catalogue_settings()
    if model not in MODELS.settings:
        return {**found, **_described("model", model)}
    names = [cls.__name__ for cls in reversed(MODELS[model].__mro__)]
    for name in names:
        if name in MODELS.settings:
            found.update(_registered(MODELS.settings[name]))
        elif name in MODELS:
            found.update(_described("model", name))
    return found


def defaults_of(model):
    """Every setting of a model of MODELS but RecBole's own, by name, and its default."""
    return {key: setting.default for key, setting in settings_of(model).items()}


def is_sample(dataset, data_path):
    """Whether a dataset is the ml-100k within RecBole, and none of one's own with that name under ``data_path``."""
    return dataset == "ml-100k" and not (Path(str(data_path)) / dataset).is_dir()


def dataset_properties(kind, dataset, settings):
    """What ``properties/<kind>`` holds for a dataset that comes along, as :func:`property_file`; {} for one of one's own."""
    return property_file(kind, dataset) if is_sample(dataset, settings.get("data_path", "dataset/")) else {}


def summary_of(*place):
    """The first sentence of the comment that begins a file of ``properties/``; "" where there is no such file."""
    file = _place(*place)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    comment = " ".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("# "), lines))
    return re.match(r".*?\.(?= |$)|.*", comment).group()


def property_files(kind):
    """Names of the files in a folder of ``properties/``."""
    return sorted(file.name.removesuffix(".yaml") for file in (resources.files(PROPERTIES) / kind).iterdir())


def protocol():
    """The field's protocol, which every model of a comparison follows."""
    return property_file("protocol")


def protocol_settings():
    """The same by name, each a :class:`Setting`."""
    return _described("protocol")


def recipes():
    """Names of the recipes: a model with settings of its own and a row of its own in every table."""
    return property_files("recipe")


@cache
def recbole_models():
    """Names of RecBole's models, read off its modules without importing them."""
    names = set()
    for file in recbole_folder().glob("model/*_recommender/*.py"):
        classes = re.findall(r"^class (\w+)\b", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        names |= {name for name in classes if name.lower() == file.stem}
    return sorted(names)


def model_of(name):
    """The RecBole model behind a name: a recipe's ``model``, or the name itself.

    Raises:
        TigerError: there is no such model.
    """
    if name in recipes():
        return property_file("recipe", name)["model"]
    models = [*recbole_models(), *MODELS]
    if name not in models:
        raise TigerError(f"unknown model {name!r}{nearest(name, [*models, *recipes()])}")
    if name in ("XGBoost", "LightGBM"):
        raise TigerError(f"{name} is not trained in epochs, which all runs here are: choose another model")
    return name


def nearest(word, words):
    """'; did you mean ...?' where a known word is near."""
    near = [w for w in words if w.lower() == word.lower()] or difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def recbole_arguments():
    """Settings that RecBole knows, by kind (``general_arguments`` and so on), read off its module without importing it."""
    tree = ast.parse((recbole_folder() / "utils/argument_list.py").read_text(encoding="utf-8"))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)}


@cache
def _recbole_settings():
    known = UNLISTED | {name for names in recbole_arguments().values() for name in names} | set(protocol())
    for file in recbole_folder().glob("properties/**/*.yaml"):
        if not file.name.endswith("url.yaml"):
            known |= set(read_file(file))
    return known


def _package_settings():
    return {key for model in MODELS for key in settings_of(model)}


def known_settings():
    """Every key that RecBole or this package reads."""
    return _recbole_settings() | _package_settings()


@cache
def _read_by_all():
    """Settings that every model reads."""
    files = [recbole_folder() / "properties" / file for file in ("overall.yaml", "dataset/sample.yaml")]
    return {"text_fields", "resume"} | set(protocol()) | {key for file in files for key in read_file(file)}


def _read_by(model):
    """Settings that a model reads."""
    own = settings_of(model) if model in MODELS else read_file(recbole_folder() / f"properties/model/{model}.yaml")
    return _read_by_all() | set(own)


def package_settings_unread_by(model):
    """Settings of this package that ``model`` does not read: to it they make no other run."""
    return _package_settings() - _read_by(model)


@cache
def _recbole_model_settings():
    return {key for file in recbole_folder().glob("properties/model/*.yaml") for key in read_file(file)}


def unread(name, user_settings):
    """Those of the user's settings that are of other models than ``name``, a model or a recipe, and do nothing for it."""
    of_models = _package_settings() | _recbole_model_settings()
    return sorted(set(user_settings) & of_models - _read_by(model_of(name)) - NOT_IN_RUN_KEY)
