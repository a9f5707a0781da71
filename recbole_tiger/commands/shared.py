"""Functions shared by several commands."""

import sys
from functools import partial

from recbole_tiger.catalogue.quantizers import QUANTIZERS, unread_settings
from recbole_tiger.files import whole_file
from recbole_tiger.model import MODELS
from recbole_tiger.settings.properties import defaults_of, model_of, property_file, unread


def names(text):
    """Split names separated by commas into a list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def add_plugins(parser):
    """Add the argument ``--plugins``."""
    parser.add_argument(
        "--plugins",
        type=names,
        action="extend",
        default=[],
        help="Python files that register your own models or quantizers, separated by commas",
    )


def add_results_dir(parser, what="folder of the result files"):
    """Add the argument ``--results_dir``."""
    parser.add_argument("--results_dir", default="results", help=f"{what} (default: %(default)s)")


def add_html(parser, what):
    """Add the argument ``--html``."""
    parser.add_argument("--html", metavar="FILE", help=f"write {what}: one page that a browser opens from disk")


def write_leaderboard_page(file, results, folder, data_path):
    """Write the page of result files.

    Args:
        file: path of the page.
        results: dicts, as in result files. folder: the folder of these files.
        data_path: the folder of datasets, for the chart by how often the target occurs in training; None for no chart.
    """
    from recbole_tiger.report.html.leaderboard import write_leaderboard_page as write_page

    occurrences = None
    if data_path:
        from recbole_tiger.runs.occurrences import target_occurrences

        occurrences = partial(target_occurrences, data_path=data_path)
    write_page(file, results, folder, occurrences)


def _unread(model, settings):
    """The settings without effect on a model, by what does not read them: the model, or its quantizer."""
    found = dict.fromkeys(unread(model, settings), model)
    if model_of(model) in MODELS:
        config = {**defaults_of(model_of(model)), **property_file("recipe", model), **settings}
        if str(config["quantizer"]) in QUANTIZERS:
            found |= dict.fromkeys(unread_settings(config, settings), config["quantizer"])
    return found


def warn_unread(models, settings):
    """Warn about settings that have no effect on any of the models.

    Raises:
        TigerError: there is no such model.
    """
    found = [_unread(model, settings) for model in models]
    by_reader = {}
    for key in sorted(set.intersection(*map(set, found))) if found else ():
        by_reader.setdefault(" or ".join(dict.fromkeys(one[key] for one in found)), []).append(key)
    for readers, keys in by_reader.items():
        print(f"recbole-tiger: warning: settings without effect on {readers}: {', '.join(keys)}", file=sys.stderr)


def write(text, output):
    """Write text to a file, or to standard output if ``output`` is None."""
    if output:
        with whole_file(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
