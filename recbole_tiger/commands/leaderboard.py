"""``recbole-tiger leaderboard``."""

import sys
from pathlib import Path

from recbole_tiger.commands.shared import add_html, add_results_dir, write, write_leaderboard_page
from recbole_tiger.errors import TigerError

SUMMARY = "Make tables and pictures of result files, with published numbers; nothing is run"
EXAMPLE = "recbole-tiger leaderboard --results_dir=results --format=markdown --plots=plots"
SETTINGS = False


def add_arguments(parser):
    """Add the command's own arguments."""
    add_results_dir(parser)
    parser.add_argument("--format", default="markdown", choices=["markdown", "latex", "csv"], help="(default: %(default)s)")
    parser.add_argument("--against", help="label of a row: add the differences from it, with p-values (paired bootstrap)")
    parser.add_argument("--plots", help="folder for pictures")
    parser.add_argument("--output", help="file for the tables (default: standard output)")
    add_html(parser, "sortable tables, charts, settings and differences")
    parser.add_argument(
        "--data_path", help="the folder of datasets, for the chart of --html by how often the target occurs in training"
    )


def execute(args):
    """Write the tables, draw the pictures and write the page of a folder of result files."""
    if args.data_path and not args.html:
        raise TigerError("--data_path is for --html: give --html=FILE too, or leave --data_path out")
    if args.data_path and not Path(args.data_path).is_dir():
        raise TigerError(f"data_path {args.data_path} is no folder: give the folder of datasets, or leave it out")
    from recbole_tiger.report.leaderboard import leaderboards
    from recbole_tiger.report.results import read_results

    results = read_results(args.results_dir)
    if not results:
        raise TigerError(f"{args.results_dir} holds no result files: make some with recbole-tiger run or compare")
    write(leaderboards(results, args.results_dir, args.format, args.against), args.output)
    if args.plots:
        from recbole_tiger.report.plots import plot

        for file in plot(results, args.results_dir, args.plots):
            print(f"plot: {file}", file=sys.stderr)
    if args.html:
        write_leaderboard_page(args.html, results, args.results_dir, args.data_path)
