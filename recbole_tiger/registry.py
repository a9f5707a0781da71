"""Registries: one place for each kind of thing that there can be more of."""

import importlib
import importlib.util
import inspect
import sys
from collections import UserDict
from pathlib import Path

from recbole_tiger.errors import TigerError


def imported(name):
    """The class of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class Registry(UserDict):
    """Names and the classes behind them; those of this package are imported when they are asked for.

    Args:
        what: what it holds, for messages.
        homes: name -> dotted name of the class.

    Attributes:
        settings: of what was registered from outside of this package: name -> its settings and their defaults, a dict or the
            path of a YAML file.
    """

    def __init__(self, what, **homes):
        super().__init__(homes)
        self.what, self.settings = what, {}

    def __getitem__(self, name):
        if isinstance(self.data[name], str):
            self.data[name] = imported(self.data[name])
        return self.data[name]

    def register(self, name, cls, settings):
        """Add a class from outside of this package.

        Raises:
            TigerError: the name is taken by another.
        """
        if self.dotted().get(name, dotted(cls)) != dotted(cls):
            raise TigerError(f"there is a {self.what} called {name} already: choose another name")
        self.data[name] = cls
        self.settings[name] = settings if isinstance(settings, dict) else Path(settings)

    def files(self):
        """The files in which the registered classes are."""
        return sorted({inspect.getfile(self.data[name]) for name in self.settings})

    def dotted(self):
        """Dotted name of every class, without importing one."""
        return {name: home if isinstance(home, str) else dotted(home) for name, home in self.data.items()}


def dotted(cls):
    """The dotted name of a class, as pickles have it."""
    return f"{cls.__module__}.{cls.__name__}"


def import_file(file):
    """Import a Python file of the user's, which registers models or quantizers.

    Raises:
        TigerError: it does not exist, or its code raises.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise TigerError(f"plugin {file} does not exist: give the path of a Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TigerError(f"plugin {file}: {type(error).__name__}: {error}") from error
