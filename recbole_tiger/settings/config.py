"""Make RecBole's Config of a run from the layers of settings, and check it."""

import contextlib
import sys
import tempfile
from pathlib import Path

import yaml
from recbole.config import Config
from recbole.utils import get_model

from recbole_tiger.errors import TigerError
from recbole_tiger.model import MODELS
from recbole_tiger.settings.checks import check_effect, check_run, check_topk
from recbole_tiger.settings.properties import (
    dataset_properties,
    defaults_of,
    model_of,
    package_settings_unread_by,
    property_file,
    protocol,
    read_file,
    recbole_folder,
)

EVAL_ARGS = ("split", "group_by", "order", "mode")


def plugin_layer(model, dataset, user_settings):
    """Settings of a model of MODELS that override RecBole's properties; the user's settings override them."""
    return {**protocol(), **defaults_of(model), **dataset_properties("dataset", dataset, user_settings)}


def _check_packages(model):
    """Refuse a model of RecBole that needs a missing package."""
    try:
        get_model(model)
    except ModuleNotFoundError as error:
        raise TigerError(f"model {model} needs the package {error.name}: pip install {error.name}") from error


def make_config(name, dataset, user_settings):
    """Make RecBole's Config of one run.

    Args:
        name: a model or a recipe.
        user_settings: settings of the user, which override all others.

    Raises:
        TigerError: a setting is invalid.
    """
    model = model_of(name)
    _check_packages(model)
    layers = {**protocol(), **dataset_properties("dataset", dataset, user_settings)}
    if model not in MODELS:
        # text_fields makes every model load the same columns, and a mixture of datasets is cached for every model.
        layers = {key: property_file("catalogue")[key] for key in ("text_fields", "cache_dir")} | layers
    layers.update(property_file("recipe", name))
    layers.update(user_settings)
    if isinstance(layers["eval_args"], dict):
        if unknown := sorted(map(str, set(layers["eval_args"]) - set(EVAL_ARGS))):
            raise TigerError(f"unknown key {', '.join(unknown)} in eval_args: it may have {', '.join(EVAL_ARGS)}")
        layers["eval_args"] = {**protocol()["eval_args"], **layers["eval_args"]}
    check_topk(layers["topk"])
    layers.setdefault("label", name)
    if "gpu_id" in layers and layers["gpu_id"] is None:
        layers["gpu_id"] = ""  # --gpu_id= is null in YAML, which RecBole would read as a GPU called None
    left_out = {"model", "dataset"} | package_settings_unread_by(model) - {"cache_dir"}
    layers = {key: value for key, value in layers.items() if key not in left_out}
    loss = {**read_file(recbole_folder() / f"properties/model/{model}.yaml"), **layers}.get("loss_type")
    if "train_neg_sample_args" not in layers and loss == "CE":
        layers["train_neg_sample_args"] = None  # cross-entropy uses no negatives
    with tempfile.TemporaryDirectory() as folder, hide_command_line():
        file = Path(folder) / "settings.yaml"
        # RecBole's YAML reads more texts as numbers than PyYAML quotes, for example 1e3.
        file.write_text(yaml.safe_dump(layers, default_style='"'), encoding="utf-8")
        try:
            config = Config(model=model, dataset=dataset, config_file_list=[str(file)])
        except TigerError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError, AssertionError) as error:
            raise TigerError(f"{model}: {error}") from error
    check_run(config)
    check_effect(config, user_settings)
    return config


@contextlib.contextmanager
def hide_command_line():
    """Hide the command line from RecBole's Config, which would parse it."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv
