"""Reading and writing of files: writes are atomic, arrays are stored without pickles."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np

from recbole_tiger.errors import TigerError


def make_folder(path):
    """Make a folder unless it exists.

    Raises:
        TigerError: the folder cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TigerError(f"cannot make the folder {path}: {error.strerror or error}; choose another folder") from error


def check_writable(file):
    """Check that a file can be written, before the work whose result it will hold; make its folder.

    Raises:
        TigerError: the path is a folder or a device, or its folder is not writable.
    """
    if Path(file).is_dir():
        raise TigerError(f"{file} is a folder: name a file in it")
    if Path(file).exists() and not Path(file).is_file():  # renaming the finished file would replace a device
        raise TigerError(f"{file} is not a regular file: name another")
    make_folder(Path(file).parent)
    try:
        with tempfile.TemporaryFile(dir=Path(file).parent):
            pass
    except OSError as error:
        raise TigerError(f"cannot write {file}: {error.strerror or error}; choose another folder") from error


@contextlib.contextmanager
def locked(path, what):
    """Hold a lock file; the system releases it when the process ends, even if it is killed.

    Args:
        what: name of the locked work, for the message.

    Raises:
        TigerError: another process holds the lock.
    """
    make_folder(Path(path).parent)
    while True:
        file = open(path, "a+", encoding="ascii")  # noqa: SIM115 - open as long as the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            with file:
                holder = file.read()
            raise TigerError(
                f"{what} is running already, in process {holder} ({path}): wait until it ends, or end it"
            ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
        file.close()  # the previous holder has removed the file in between
    try:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        Path(path).unlink(missing_ok=True)
        file.close()


def read_lines(path):
    r"""Lines of a UTF-8 file, without their ends and the byte-order mark.

    Lines end at ``\n`` or ``\r\n`` only, not at the other separators of ``str.splitlines``.
    """
    with open(path, encoding="utf-8-sig", newline="\n") as stream:
        return [line.removesuffix("\n").removesuffix("\r") for line in stream]


def content_hash(path):
    """SHA-256 of a file's content, as bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.digest()


@contextlib.contextmanager
def _write_then_rename(path, make, remove, mode):
    """Implements :func:`whole_file` and :func:`whole_folder`.

    Args:
        make: makes the temporary path, given tempfile's ``prefix`` and ``dir``.
        remove: removes the temporary path, if it still exists.
        mode: permissions before the umask (tempfile makes private files).
    """
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(make(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(mode & ~umask)
        os.replace(temporary, target)
    except (ConnectionError, TimeoutError, URLError):
        raise  # an error of the network, not of the disk
    except OSError as error:
        raise TigerError(f"cannot write {path}: {error.strerror or error}; make room or choose another folder") from error
    finally:
        if temporary is not None:
            remove(temporary)


def _empty_file(**where):
    handle, name = tempfile.mkstemp(**where)
    os.close(handle)
    return name


def whole_file(path):
    """Yield a temporary path beside ``path``; rename it to ``path`` at the end, or remove it on any failure.

    Raises:
        TigerError: the file cannot be written (no room, no permission).
    """
    return _write_then_rename(path, _empty_file, lambda file: file.unlink(missing_ok=True), 0o666)


def whole_folder(path):
    """Yield a temporary folder beside ``path``, which must not exist; rename it at the end, or remove it on any failure.

    Raises:
        TigerError: the folder cannot be written.
    """
    return _write_then_rename(path, tempfile.mkdtemp, lambda folder: shutil.rmtree(folder, ignore_errors=True), 0o777)


def link_or_copy(source, path):
    """Make ``path`` a hard link to ``source``, a file that is never changed in place; copy it where links do not work.

    Raises:
        TigerError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_arrays(path, *, compress=False, **arrays):
    """Write an npz file like ``np.savez``, but close the archive even if the disk is full."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def read_arrays(path, *names, remedy="delete it and make it anew"):
    """Read arrays of an npz file without unpickling.

    Args:
        names: of the arrays to read; all if empty.
        remedy: what to do about a damaged file, for the message.

    Returns:
        list of the named arrays; without ``names``, dict of all arrays.

    Raises:
        TigerError: the file is absent, truncated, not an npz file, or lacks one of the arrays.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is an npy file of a single array")
        with file:
            return [file[name] for name in names] if names else dict(file)
    except FileNotFoundError as error:
        raise TigerError(f"{path} does not exist") from error
    except KeyError as error:
        raise TigerError(f"{path} lacks an array: it has to hold {' and '.join(names)}") from error
    except Exception as error:  # damaged files raise many kinds
        if "Object arrays" in str(error):
            raise TigerError(
                f"{path} is not an npz file of plain arrays: one holds Python objects, which could run code; convert it to "
                f"text by .astype(str), or to numbers"
            ) from error
        raise TigerError(f"{path} is cut short or not an npz file of plain arrays ({error}); {remedy}") from error
