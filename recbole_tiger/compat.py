"""Fixes of RecBole 1.2.1 for current libraries, one function per defect.

Each function runs when the RecBole module with the defect is imported, or at once if it is imported already, so this module
does not import RecBole itself.
"""

import ast
import functools
import importlib
import os
import sys
import warnings
import zipfile
from http.client import HTTPException
from types import ModuleType, SimpleNamespace

import wrapt

from recbole_tiger.errors import TigerError


def replace(original, function):
    """Replace a function in every module that has imported it, those of the user included."""
    for names in [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]:
        if id(original) in map(id, names.values()):  # thousands of modules, few of which have it
            names.update({name: function for name, value in names.items() if value is original})


def module_with(library, **names):
    """A copy of the module ``library`` with some names replaced, for use in one module of RecBole only."""
    found = ModuleType(library.__name__)
    found.__getattr__ = functools.partial(getattr, library)
    vars(found).update(names)
    return found


@wrapt.when_imported("recbole")
def deprecations(module):
    """RecBole's use of pandas and PyTorch gives dozens of FutureWarnings per run, which hide what a run has to say."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")


@wrapt.when_imported("recbole.config.configurator")
def numpy_names(module):
    """RecBole uses names removed in NumPy 1.24 (``np.float``) and defines them by names not in NumPy 2 (``np.float_``)."""
    import numpy as np

    def compatibility_settings(self):
        for name in ("bool", "int", "object", "str"):
            setattr(np, name, getattr(np, f"{name}_"))
        np.float, np.complex, np.long, np.unicode = np.float64, np.complex128, np.int_, np.str_

    module.Config.compatibility_settings = compatibility_settings
    compatibility_settings(None)  # making a Config defines the names, loading one does not


@wrapt.when_imported("recbole.config.configurator")
def settings_without_eval(module):
    """RecBole evaluates every string setting as Python; parsing literals gives the same values without running code."""

    def _convert_config_dict(self, config_dict):
        for key, value in config_dict.items():
            if not isinstance(value, str):
                continue
            try:
                config_dict[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                config_dict[key] = {"true": True, "false": False}.get(value.lower(), value)
        return config_dict

    module.Config._convert_config_dict = _convert_config_dict


@wrapt.when_imported("recbole.config.configurator")
def own_dataset_called_ml_100k(module):
    """RecBole reads its own sample, with its settings, for any dataset called ml-100k."""
    Config = module.Config
    load_internal, set_default = Config._load_internal_config_dict, Config._set_default_parameters

    def sample(self, dataset):
        from recbole_tiger.settings.properties import is_sample

        return dataset != "ml-100k" or is_sample(dataset, self.external_config_dict.get("data_path", "dataset/"))

    @functools.wraps(load_internal)
    def _load_internal_config_dict(self, model, model_class, dataset):
        return load_internal(self, model, model_class, dataset if sample(self, dataset) else "")

    @functools.wraps(set_default)
    def _set_default_parameters(self):
        data_path = self.final_config_dict["data_path"]
        set_default(self)
        if not sample(self, self.dataset):
            self.final_config_dict["data_path"] = os.path.join(data_path, self.dataset)

    Config._load_internal_config_dict, Config._set_default_parameters = _load_internal_config_dict, _set_default_parameters


@wrapt.when_imported("recbole.config.configurator")
def checkpoints_name_their_model(module):
    """A checkpoint holds the Config, which refers to the model's class; safe loading has to allow the name."""
    load_internal = module.Config._load_internal_config_dict

    @functools.wraps(load_internal)
    def _load_internal_config_dict(self, model, model_class, dataset):
        import torch

        from recbole_tiger.registry import dotted
        from recbole_tiger.training.checkpoint import stand_in

        torch.serialization.add_safe_globals([stand_in(dotted(model_class))])
        return load_internal(self, model, model_class, dataset)

    module.Config._load_internal_config_dict = _load_internal_config_dict


