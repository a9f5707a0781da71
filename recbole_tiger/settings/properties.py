"""Property files of RecBole and of this package, with their models and settings; read without importing PyTorch."""

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

# Settings that RecBole reads but does not list in its property files.
UNLISTED = {"benchmark_filename", "encoding", "token_num_threshold", "selected_features", "label"}

# Settings of RecBole before 1.1, and the settings that replace them.
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

# Settings that do not affect the result of a run: a resumed or moved run may differ in them.
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
    "input_hashes",  # result files have these beside the settings
}

# Settings added after runs had been made, with the values at which a run equals one without them.
ADDED_LATER = {"exclude_history": False}
# The same of settings that are in the hash of a run: tables take runs with and without them for runs of the same settings.
ADDED_LATER_TO_RUN_KEY = {
    **ADDED_LATER,
    "constrained": True,
    "decoding_temperature": None,
    "text_initializer": False,  # of VQRec
    "hierarchical_branches": 10,
    "hierarchical_leaf_size": 100,
}


class Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number, as RecBole's loader does, and refuses keys that are written twice."""

    def construct_mapping(self, node, deep=False):
        """PyYAML's."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text, source):
    """Parse YAML without running code.

    Raises:
        TigerError: the text is not YAML; the message names ``source``.
    """
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, for example
        raise TigerError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def read_file(file):
    """Read a property file; {} if it does not exist."""
    return parse_yaml(file.read_text(encoding="utf-8"), file) or {} if file.is_file() else {}


# A line of a property file: the setting, its default, its kind and its description.
LINE = re.compile(r"^(?P<key>\w+):.*?\s# \((?P<kind>[^()]+)\) (?P<text>.*)$")


@dataclass(frozen=True)
class Setting:
    """A setting, as a property file describes it.

    Attributes:
        default: the default value.
        kind: allowed values, in the form of :func:`~recbole_tiger.settings.checks.check_kind`, or None.
        text: description.
    """

    default: object
    kind: str | None
    text: str


def described(file):
    """The settings of a property file by name, each a :class:`Setting`."""
    matches = [LINE.match(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines = {line["key"]: line for line in matches if line}
    return {
        key: Setting(value, *((lines[key]["kind"], lines[key]["text"]) if key in lines else (None, "")))
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
    """Read a file of ``properties/`` by its path parts, for example ("recipe", "TIGER-text"); {} if there is none."""
    return read_file(_place(*place))


@cache
def _described(*place):
    return described(_place(*place))


def _registered(settings):
    """Settings registered with a class from outside this package: a dict or a YAML file."""
    if isinstance(settings, dict):
        return {key: Setting(value, None, "") for key, value in settings.items()}
    return described(settings)


def _model_settings(model):
    """The settings of a model of MODELS without those of the catalogue; a subclass's override those of its base class."""
    if model not in MODELS.settings:
        return _described("model", model)
    found = {}
    for name in [cls.__name__ for cls in reversed(MODELS[model].__mro__)]:
        if name in MODELS.settings:
            found.update(_registered(MODELS.settings[name]))
        elif name in MODELS:
            found.update(_described("model", name))
    return found


def catalogue_settings():
    """The settings of item text and semantic IDs, common to all models of MODELS, by name, each a :class:`Setting`.

    Raises:
        TigerError: a registered quantizer has a setting of RecBole or of a model, or another default than all quantizers.
    """
    found = dict(_described("catalogue"))
    if not QUANTIZERS.settings:
        return found
    elsewhere = _recbole_settings().union(*map(_model_settings, MODELS)) - set(found)
    for name, settings in QUANTIZERS.settings.items():
        own = _registered(settings)
        if taken := sorted(elsewhere & set(own)):
            raise TigerError(
                f"the settings of quantizer {name} have {', '.join(taken)}, which RecBole or a model reads: rename it"
            )
        if taken := [key for key, setting in own.items() if found.get(key, setting).default != setting.default]:
            raise TigerError(
                f"the settings of quantizer {name} have {', '.join(taken)}, which has another default for all quantizers: "
                f"leave it out, or rename it"
            )
        found.update(own)
    return found


