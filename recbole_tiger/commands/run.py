"""``recbole-tiger run``."""

from recbole_tiger.commands.shared import add_html, add_results_dir, warn_unread, write_leaderboard_page
from recbole_tiger.settings.properties import model_of

SUMMARY = "Train and test one model"
EXAMPLE = "recbole-tiger run --model=TIGER --dataset=ml-100k --epochs=3"
SETTINGS = True


def add_arguments(parser):
    """Add the command's own arguments."""
    parser.add_argument("--model", required=True, help="a model of RecBole or of this package, or a recipe of one")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="read the result of the same run if it finished; continue a killed run of TIGER or VQRec from its last epoch",
    )
    add_results_dir(parser)
    add_html(parser, "the result, with its charts and settings")


def execute(args, settings):
    """Train and test a model, and print its row and the paths of its files."""
    model_of(args.model)  # refuse unknown models before the imports, which take seconds
    from recbole_tiger.report.leaderboard import tables_of_runs
    from recbole_tiger.runs import experiment

    config = experiment.prepare(args.model, args.dataset, {**settings, **({"resume": True} if args.resume else {})})
    warn_unread([args.model], settings)
    file = experiment.result_path(config, args.results_dir)  # some models write into their settings as they run
    run = experiment.run_or_read if config["resume"] else experiment.run
    result = run(config, args.results_dir)
    print()
    print(tables_of_runs([result], args.results_dir))
    print(f"\nresult: {file}\ncheckpoint: {result['checkpoint']}")
    if args.html:
        write_leaderboard_page(args.html, [result], args.results_dir, settings.get("data_path", "dataset"))
