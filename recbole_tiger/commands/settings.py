"""``recbole-tiger settings``."""

import json

from recbole_tiger.commands.shared import add_plugins
from recbole_tiger.model import MODELS
from recbole_tiger.settings.properties import (
    catalogue_settings,
    described,
    model_of,
    property_file,
    protocol_settings,
    recbole_folder,
    recipes,
    settings_of,
)

SUMMARY = "List settings with their defaults"
EXAMPLE = "recbole-tiger settings TIGER-text"
SETTINGS = False


def add_arguments(parser):
    """Add the command's own arguments."""
    add_plugins(parser)
    parser.add_argument("name", nargs="?", help="a model or a recipe (default: the settings of all models)")


def execute(args):
    """Print a line for each setting: its name, default, kind and description."""
    from tabulate import tabulate

    of_every_model = protocol_settings()
    if args.name is None:
        shared = catalogue_settings()
        groups = {"of every model": of_every_model, "of item text and semantic IDs": shared}
        for model in MODELS:
            groups[f"of {model}"] = {
                key: setting for key, setting in settings_of(model).items() if setting != shared.get(key)
            }
    else:
        model = model_of(args.name)
        file = recbole_folder() / f"properties/model/{model}.yaml"  # models without settings have none
        own = settings_of(model) if model in MODELS else described(file) if file.is_file() else {}
        common = {key: value for key, value in of_every_model.items() if key not in own}
        groups = {f"of {model}": own, "of every model": common}
    chosen = property_file("recipe", args.name) if args.name in recipes() else {}
    for title, settings in groups.items():
        rows = [
            [key, json.dumps(chosen.get(key, setting.default)), setting.kind or "", setting.text]
            for key, setting in settings.items()
        ]
        print(f"{title}:\n{tabulate(rows, tablefmt='plain', disable_numparse=True)}\n")
