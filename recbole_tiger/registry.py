"""Registries of classes by name, one for each kind of extensible part."""

import importlib
import importlib.util
import sys
from collections import UserDict
from pathlib import Path

from recbole_tiger.errors import TigerError


def imported(name):
    """Import the class of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# Files that import_file has imported, in its order: imported again, they register the same classes.
IMPORTED_FILES = []
# These files and all others that define registered classes.
PLUGIN_FILES = []


class Registry(UserDict):
    """A mapping of names to classes; classes of this package are imported on first access.

    Args:
        what: the kind of classes, for messages.
        homes: name -> dotted name of the class.

    Attributes:
        settings: for classes registered from outside this package: name -> settings and their defaults, a dict or the path
            of a YAML file.
    """

    def __init__(self, what, **homes):
        super().__init__(homes)
        self.what, self.settings = what, {}

    def __getitem__(self, name):
        if isinstance(self.data[name], str):
            self.data[name] = imported(self.data[name])
        return self.data[name]

    def register(self, name, cls, settings):
        """Add a class from outside this package.

        Raises:
            TigerError: another class has the name.
        """
        if self.dotted().get(name, dotted(cls)) != dotted(cls):
            raise TigerError(f"a {self.what} called {name} already exists: choose another name")
        self.data[name] = cls
        self.settings[name] = settings if isinstance(settings, dict) else Path(settings)
        _add_plugin_file(self.file_of(name))

    def file_of(self, name):
        """The file that defines a class from outside this package; None for other classes and those typed in a shell."""
        module = sys.modules.get(self.data[name].__module__) if name in self.settings else None
        return getattr(module, "__file__", None)

    def plugin_files(self, name):
        """The files on which a class from outside this package may depend: all PLUGIN_FILES; none for other classes."""
        return PLUGIN_FILES if self.file_of(name) else []

    def dotted(self):
        """The dotted name of every class, without importing any."""
        return {name: home if isinstance(home, str) else dotted(home) for name, home in self.data.items()}


def dotted(cls):
    """The dotted name of a class, in the form used by pickles."""
    return f"{cls.__module__}.{cls.__name__}"


def _add_plugin_file(file):
    if file and file not in PLUGIN_FILES:
        PLUGIN_FILES.append(file)


def import_file(file):
    """Import a Python file of the user that registers models or quantizers.

    Raises:
        TigerError: the file does not exist, has the name of another module, or its code raises an exception.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise TigerError(f"plugin {file} does not exist: give the path of a Python file")
    there = sys.modules.get(path.stem)
    if there is not None and getattr(there, "__file__", None) != str(path):
        raise TigerError(f"plugin {file}: there is another module called {path.stem}; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise TigerError(f"plugin {file} does not end in .py: give the path of a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise TigerError(f"plugin {file}: {type(error).__name__}: {error}") from error
    if str(path) not in IMPORTED_FILES:
        IMPORTED_FILES.append(str(path))
    _add_plugin_file(str(path))
