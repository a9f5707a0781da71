"""Writing files whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from recbole_tiger.errors import TigerError


def make_folder(path):
    """Make a folder where there is none.

    Raises:
        TigerError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TigerError(f"cannot make the folder {path}: {error.strerror or error}; choose another folder") from error


def _mode(most):
    """The mode that open() or mkdir() would have given; tempfile makes private files."""
    umask = os.umask(0)
    os.umask(umask)
    return most & ~umask


@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path beside ``path``; rename it to ``path`` at the end, remove it on any failure.

    Raises:
        TigerError: the file cannot be written (no room, no permission).
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(_mode(0o666))
        os.replace(temporary, path)
    except OSError as error:
        raise TigerError(f"cannot write {path}: {error.strerror or error}; make room or choose another folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path):
    """Yield a temporary folder beside ``path``, which does not exist; rename it at the end, remove it on any failure.

    Raises:
        TigerError: the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        temporary.chmod(_mode(0o777))
        temporary.rename(path)
    except OSError as error:
        raise TigerError(f"cannot write {path}: {error.strerror or error}; make room or choose another folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