def settings_of_other_quantizers(quantizer):
    """Names of the settings registered with quantizers from outside this package other than ``quantizer``."""
    others = {key for name, own in QUANTIZERS.settings.items() if name != quantizer for key in _registered(own)}
    return others - set(_described("catalogue")) - set(_registered(QUANTIZERS.settings.get(quantizer, {})))


def settings_of(model):
    """All settings of a model of MODELS except RecBole's own, by name, each a :class:`Setting`.

    A model's settings override those of the catalogue.
    """
    return {**catalogue_settings(), **_model_settings(model)}


def defaults_of(model):
    """Defaults of all settings of a model of MODELS except RecBole's own, by name."""
    return {key: setting.default for key, setting in settings_of(model).items()}


def is_sample(dataset, data_path):
    """Whether a dataset is RecBole's sample ml-100k, and not the user's own dataset of that name under ``data_path``."""
    return dataset == "ml-100k" and not (Path(str(data_path)) / dataset).is_dir()


def dataset_properties(kind, dataset, settings):
    """Read the file of ``properties/<kind>`` for a dataset that comes with RecBole; {} for the user's own datasets."""
    return property_file(kind, dataset) if is_sample(dataset, settings.get("data_path", "dataset/")) else {}


def summary_of(*place):
    """The first sentence of the comment at the top of a file of ``properties/``; "" if there is no such file."""
    file = _place(*place)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    comment = " ".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("# "), lines))
    return re.match(r".*?\.(?= |$)|.*", comment).group()


def property_files(kind):
    """Names of the files in a folder of ``properties/``."""
    return sorted(file.name.removesuffix(".yaml") for file in (resources.files(PROPERTIES) / kind).iterdir())


def protocol():
    """The settings of the standard protocol, which every model of a comparison follows."""
    return property_file("protocol")


def protocol_settings():
    """The settings of the standard protocol by name, each a :class:`Setting`."""
    return _described("protocol")


def recipes():
    """Names of the recipes. A recipe is a model with its own settings and its own row in tables."""
    return property_files("recipe")


@cache
def recbole_models():
    """Names of RecBole's models, parsed from its modules without importing them."""
    names = set()
    for file in recbole_folder().glob("model/*_recommender/*.py"):
        classes = re.findall(r"^class (\w+)\b", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        names |= {name for name in classes if name.lower() == file.stem}
    return sorted(names)


def model_of(name):
    """The model of a name: a recipe's ``model``, or the name itself.

    Raises:
        TigerError: there is no such model, or it is not trained in epochs.
    """
    if name in recipes():
        return property_file("recipe", name)["model"]
    models = [*recbole_models(), *MODELS]
    if name not in models:
        raise TigerError(f"unknown model {name!r}{nearest(name, [*models, *recipes()])}")
    if name in ("XGBoost", "LightGBM"):
        raise TigerError(f"{name} is not trained in epochs, as all runs here have to be: choose another model")
    return name


def nearest(word, words):
    """The suffix '; did you mean ...?' of a message if a known word is similar, or ''."""
    near = [w for w in words if w.lower() == word.lower()] or difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def recbole_arguments():
    """RecBole's settings by kind (such as ``general_arguments``), parsed from its module without importing it."""
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
    """All settings that RecBole or this package reads."""
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
    """Settings of this package that ``model`` does not read, so that they do not affect its runs."""
    return _package_settings() - _read_by(model)


@cache
def _recbole_model_settings():
    return {key for file in recbole_folder().glob("properties/model/*.yaml") for key in read_file(file)}


def unread(name, user_settings):
    """Those of the user's settings that belong to other models and have no effect on ``name``, a model or a recipe."""
    model_settings = _package_settings() | _recbole_model_settings()
    return sorted(set(user_settings) & model_settings - _read_by(model_of(name)) - NOT_IN_RUN_KEY)
