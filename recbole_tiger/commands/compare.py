"""``recbole-tiger compare``."""

from recbole_tiger.commands.shared import add_html, add_results_dir, names, warn_unread, write_leaderboard_page
from recbole_tiger.settings.properties import model_of

SUMMARY = "Run several models under one protocol and print a leaderboard"
EXAMPLE = "recbole-tiger compare --models=GRU4Rec,SASRec,BERT4Rec,TIGER --dataset=ml-100k"
SETTINGS = True


def add_arguments(parser):
    """Add the command's own arguments."""
    parser.add_argument(
        "--models", required=True, type=names, action="extend", help="models and recipes, separated by commas"
    )
    add_results_dir(parser)
    add_html(parser, "sortable tables, charts, settings and differences")


def execute(args, settings):
    """Run the models that have no result yet, and print the table and the paths of the checkpoints."""
    for name in args.models:
        model_of(name)
    from recbole_tiger.report.leaderboard import tables_of_runs
    from recbole_tiger.runs import experiment

    warn_unread(args.models, settings)
    results = experiment.compare(args.models, args.dataset, settings, args.results_dir)
    modes = sorted({result["settings"]["eval_args"]["mode"]["test"] for result in results})
    print(f"\n{args.dataset}, test set, {'/'.join(modes)} ranking, best validation epoch\n")
    print(tables_of_runs(results, args.results_dir), end="\n\n")
    for result in results:
        print(f"checkpoint of {result['label']}: {result['checkpoint']}")
    if args.html:
        write_leaderboard_page(args.html, results, args.results_dir, settings.get("data_path", "dataset"))
