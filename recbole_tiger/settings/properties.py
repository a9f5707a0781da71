"""The property files: RecBole's and this package's, the models and settings that they name; read without PyTorch."""

import ast
import difflib
import re
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from recbole_tiger.errors import TigerError

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
    "input_hashes",  # these are told beside the settings
}


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


@cache
def recbole_folder():
    """The folder of the installed RecBole."""
    import recbole

    return Path(recbole.__file__).parent


def property_file(*place):
    """What a file of ``properties/`` holds, named by its place: ("model", "TIGER"); {} where there is none."""
    return read_file(resources.files(PROPERTIES).joinpath(*place[:-1], f"{place[-1]}.yaml"))


def is_sample(dataset, data_path):
    """Whether a dataset is the ml-100k within RecBole, and none of one's own with that name under ``data_path``."""
    return dataset == "ml-100k" and not (Path(str(data_path)) / dataset).is_dir()


def dataset_properties(kind, dataset, settings):
    """What ``properties/<kind>`` holds for a dataset that comes along, as :func:`property_file`; {} for one of one's own."""
    return property_file(kind, dataset) if is_sample(dataset, settings.get("data_path", "dataset/")) else {}


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
    models = [*recbole_models(), "TIGER"]
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
def known_settings():
    """Every key that RecBole or this package reads."""
    known = set(UNLISTED) | {name for names in recbole_arguments().values() for name in names}
    for file in recbole_folder().glob("properties/**/*.yaml"):
        if not file.name.endswith("url.yaml"):
            known |= set(read_file(file))
    known |= set(property_file("model", "TIGER")) | set(protocol())
    return known


def _read_by_all():
    """Settings that every model reads."""
    files = [recbole_folder() / "properties" / file for file in ("overall.yaml", "dataset/sample.yaml")]
    return {"text_fields", "resume"} | set(protocol()) | {key for file in files for key in read_file(file)}


@cache
def own_to_tiger(model):
    """Settings of TIGER that ``model`` does not read: to it they make no other run."""
    of_model = read_file(recbole_folder() / f"properties/model/{model}.yaml")
    return set(property_file("model", "TIGER")) - _read_by_all() - set(of_model)


@cache
def _of_other_models():
    """Settings of RecBole's models that TIGER does not read."""
    settings = {key for file in recbole_folder().glob("properties/model/*.yaml") for key in read_file(file)}
    return settings - _read_by_all() - set(property_file("model", "TIGER"))


def unread(name, user_settings):
    """Those of the user's settings that do nothing for ``name``, a RecBole model or a recipe.

    To TIGER those of RecBole's models; to these those of TIGER.
    """
    model = model_of(name)
    others = _of_other_models() if model == "TIGER" else own_to_tiger(model)
    return sorted(set(user_settings) & others - NOT_OF_THE_RUN)
