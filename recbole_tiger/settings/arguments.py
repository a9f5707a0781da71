"""Parse the user's settings from the command line and YAML files, without evaluating them, and check their names."""

from pathlib import Path

import yaml

from recbole_tiger.errors import TigerError
from recbole_tiger.settings.properties import OLDER, Loader, known_settings, nearest, parse_yaml


def _glued(value):
    """Keys ``key:value`` of mappings within a value, where the space after the colon is missing."""
    if isinstance(value, list):
        return [key for one in value for key in _glued(one)]
    if not isinstance(value, dict):
        return []
    own = [key for key, inner in value.items() if inner is None and isinstance(key, str) and ":" in key]
    return own + [key for inner in value.values() for key in _glued(inner)]


def check_keys(settings, source):
    """Refuse unknown settings, and mappings without the space after the colon.

    Raises:
        TigerError: with the most similar known setting.
    """
    known = known_settings()
    for key, value in settings.items():
        if not isinstance(key, str):
            raise TigerError(
                f"{key!r} in {source} is not a name of a setting: YAML reads on, off, yes and no as truth values, and "
                f"digits as numbers; remove it"
            )
        if key in OLDER:
            raise TigerError(f"{key} in {source} is a setting of older versions of RecBole: give {OLDER[key]}")
        if glued := _glued(value):
            raise TigerError(f"{key} in {source}: {glued[0]!r} lacks the space after its colon, which YAML requires")
        if key in ("model", "dataset"):
            raise TigerError(f"{key} in {source} is not a setting but an argument of a command: see its --help")
        if key == "config_file":  # RecBole's list of settings has it
            raise TigerError(f"config_file in {source} is not read: give files of settings by --config_files=...")
        if key not in known:
            raise TigerError(f"unknown setting {key!r} in {source}{nearest(key, sorted(known))}")


def parse_arguments(arguments):
    """Parse ``--key=value`` arguments into settings; values are safe YAML and are never evaluated.

    Raises:
        TigerError: an argument has another form, is given twice, or is unknown.
    """
    settings = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise TigerError(f"cannot read the argument {argument!r}: settings are given as --key=value")
        if key in settings:
            raise TigerError(f"setting {key!r} is given twice on the command line")
        try:
            settings[key] = yaml.load(value, Loader=Loader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist, for example
            settings[key] = value
    check_keys(settings, "the command line")
    return settings


def read_yaml(file):
    """Read the mapping in a YAML file of the user; {} if the file is empty.

    Raises:
        TigerError: the file does not exist or holds something else.
    """
    if not Path(file).is_file():
        raise TigerError(f"config file {file} does not exist")
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TigerError(f"config file {file} is not UTF-8 text ({error}); save it as UTF-8") from error
    content = parse_yaml(text, file)
    if content is not None and not isinstance(content, dict):
        raise TigerError(f"config file {file} has to hold key: value lines")
    return content or {}


def read_config_files(files):
    """Merge the user's YAML files; later files override earlier ones."""
    settings = {}
    for file in files:
        content = read_yaml(file)
        check_keys(content, file)
        settings.update(content)
    return settings