@wrapt.when_imported("recbole.trainer.trainer")
@wrapt.when_imported("recbole.quick_start.quick_start")
def checkpoints_read_without_code(module):
    """PyTorch >= 2.6 loads weights only, but RecBole pickles its Config: allow the names to which it refers."""
    import torch

    from recbole_tiger.training.checkpoint import SAFE_GLOBALS

    torch.serialization.add_safe_globals(SAFE_GLOBALS)


@wrapt.when_imported("recbole.trainer.trainer")
def checkpoints_written_to_be_read(module):
    """RecBole writes checkpoints in place, and with a pickle protocol that loading weights only rejects."""
    import torch

    from recbole_tiger.training import checkpoint

    def _state(self, epoch):
        other = self.model.other_parameter()
        return {
            "config": self.config,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "state_dict": self.model.state_dict(),
            # FDSA, SASRecF, DIN and others have submodules here, but their weights are in the state_dict anyway.
            "other_parameter": {key: value for key, value in other.items() if not isinstance(value, torch.nn.Module)},
            "optimizer": self.optimizer.state_dict(),
        }

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        file = kwargs.pop("saved_model_file", self.saved_model_file)
        checkpoint.save_checkpoint(self._state(epoch), file)
        if verbose:
            self.logger.info(f"Saving current: {file}")

    module.Trainer._state, module.Trainer._save_checkpoint = _state, _save_checkpoint


@wrapt.when_imported("recbole.quick_start.quick_start")
def loading_allows_what_the_checkpoint_names(module):
    """``load_data_and_model`` may read the checkpoint of a model for which this process has made no Config."""
    load = module.load_data_and_model

    @functools.wraps(load)
    def load_data_and_model(model_file):
        from recbole_tiger.training.checkpoint import allow_globals, safe_globals_of

        with allow_globals(safe_globals_of(model_file)):
            return load(model_file)

    replace(load, load_data_and_model)


@wrapt.when_imported("recbole.quick_start.quick_start")
def report_as_a_dict(module):
    """``objective_function`` reports metrics to Ray Tune as keywords, but Ray >= 2.7 expects one dict."""
    report = module.tune.report
    module.tune = SimpleNamespace(report=lambda **metrics: report(metrics))


@wrapt.when_imported("recbole.data.dataset.dataset")
def read_files_as_utf8(module):
    """RecBole reads headers in the locale's encoding, and rows with pandas' slow parser, which ends some rows elsewhere."""
    import pandas

    from recbole_tiger.catalogue.item_text import read_csv

    def open_text(file, mode="r", encoding=None):
        return open(file, mode, encoding=encoding if "b" in mode else encoding or "utf-8")

    module.open = open_text
    module.pd = module_with(pandas, read_csv=read_csv)


@wrapt.when_imported("recbole.data.dataset.dataset")
def duplicates_in_order(module):
    """``rm_dup_inter`` sorts by time with an algorithm that changes the order of equal times, differently by machine."""

    def _remove_duplication(self):
        keep = self.config["rm_dup_inter"]
        if keep is None:
            return
        self._check_field("uid_field", "iid_field")
        if self.time_field in self.inter_feat:
            self.inter_feat = self.inter_feat.sort_values(self.time_field, kind="stable")
        else:
            self.logger.warning(f"no times are loaded, so rm_dup_inter {keep} goes by the order of the file")
        self.inter_feat = self.inter_feat.drop_duplicates([self.uid_field, self.iid_field], keep=keep)

    module.Dataset._remove_duplication = _remove_duplication


@wrapt.when_imported("recbole.trainer.hyper_tuning")
def random_generator(module):
    """``exhaustive_search`` passes HyperOpt a RandomState, but HyperOpt 0.3 expects NumPy's Generator."""
    import numpy as np

    module.np = module_with(np, random=SimpleNamespace(RandomState=np.random.default_rng))


@wrapt.when_imported("recbole.model.context_aware_recommender.kd_dagfm")
def teacher_without_eval(module):
    """KD_DAGFM evaluates its setting ``teacher`` as Python; look it up among the classes of its module instead."""
    module.eval = functools.partial(getattr, module)


