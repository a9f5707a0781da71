"""``recbole-tiger leaderboard``."""

import sys

from recbole_tiger.commands.shared import add_results_dir, write
from recbole_tiger.errors import TigerError

SUMMARY = "Make tables and pictures of result files, beside published numbers; nothing is run"
EXAMPLE = "recbole-tiger leaderboard --results_dir=results --format=markdown --plots=plots"
SETTINGS = False


def add_arguments(parser):
    """Add the command's own arguments."""
    add_results_dir(parser)
    parser.add_argument("--format", default="markdown", choices=["markdown", "latex", "csv"], help="(default: %(default)s)")
    parser.add_argument("--against", help="label of a row: tell the differences to it, with p-values (paired bootstrap)")
    parser.add_argument("--plots", help="folder for pictures")
    parser.add_argument("--output", help="file for the tables (default: standard output)")


def execute(args):
    """Write the tables and draw the pictures of a folder of result files."""
    from recbole_tiger.report.leaderboard import leaderboards
    from recbole_tiger.report.results import read_results

    results = read_results(args.results_dir)
    if not results:
        raise TigerError(f"{args.results_dir} holds no result files: make some by recbole-tiger run or compare")
    write(leaderboards(results, args.results_dir, args.format, args.against), args.output)
    if args.plots:
        from recbole_tiger.report.plots import plot

        for file in plot(results, args.results_dir, args.plots):
            print(f"plot: {file}", file=sys.stderr)
