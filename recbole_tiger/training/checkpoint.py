"""Checkpoints: written atomically, read without running code."""

import contextlib
import functools
import importlib
import re
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
import yaml
from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import EvaluatorType, InputType, ModelType

from recbole_tiger.errors import TigerError
from recbole_tiger.files import whole_file
from recbole_tiger.model import MODELS
from recbole_tiger.registry import dotted
from recbole_tiger.settings.properties import recbole_folder


@functools.cache
def stand_in(name):
    """A placeholder for the class of the given dotted name, which a pickle in a checkpoint could call.

    It can be referred to, as RecBole's Config refers to the class of its model, but not instantiated.
    """
    module, _, attribute = name.rpartition(".")

    def refuse(cls, *args, **kwargs):
        raise TigerError(f"it builds a {name}, which could run code: refused; give a checkpoint that you trained")

    return type(attribute, (), {"__module__": module, "__new__": refuse})


def _real_class(value):
    """The class that a placeholder stands for; any other value unchanged."""
    if not isinstance(value, type) or value is not stand_in(dotted(value)):
        return value
    if value.__name__ in MODELS:
        return MODELS[value.__name__]
    return getattr(importlib.import_module(value.__module__), value.__name__, None)


def _set_state(self, state):
    self.__dict__.update({key: _real_class(value) for key, value in state.items()})
    self.__class__ = Config


def _refuse_arguments(self, *args, **kwargs):
    raise TigerError("it builds settings anew, which could run code: refused; give a checkpoint that you trained")


# Replaces Config while a checkpoint is read: it accepts the pickled settings, but refuses to make new ones.
_Settings = type(
    "Config", (Config,), {"__module__": Config.__module__, "__init__": _refuse_arguments, "__setstate__": _set_state}
)

try:
    from numpy._core import multiarray as _multiarray
except ImportError:  # NumPy 1
    from numpy.core import multiarray as _multiarray

_NUMPY_FUNCTIONS = [_multiarray.scalar, _multiarray._reconstruct]

# What RecBole's pickled Config refers to; in pairs, the second is its name in a checkpoint. None of it runs code when built.
SAFE_GLOBALS = [
    _Settings,
    ModelType,
    EvaluatorType,
    InputType,
    stand_in(dotted(yaml.FullLoader)),
    np.dtype,
    *{type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_, object)},
    # ItemKNN, EASE and SLIMElastic keep matrices of NumPy and SciPy.
    np.ndarray,
    np.matrix,
    *(scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, scipy.sparse.lil_matrix),
    # NumPy 2 has moved them; both names work, so that NumPy 1 and 2 read each other's checkpoints.
    *(
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for core in ("core", "_core")
        for function in _NUMPY_FUNCTIONS
    ),
]


def checkpoint_name(file, config, key):
    """RecBole's path of a checkpoint, which has the model and the second, with the row, the dataset and the run key."""
    time = Path(file).stem.removeprefix(f"{config['model']}-")
    return str(Path(file).with_name(f"{config['label'] or config['model']}-{config['dataset']}-{time}-{key}.pth"))


def save_checkpoint(state, file):
    """Write ``state`` to ``file`` atomically.

    It uses pickle protocol 2, the newest that the weights-only loader reads.
    """
    with whole_file(file) as temporary:
        try:
            torch.save(state, temporary, pickle_protocol=2)
        except RuntimeError as error:  # PyTorch's archive writer hides the OSError of a full disk
            raise OSError(str(error).splitlines()[0]) from error


def _is_model(name):
    """Whether a dotted name is that of a recommender class of MODELS or of RecBole; imports no other module."""
    module, _, attribute = name.rpartition(".")
    if attribute in MODELS:  # the class may have moved to another module since
        return True
    file = recbole_folder().parent / f"{module.replace('.', '/')}.py"
    if not re.fullmatch(r"recbole\.model\.\w+_recommender\.\w+", module) or not file.is_file():
        return False
    found = getattr(importlib.import_module(module), attribute, None)
    return isinstance(found, type) and issubclass(found, AbstractRecommender)


@contextlib.contextmanager
def allow_globals(classes):
    """Let PyTorch's weights-only loader read ``classes`` within a context.

    Unlike ``torch.serialization.safe_globals``, it keeps what was allowed before: RecBole's later loads need it.
    """
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([item for item in classes if item not in before]):
        yield


def safe_globals_of(file):
    """The globals that must be allowed for reading the checkpoint ``file``.

    Raises:
        TigerError: the file is absent, truncated, or refers to anything that a checkpoint of RecBole does not need.
    """
    allowed = {item[1] if isinstance(item, tuple) else dotted(item) for item in SAFE_GLOBALS}
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except FileNotFoundError as error:
        raise TigerError(f"checkpoint {file} does not exist") from error
    except IsADirectoryError as error:
        raise TigerError(f"{file} is a folder, not a checkpoint; give a file in it") from error
    except Exception as error:  # truncated files and other formats raise many kinds
        reason = str(error).splitlines()[0].split(". ")[0]
        raise TigerError(
            f"{file} is cut short or not a checkpoint ({reason}); give another, or delete what was cut short"
        ) from error
    result = list(SAFE_GLOBALS)
    for name in names:
        if name in allowed:
            continue
        if not _is_model(name):
            raise TigerError(
                f"checkpoint {file} refers to {name}, which could run code: refused; give a checkpoint that you trained, "
                f"and for a model of your own name its file by --plugins=... or import it first"
            )
        result.append(stand_in(name))
    return result


def _check_content(file):
    """Verify the checksums of an archive: PyTorch does not notice changed bytes in the settings."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # damaged files raise many kinds
        raise TigerError(f"{file} is a damaged checkpoint ({error}); give another") from error
    if damaged:
        raise TigerError(f"{file} is a damaged checkpoint (the content of {damaged} has changed); give another")


def load_checkpoint(file):
    """Read a checkpoint.

    Returns:
        the saved dict, with tensors on the CPU: there Adam's step counts stay, which a GPU would be asked for at every step.

    Raises:
        TigerError: the file is absent, truncated or damaged, or contains executable pickles.
    """
    _check_content(file)
    allowed = safe_globals_of(file)
    try:
        with allow_globals(allowed):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except TigerError as error:
        raise TigerError(f"{file}: {error}") from error
    except Exception as error:  # damaged files raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TigerError(
            f"{file} cannot be read as a checkpoint ({reason}); give another, or delete what was cut short"
        ) from error
    if not isinstance(state, dict) or not {"config", "state_dict", "other_parameter"} <= state.keys():
        raise TigerError(f"{file} is not a checkpoint of RecBole: it lacks settings and weights; give another")
    return state