@wrapt.when_imported("recbole.model")
def sparse_matrix_update(module):
    """SciPy >= 1.13 lacks ``dok_matrix._update``, with which LightGCN, NGCF and others fill their graph."""
    import scipy.sparse

    if hasattr(scipy.sparse.dok_matrix, "_update"):
        return

    def _update(self, data):
        self._dict.update(data)

    scipy.sparse.dok_matrix._update = _update


@wrapt.when_imported("recbole.model")
def no_anomaly_detection(module):
    """Importing any sequential model imports SINE's module, which switches on autograd's anomaly detection.

    This lasts for the process and halves the speed of every model. Import the sequential models here and restore the state;
    if they were imported earlier, switch anomaly detection off.
    """
    import torch

    enabled = torch.is_anomaly_enabled() and "recbole.model.sequential_recommender.sine" not in sys.modules
    importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(enabled)


@wrapt.when_imported("recbole.evaluator.collector")
def collected_counts(module):
    """``Collector.get_data_struct`` calls ``.cpu()`` even on ints and counters (for ItemCoverage, GiniIndex, ...)."""
    import torch

    original = module.Collector.get_data_struct

    @functools.wraps(original)
    def get_data_struct(self):
        data = self.data_struct._data_dict
        others = {key: data.pop(key) for key in list(data) if not isinstance(data[key], torch.Tensor)}
        struct = original(self)
        for key, value in others.items():
            data[key] = value
            struct.set(key, value)
        return struct

    module.Collector.get_data_struct = get_data_struct


@wrapt.when_imported("recbole.evaluator.collector")
def targets_left_out(module):
    """``Collector`` fills short lists with items of score -inf, among which a target may be; rank such targets last."""
    import torch

    original = module.Collector.eval_batch_collect

    @functools.wraps(original)
    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        if positive_u is not None:
            left_out = scores_tensor[positive_u, positive_i].isneginf().to(positive_u.device)
            if left_out.any():
                scores_tensor = scores_tensor.clamp(min=torch.finfo(scores_tensor.dtype).min)
                scores_tensor[positive_u[left_out], positive_i[left_out]] = -torch.inf
        return original(self, scores_tensor, interaction, positive_u, positive_i)

    module.Collector.eval_batch_collect = eval_batch_collect


@wrapt.when_imported("recbole.data.dataset.dataset")
def download_in_one_process(module):
    """``Dataset._download`` ends in a barrier, which fails without a process group, and leaves partial downloads behind."""
    import torch

    from recbole_tiger.files import locked, whole_folder

    original = module.Dataset._download

    @functools.wraps(original)
    def _download(self):
        barrier, path = torch.distributed.barrier, self.dataset_path
        if not torch.distributed.is_initialized():
            torch.distributed.barrier = lambda: None
        try:
            if self.config["local_rank"] != 0:
                original(self)  # waits for the process that downloads
                return
            self._get_download_url("url")  # for an unknown name, the message names the missing folder
            with locked(f"{path}.lock", f"the download of {path}"):
                if os.path.exists(path):  # another process has made it in the meantime
                    return
                with whole_folder(path) as temporary:
                    self.dataset_path = str(temporary)
                    try:
                        original(self)
                    except RuntimeError as error:  # RecBole raises it for all failures of a transfer, such as a full disk
                        if isinstance(error.__context__, OSError):
                            raise error.__context__ from error
                        raise
        except TigerError:
            raise
        except SystemExit as error:  # the answer to RecBole's question whether to fetch more than 1 GB was no
            raise TigerError(f"dataset {self.dataset_name} is not at {path}, and was not fetched") from error
        except (OSError, EOFError, ValueError, RuntimeError, HTTPException, zipfile.BadZipFile) as error:
            raise TigerError(
                f"dataset {self.dataset_name} is not at {path} and could not be fetched ({error}); "
                f"put its atomic files there or give their parent folder as --data_path=..."
            ) from error
        finally:
            torch.distributed.barrier, self.dataset_path = barrier, path

    module.Dataset._download = _download
