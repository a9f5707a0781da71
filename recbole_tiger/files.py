"""Writing files whole or not at all."""

import contextlib
import os
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
        # mkstemp makes private files; give the mode that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise TigerError(f"cannot write {path}: {error.strerror or error}; make room or choose another folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
