"""Registers TIGER with RecBole: with RecBole's first import, or at once where it is imported already."""

import functools
import importlib
import sys

import wrapt

from recbole_tiger.compat import replace


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


@wrapt.when_imported("recbole.model")
def register_model(module):
    """``get_model`` looks for a module of the model's name among its own."""
    sys.modules["recbole.model.sequential_recommender.tiger"] = importlib.import_module("recbole_tiger.model.tiger")


def _register(module, name, home):
    """Let an attribute of a module of RecBole's be that of ``home``, which is imported when it is asked for."""

    def __getattr__(asked):
        if asked == name:
            return getattr(importlib.import_module(home), name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {asked!r}")

    module.__getattr__ = __getattr__


@wrapt.when_imported("recbole.data.dataset")
def register_dataset(module):
    """``create_dataset`` looks for the dataset here."""
    _register(module, "TIGERDataset", "recbole_tiger.training.dataset")


@wrapt.when_imported("recbole.trainer")
def register_trainer(module):
    """``get_trainer`` looks for the trainer here."""
    _register(module, "TIGERTrainer", "recbole_tiger.training.trainer")


@wrapt.when_imported("recbole.trainer.trainer")
@wrapt.when_imported("recbole.quick_start.quick_start")
def register_checkpoints(module):
    """A ``load_data_and_model`` that was imported before this package reads TIGER's checkpoints, too."""
    import torch

    from recbole_tiger.training.checkpoint import stand_in

    torch.serialization.add_safe_globals([stand_in("recbole_tiger.model.tiger.TIGER")])


@wrapt.when_imported("recbole.config.configurator")
def register_settings(module):
    """TIGER's property files lie over RecBole's own, and its settings are checked before any long work."""
    Config = module.Config
    load_internal, init_device = Config._load_internal_config_dict, Config._init_device

    @functools.wraps(load_internal)
    def _load_internal_config_dict(self, model, model_class, dataset):
        from recbole_tiger.settings.config import plugin_layer

        load_internal(self, model, model_class, dataset)
        if self.model == "TIGER":
            self.internal_config_dict.update(plugin_layer(dataset, self.external_config_dict))

    @functools.wraps(init_device)
    def _init_device(self):
        from recbole_tiger.settings.checks import check_tiger

        if self.model == "TIGER":
            check_tiger(self.final_config_dict)
        init_device(self)

    Config._load_internal_config_dict, Config._init_device = _load_internal_config_dict, _init_device


@wrapt.when_imported("recbole.data.utils")
def refuse_pickled_datasets(module):
    """RecBole unpickles caches of datasets, which can run code: for TIGER they are refused first."""

    def checked(function):
        @functools.wraps(function)
        def without_pickles(config, *args, **kwargs):
            from recbole_tiger.settings.checks import refuse_pickles

            if config["model"] == "TIGER":
                refuse_pickles(config)
            return function(config, *args, **kwargs)

        return without_pickles

    create, load = checked(module.create_dataset), checked(module.load_split_dataloaders)
    replace("create_dataset", create, "recbole.data.utils", "recbole.data", "recbole.quick_start.quick_start")
    replace("load_split_dataloaders", load, "recbole.data.utils")
