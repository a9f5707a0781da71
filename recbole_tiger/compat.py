"""What RecBole 1.2.1 needs on today's libraries: one function a defect, applied where the defect is present."""

import ast
import functools
import importlib
import sys
import zipfile

import scipy.sparse
import torch
from recbole import quick_start
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.evaluator.collector import Collector
from recbole.quick_start import quick_start as quick_start_module
from recbole.trainer import Trainer

from recbole_tiger.checkpoint import SAFE_GLOBALS, allowing, dotted, safe_globals_of, save_checkpoint, stand_in
from recbole_tiger.errors import TigerError
from recbole_tiger.files import whole_folder


def checkpoints_without_code():
    """PyTorch >= 2.6 reads weights only; RecBole pickles its Config, and with a protocol that this reader rejects."""
    torch.serialization.add_safe_globals(SAFE_GLOBALS)

    def _state(self, epoch):
        other = self.model.other_parameter()
        return {
            "config": self.config,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "state_dict": self.model.state_dict(),
            # FDSA, SASRecF, DIN and others list submodules here, whose weights are in the state_dict anyway.
            "other_parameter": {key: value for key, value in other.items() if not isinstance(value, torch.nn.Module)},
            "optimizer": self.optimizer.state_dict(),
        }

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        file = kwargs.pop("saved_model_file", self.saved_model_file)
        save_checkpoint(self._state(epoch), file)
        if verbose:
            self.logger.info(f"Saving current: {file}")

    Trainer._state, Trainer._save_checkpoint = _state, _save_checkpoint

    load_internal = Config._load_internal_config_dict

    @functools.wraps(load_internal)
    def _load_internal_config_dict(self, model, model_class, dataset):
        torch.serialization.add_safe_globals([stand_in(dotted(model_class))])
        return load_internal(self, model, model_class, dataset)

    Config._load_internal_config_dict = _load_internal_config_dict

    load = quick_start_module.load_data_and_model

    @functools.wraps(load)
    def load_data_and_model(model_file):
        with allowing(safe_globals_of(model_file)):
            return load(model_file)

    quick_start_module.load_data_and_model = quick_start.load_data_and_model = load_data_and_model


def settings_without_eval():
    """RecBole evaluates every string among its settings as Python; literals give the same values without running code."""

    def _convert_config_dict(self, config_dict):
        for key, value in config_dict.items():
            if not isinstance(value, str):
                continue
            try:
                config_dict[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                config_dict[key] = {"true": True, "false": False}.get(value.lower(), value)
        return config_dict

    Config._convert_config_dict = _convert_config_dict


def teacher_without_eval():
    """KD_DAGFM evaluates its setting ``teacher`` as Python; here it names one of the classes beside it."""
    module = importlib.import_module("recbole.model.context_aware_recommender.kd_dagfm")
    module.eval = functools.partial(getattr, module)


def sparse_matrix_update():
    """SciPy >= 1.13 has no ``dok_matrix._update``, by which LightGCN, NGCF and others fill their graph."""
    if hasattr(scipy.sparse.dok_matrix, "_update"):
        return

    def _update(self, data):
        self._dict.update(data)

    scipy.sparse.dok_matrix._update = _update


def collected_counts():
    """``Collector.get_data_struct`` calls ``.cpu()`` on ints and counters (ItemCoverage, GiniIndex, ...)."""
    original = Collector.get_data_struct

    @functools.wraps(original)
    def get_data_struct(self):
        data = self.data_struct._data_dict
        plain = {key: data.pop(key) for key in list(data) if not isinstance(data[key], torch.Tensor)}
        struct = original(self)
        for key, value in plain.items():
            data[key] = value
            struct.set(key, value)
        return struct

    Collector.get_data_struct = get_data_struct


def download_in_one_process():
    """``Dataset._download`` ends in a barrier, which raises where no process group exists, and leaves what broke off."""
    original = Dataset._download

    @functools.wraps(original)
    def _download(self):
        barrier, path = torch.distributed.barrier, self.dataset_path
        if not torch.distributed.is_initialized():
            torch.distributed.barrier = lambda: None
        try:
            if self.config["local_rank"] != 0:
                original(self)  # waits for the process that fetches
                return
            self._get_download_url("url")  # an unknown name is told by the folder that was looked for
            with whole_folder(path) as temporary:
                self.dataset_path = str(temporary)
                original(self)
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise TigerError(
                f"dataset {self.dataset_name} is not at {path} and could not be fetched ({error}); "
                f"put its atomic files there or give their parent folder by --data_path=..."
            ) from error
        finally:
            torch.distributed.barrier, self.dataset_path = barrier, path

    Dataset._download = _download


def numpy_names():
    """NumPy >= 1.24 lacks ``np.float``, which RecBole's metrics use; making a Config adds them, loading does not."""
    Config.compatibility_settings(None)


def no_anomaly_detection():
    """Importing any sequential model imports SINE's module, which makes autograd look for NaN in all gradients.

    That lasts for the process and costs every model half of its speed. Imported here, it changes nothing; where a model was
    imported earlier, it is switched off.
    """
    enabled = torch.is_anomaly_enabled() and "recbole.model.sequential_recommender.sine" not in sys.modules
    importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(enabled)


def mend():
    """Apply all of the above, once."""
    if getattr(Config, "_mended_by_recbole_tiger", False):
        return
    Config._mended_by_recbole_tiger = True
    checkpoints_without_code()
    settings_without_eval()
    teacher_without_eval()
    sparse_matrix_update()
    collected_counts()
    download_in_one_process()
    numpy_names()
    no_anomaly_detection()
