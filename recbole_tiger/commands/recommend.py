"""``recbole-tiger recommend``."""

import csv
import json
import sys
import textwrap
from pathlib import Path

from recbole_tiger.commands.shared import add_html, add_plugins, write
from recbole_tiger.errors import TigerError
from recbole_tiger.files import read_lines

SUMMARY = "Recommend the next items after a history"
EXAMPLE = "recbole-tiger recommend --checkpoint=saved/TIGER-....pth --history=50,172,181"
SETTINGS = False


def read_history(text):
    """Parse item tokens separated by commas, oldest first; a token with a comma has to be in double quotes.

    Raises:
        TigerError: the text has a line break or another character that cannot be in a token.
    """
    try:
        row = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        shown = textwrap.shorten(text, 40, placeholder="...")
        raise TigerError(f"history {shown!r} cannot be read ({error}): separate its items by commas") from error
    return [item.strip() for item in row if item.strip()]


def read_histories(file):
    """Read the histories in a file: one per line, in the form of :func:`read_history`.

    Raises:
        TigerError: the file does not exist, is not UTF-8 text, or has a history that cannot be read.
    """
    return [read_history(line) for line in _lines(file, "histories")]


def _lines(file, what):
    path = Path(file)
    if not path.is_file():
        raise TigerError(f"file of {what} {path} does not exist")
    try:
        return read_lines(path)
    except UnicodeDecodeError as error:
        raise TigerError(f"file of {what} {path} is not UTF-8 text ({error}); save it as UTF-8") from error


def add_arguments(parser):
    """Add the command's own arguments."""
    add_plugins(parser)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of TIGER or VQRec, a .pth file that a run saved")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--history", help="item tokens, oldest first, separated by commas; tokens with commas in double quotes"
    )
    which.add_argument(
        "--histories", help="file with one history per line, in the form of --history; the output is one JSON line for each"
    )
    parser.add_argument("--k", type=int, default=10, help="length of the list (default: %(default)s)")
    parser.add_argument("--beam_size", type=int, help="width of the beam")
    parser.add_argument("--scoring", help="for TIGER: beam (default), or exact to score the whole catalogue")
    parser.add_argument("--exclude_history", action="store_true", help="leave out the items of the history")
    parser.add_argument("--among", help="file with the items allowed in a list, one per line, for example those in stock")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=WORDS",
        help="allow only items with these words in a column of the item file, like 'categories=Hair Care'; may be repeated",
    )
    parser.add_argument("--temperature", type=float, help="draw items at this temperature instead of taking the best")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    parser.add_argument("--user", help="user token, for a model trained with user tokens")
    parser.add_argument("--output", help="file for the JSON lines of --histories (default: standard output)")
    add_html(parser, "histories and lists with titles, semantic IDs and the log-probability of each level")


def execute(args):
    """Print a table for one history or write a line of JSON for each of several, and write the page."""
    if args.output and args.histories is None:
        raise TigerError("--output is for --histories: leave it out, because --history prints a table")
    from tabulate import tabulate

    from recbole_tiger.report.html.recommendations import check_rows, write_recommendations_page
    from recbole_tiger.runs.recommend import Recommender

    histories = read_histories(args.histories) if args.history is None else [read_history(args.history)]
    if not histories:
        raise TigerError(f"{args.histories} has no histories: write one per line, items separated by commas")
    if args.html and args.history is None:
        check_rows(histories, args.k)
    recommender = Recommender.load(args.checkpoint)
    among = None if args.among is None else [line for line in _lines(args.among, "items") if line]
    for condition in args.where:
        column, equals, words = condition.partition("=")
        if not equals:
            raise TigerError(f"--where={condition} is not a condition: give it in the form --where='categories=Hair Care'")
        others = set(recommender.items) - set(recommender.items_where(column, words))  # unknown items stay, to be refused
        among = [item for item in (recommender.items if among is None else among) if item not in others]
        if not among:
            raise TigerError(f"no item fits --where={condition} and the conditions before it: leave one out")
    options = {
        "k": args.k,
        "beam_size": args.beam_size,
        "scoring": args.scoring,
        "exclude_history": args.exclude_history,
        "among": among,
        "temperature": args.temperature,
        "seed": args.seed,
    }
    if args.histories is None:
        found = [recommender.recommend(histories[0], user=args.user, **options)]
        rows = [[i, row["item"], row["title"], f"{row['score']:.4f}"] for i, row in enumerate(found[0], start=1)]
        print(tabulate(rows, ["", "item", "title", "log-probability"], tablefmt="github", disable_numparse=True))
    else:
        found = recommender.recommend(histories, user=args.user, **options)
        ascii_only = not args.output and (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8"
        lines = "".join(
            json.dumps({"history": history, "recommendations": rows}, ensure_ascii=ascii_only) + "\n"
            for history, rows in zip(histories, found, strict=True)
        )
        write(lines, args.output)
    if args.html:
        write_recommendations_page(args.html, recommender, histories, found, args.user)
