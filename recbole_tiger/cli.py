"""The command line: ``recbole-tiger`` with one of COMMANDS."""

import argparse
import errno
import io
import os
import signal
import sys
import threading
import warnings

import shtab

from recbole_tiger.commands import (
    add_items,
    compare,
    datasets,
    download,
    leaderboard,
    models,
    recommend,
    run,
    settings,
    tokenize,
    tune,
)
from recbole_tiger.commands.shared import add_plugins, names
from recbole_tiger.errors import TigerError
from recbole_tiger.files import check_writable
from recbole_tiger.registry import import_file
from recbole_tiger.settings.arguments import parse_arguments, read_config_files
from recbole_tiger.version import __version__

COMMANDS = {
    "run": run,
    "compare": compare,
    "tokenize": tokenize,
    "tune": tune,
    "recommend": recommend,
    "add-items": add_items,
    "leaderboard": leaderboard,
    "download": download,
    "models": models,
    "datasets": datasets,
    "settings": settings,
}
# Errors of writing only.
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SETTINGS_HELP = "Give any setting, of RecBole or listed by recbole-tiger settings MODEL, as --key=value; values are YAML."


def make_parser():
    """Make the parser of all commands; arguments that it leaves over are settings if the command takes them."""
    parser = argparse.ArgumentParser(
        prog="recbole-tiger", description="TIGER and the models of RecBole.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    shtab.add_argument_to(parser, "--print-completion", help="print a script that completes commands and options")
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=f"{command.SUMMARY}. {SETTINGS_HELP if command.SETTINGS else ''}",
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if command.SETTINGS:
            add_plugins(sub)
            sub.add_argument(
                "--dataset", required=True, help="name of a dataset, a folder under data_path; a,b mixes several into one"
            )
            sub.add_argument(
                "--config_files",
                type=names,
                action="extend",
                default=[],
                help="YAML files of settings, separated by commas; later ones win",
            )
        command.add_arguments(sub)
        for action in sub._actions:
            if action.nargs != 0 and action.choices is None:
                action.complete = shtab.FILE
    return parser


def _check_arguments(argv):
    """Refuse arguments that this locale cannot decode, because they could not be written to files later."""
    for argument in argv:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise TigerError(f"the argument {argument!a} is not text in this locale: set PYTHONUTF8=1 for UTF-8")


def _execute(args, rest):
    command = COMMANDS[args.command]
    for file in getattr(args, "plugins", []):
        import_file(file)
    settings = []
    if command.SETTINGS:
        settings = [{**read_config_files(args.config_files), **parse_arguments(rest)}]
    elif rest:
        raise TigerError(f"unknown argument {rest[0]!r} of {args.command}; see --help")
    page = getattr(args, "html", None)
    for file in filter(None, (page, getattr(args, "output", None))):
        check_writable(file)
    command.execute(args, *settings)
    if page:
        print(f"page: {page}", file=sys.stderr)


def main(argv=None):
    """Entry point; returns the exit status."""
    warnings.simplefilter("ignore", FutureWarning)  # for developers; who types a command cannot act on them
    unwritten = []  # errors of tensorboard's thread, for one line at the end instead of a traceback

    def thread_failed(failure):
        if isinstance(failure.exc_value, OSError):
            unwritten.append(failure.exc_value)
        else:
            threading.__excepthook__(failure)

    threading.excepthook = thread_failed
    terminated = []

    def terminate(number, frame):
        terminated.append(number)
        raise KeyboardInterrupt  # partly written files are removed on the way out; Ray passes no other exception on

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may be unable to show a title
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)
        args, rest = make_parser().parse_known_args(argv)
        _check_arguments(sys.argv[1:] if argv is None else argv)
        _execute(args, rest)
        sys.stdout.flush()
    except TigerError as error:
        print(f"recbole-tiger: error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        if error.name != "recbole":
            raise
        print(f"recbole-tiger: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # for example `| head`; the rest of the buffer is not wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        remedy = "; make room or choose another folder" if error.errno in OF_THE_DISK else ""
        print(f"recbole-tiger: error: {reason}{remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"recbole-tiger: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        return 143 if terminated else 130
    for error in unwritten:
        print(f"recbole-tiger: warning: the tensorboard log is cut short: {error}", file=sys.stderr)
    return 0
