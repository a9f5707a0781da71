"""Register every model of MODELS when RecBole is first imported, or at once if it is imported already."""

import functools
import importlib.machinery
import sys

import wrapt

from recbole_tiger.compat import replace
from recbole_tiger.model import MODELS
from recbole_tiger.registry import imported


class Absent:
    """A finder, asked after all others, whose error says how to install RecBole if it is missing."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Importlib's: the spec of a module, or None."""
        if name == "recbole":
            raise ModuleNotFoundError("RecBole is not installed: pip install --no-deps recbole==1.2.1", name=name)


sys.meta_path.append(Absent)


@wrapt.when_imported("recbole")
def supported_version(module):
    """Refuse versions of RecBole other than the one whose internals are used here.

    Raises:
        ImportError: with the command that installs that version.
    """
    if not module.__version__.startswith("1.2."):
        raise ImportError(
            f"RecBole {module.__version__} is installed, but recbole_tiger works with 1.2: "
            f"pip install --no-deps recbole==1.2.1",
            name="recbole",
        )


def _set_lookup(module, find):
    """Make a module of RecBole look up missing attributes with ``find(name)``, which returns None for unknown names."""

    def __getattr__(name):
        found = find(name)
        if found is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return found

    module.__getattr__ = __getattr__


def _class_finder(suffix, attribute):
    """Make a function that finds the class in an attribute of a model of MODELS, by the model's name with a suffix."""

    def find(name):
        model = name.removesuffix(suffix)
        home = getattr(MODELS[model], attribute) if name != model and model in MODELS else None
        return home and imported(home)

    return find


class Models:
    """A finder of the modules in which ``get_model`` looks for models: one for each of MODELS, with its lowercase name."""

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
    """``create_dataset`` looks up the dataset class of a model here, by the model's name."""
    _set_lookup(module, _class_finder("Dataset", "dataset_class"))


@wrapt.when_imported("recbole.trainer")
def register_trainers(module):
    """``get_trainer`` looks up the trainer class of a model here, by the model's name, and falls back to RecBole's."""
    _set_lookup(module, _class_finder("Trainer", "trainer_class"))


@wrapt.when_imported("recbole.trainer.trainer")
@wrapt.when_imported("recbole.quick_start.quick_start")
def register_checkpoints(module):
    """A ``load_data_and_model`` imported before this package can read the checkpoints of its models too."""
    import torch

    from recbole_tiger.training.checkpoint import stand_in

    torch.serialization.add_safe_globals([stand_in(name) for name in MODELS.dotted().values()])


@wrapt.when_imported("recbole.config.configurator")
def register_settings(module):
    """The property files of a model override RecBole's, and its settings are checked before any long work."""
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
            if hasattr(trainer, "check_settings"):  # settings about checkpoints, which models do not read
                trainer.check_settings(self.final_config_dict)
        init_device(self)

    Config._load_internal_config_dict, Config._init_device = _load_internal_config_dict, _init_device


@wrapt.when_imported("recbole.data.utils")
def leave_out_history(module):
    """``data_preparation`` gives loaders that leave the users' history out of the lists if ``exclude_history`` is set."""
    original = module.data_preparation

    @functools.wraps(original)
    def data_preparation(config, dataset):
        from recbole_tiger.training.history import prepare_evaluation

        found = original(config, dataset)
        prepare_evaluation(config, *found)
        return found

    replace(original, data_preparation)


@wrapt.when_imported("recbole.data.utils")
def refuse_pickled_datasets(module):
    """RecBole unpickles dataset caches, which can run code; they are refused for models of MODELS."""

    def checked(function):
        @functools.wraps(function)
        def without_pickles(config, *args, **kwargs):
            from recbole_tiger.settings.checks import refuse_pickles

            if config["model"] in MODELS:
                refuse_pickles(config)
            return function(config, *args, **kwargs)

        return without_pickles

    for function in (module.create_dataset, module.load_split_dataloaders):
        replace(function, checked(function))
