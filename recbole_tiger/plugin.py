"""Registers every model of MODELS with RecBole: with RecBole's first import, or at once where it is imported already."""

import functools
import importlib.machinery
import sys

import wrapt

from recbole_tiger.compat import replace
from recbole_tiger.model import MODELS
from recbole_tiger.registry import imported


class Absent:
    """A finder, asked after all others, that says what to type where RecBole is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Importlib's: the spec of a module, or None."""
        if name == "recbole":
            raise ModuleNotFoundError("RecBole is not installed: pip install --no-deps recbole==1.2.1", name=name)


sys.meta_path.append(Absent)


@wrapt.when_imported("recbole")
def supported_version(module):
    """Refuse another RecBole than the one whose internals are used here.

    Raises:
        ImportError: with what to type.
    """
    if not module.__version__.startswith("1.2."):
        raise ImportError(
            f"RecBole {module.__version__} is installed, and recbole_tiger works with 1.2: "
            f"pip install --no-deps recbole==1.2.1",
            name="recbole",
        )


def _set_lookup(module, find):
    """Let attributes that a module of RecBole's lacks be those that ``find`` of their name, which may be None."""

    def __getattr__(name):
        found = find(name)
        if found is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return found

    module.__getattr__ = __getattr__


def _class_finder(suffix, attribute):
    """A function that finds the class which a model of MODELS names, by the model's name and a suffix."""

    def find(name):
        model = name.removesuffix(suffix)
        home = getattr(MODELS[model], attribute) if name != model and model in MODELS else None
        return home and imported(home)

    return find


class Models:
    """A finder of the modules in which ``get_model`` looks for models: one of its lowercase name for each of MODELS."""

    PACKAGE = "recbole.model.sequential_recommender."

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Importlib's: the spec of a module, or None."""
        if name in {cls.PACKAGE + model.lower() for model in MODELS}:
            return importlib.machinery.ModuleSpec(name, cls)

    @staticmethod
    def create_module(spec):
        """Importlib's: None for an ordinary module."""

    @staticmethod
    def exec_module(module):
        """Importlib's: fill the module."""
        _set_lookup(module, lambda name: MODELS.get(name))


sys.meta_path.append(Models)


@wrapt.when_imported("recbole.data.dataset")
def register_datasets(module):
    """``create_dataset`` looks for the dataset of a model here, by the model's name."""
    _set_lookup(module, _class_finder("Dataset", "dataset_class"))


@wrapt.when_imported("recbole.trainer")
def register_trainers(module):
    """``get_trainer`` looks for the trainer of a model here, by the model's name, or else takes RecBole's."""
    _set_lookup(module, _class_finder("Trainer", "trainer_class"))


@wrapt.when_imported("recbole.trainer.trainer")
@wrapt.when_imported("recbole.quick_start.quick_start")
def register_checkpoints(module):
    """A ``load_data_and_model`` that was imported before this package reads the checkpoints of its models, too."""
    import torch

    from recbole_tiger.training.checkpoint import stand_in

    torch.serialization.add_safe_globals([stand_in(name) for name in MODELS.dotted().values()])


@wrapt.when_imported("recbole.config.configurator")
def register_settings(module):
    """The property files of a model lie over RecBole's own, and its settings are checked before any long work."""
    Config = module.Config
    load_internal, init_device = Config._load_internal_config_dict, Config._init_device

    @functools.wraps(load_internal)
    def _load_internal_config_dict(self, model, model_class, dataset):
        from recbole_tiger.settings.config import plugin_layer

        load_internal(self, model, model_class, dataset)
        if self.model in MODELS:
            self.internal_config_dict.update(plugin_layer(self.model, dataset, self.external_config_dict))

    @functools.wraps(init_device)
    def _init_device(self):
        from recbole_tiger.settings.checks import check_model

        if self.model in MODELS:
            check_model(self.final_config_dict)
            home = MODELS[self.model].trainer_class
            trainer = home and imported(home)
            if hasattr(trainer, "check_settings"):  # those about checkpoints, which models do not read
                trainer.check_settings(self.final_config_dict)
        init_device(self)

    Config._load_internal_config_dict, Config._init_device = _load_internal_config_dict, _init_device


@wrapt.when_imported("recbole.data.utils")
def leave_out_history(module):
    """``data_preparation`` gives loaders that leave out what users have, where ``exclude_history`` asks for it."""
    original = module.data_preparation

    @functools.wraps(original)
    def data_preparation(config, dataset):
        from recbole_tiger.training.history import prepare_evaluation

        found = original(config, dataset)
        prepare_evaluation(config, *found)
        return found

    replace("data_preparation", data_preparation, "recbole.data.utils", "recbole.data", "recbole.quick_start.quick_start")


@wrapt.when_imported("recbole.data.utils")
def refuse_pickled_datasets(module):
    """RecBole unpickles caches of datasets, which can run code: for models of MODELS they are refused first."""

    def checked(function):
        @functools.wraps(function)
        def without_pickles(config, *args, **kwargs):
            from recbole_tiger.settings.checks import refuse_pickles

            if config["model"] in MODELS:
                refuse_pickles(config)
            return function(config, *args, **kwargs)

        return without_pickles

    create, load = checked(module.create_dataset), checked(module.load_split_dataloaders)
    replace("create_dataset", create, "recbole.data.utils", "recbole.data", "recbole.quick_start.quick_start")
    replace("load_split_dataloaders", load, "recbole.data.utils")
