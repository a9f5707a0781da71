"""Registers TIGER with RecBole."""

import functools
import sys

import recbole.data
import recbole.data.dataset
import recbole.data.utils
import recbole.quick_start.quick_start
import recbole.trainer
import torch
from recbole.config import Config

from recbole_tiger.checkpoint import dotted, stand_in
from recbole_tiger.checks import check_tiger, refuse_pickles
from recbole_tiger.dataset import TIGERDataset
from recbole_tiger.model import tiger
from recbole_tiger.settings import plugin_layer
from recbole_tiger.trainer import TIGERTrainer


def _without_pickles(function):
    """``function(config, ...)`` that first refuses settings of a TIGER run which name a pickle."""

    @functools.wraps(function)
    def checked(config, *args, **kwargs):
        if config["model"] == "TIGER":
            refuse_pickles(config)
        return function(config, *args, **kwargs)

    return checked


def register():
    """Make RecBole find the model, its dataset, its trainer and its settings by the name TIGER."""
    sys.modules["recbole.model.sequential_recommender.tiger"] = tiger
    recbole.data.dataset.TIGERDataset = TIGERDataset
    recbole.trainer.TIGERTrainer = TIGERTrainer
    # So that a load_data_and_model which was imported before this package reads TIGER's checkpoints, too.
    torch.serialization.add_safe_globals([stand_in(dotted(tiger.TIGER))])

    load_internal = Config._load_internal_config_dict

    @functools.wraps(load_internal)
    def _load_internal_config_dict(self, model, model_class, dataset):
        load_internal(self, model, model_class, dataset)
        if model_class is tiger.TIGER:
            self.internal_config_dict.update(plugin_layer(dataset))

    Config._load_internal_config_dict = _load_internal_config_dict

    init_device = Config._init_device

    @functools.wraps(init_device)
    def _init_device(self):
        if self.model_class is tiger.TIGER:
            check_tiger(self.final_config_dict)
        init_device(self)

    Config._init_device = _init_device

    create = _without_pickles(recbole.data.utils.create_dataset)
    for module in (recbole.data.utils, recbole.data, recbole.quick_start.quick_start):
        module.create_dataset = create
    load = _without_pickles(recbole.data.utils.load_split_dataloaders)
    recbole.data.utils.load_split_dataloaders = load
