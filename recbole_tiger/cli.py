"""The command line: recbole-tiger run | compare | tokenize | tune | recommend | leaderboard | download."""

import argparse
import json
import os
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import torch
from tabulate import tabulate

from recbole_tiger import experiment, sweep, tuning
from recbole_tiger.dataset import TIGERDataset
from recbole_tiger.download import AMAZON, OFFICIAL, download_amazon, ensure_dataset
from recbole_tiger.errors import TigerError
from recbole_tiger.files import make_folder, whole_file
from recbole_tiger.leaderboard import leaderboard, leaderboards, rows_of
from recbole_tiger.plots import plot
from recbole_tiger.recommend import Recommender, read_histories, read_history
from recbole_tiger.results import read_results
from recbole_tiger.settings import make_config, model_of, parse_arguments, read_config_files, unread
from recbole_tiger.version import __version__

SETTINGS_HELP = "Any setting of RecBole or of TIGER is given as --key=value; values are YAML."


def _list(text):
    return [part.strip() for part in text.split(",") if part.strip()]


def _parser():
    parser = argparse.ArgumentParser(
        prog="recbole-tiger", description="TIGER beside the models of RecBole.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    names = "run | compare | tokenize | tune | recommend | leaderboard | download"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)

    def command(name, summary, example, settings=True):
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}. {SETTINGS_HELP if settings else ''}",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if settings:
            sub.add_argument("--dataset", required=True, help="name of a dataset: the folder under data_path")
            sub.add_argument(
                "--config_files", type=_list, default=[], help="YAML files of settings, separated by commas; later ones win"
            )
        return sub

    run = command("run", "Train and test one model", "recbole-tiger run --model=TIGER --dataset=ml-100k --epochs=3")
    run.add_argument("--model", required=True, help="a model of RecBole, TIGER, or a recipe of it")
    run.add_argument(
        "--resume",
        action="store_true",
        help="read the result of the same run, or where TIGER was killed go on from its last epoch",
    )
    run.add_argument("--results_dir", default="results", help="folder of the result files (default: %(default)s)")

    compare = command(
        "compare",
        "Run several models under one protocol and print a leaderboard",
        "recbole-tiger compare --models=GRU4Rec,SASRec,BERT4Rec,TIGER --dataset=ml-100k",
    )
    compare.add_argument("--models", required=True, type=_list, help="models and recipes, separated by commas")
    compare.add_argument("--results_dir", default="results", help="folder of the result files (default: %(default)s)")

    tokenize = command(
        "tokenize",
        "Make the semantic IDs of a dataset and show how well they tell items apart",
        "recbole-tiger tokenize --dataset=ml-100k --quantizer=rq_kmeans --output=ids.tsv",
    )
    tokenize.add_argument("--model", default="TIGER", help="TIGER or a recipe of it (default: %(default)s)")
    tokenize.add_argument("--output", help="write the semantic IDs to this file")

    tune = command(
        "tune",
        "Search settings by Ray Tune; the winner on validation is tested",
        "recbole-tiger tune --dataset=ml-100k --sweep=codebook --max_concurrent=2 --epochs=8 --valid_users=500",
    )
    tune.add_argument("--model", default="TIGER", help="a model of RecBole, TIGER, or a recipe of it (default: %(default)s)")
    tune.add_argument(
        "--sweep",
        default="codebook",
        help=f"search space: a .yaml file, or one of {', '.join(sweep.shipped())} (default: %(default)s)",
    )
    tune.add_argument(
        "--num_samples",
        type=int,
        default=10,
        help="draws from the distributions, for each point of the grid (default: %(default)s)",
    )
    tune.add_argument(
        "--search",
        choices=["random", "hyperopt"],
        default="random",
        help="how trials are drawn; hyperopt chooses by the scores of earlier trials (default: %(default)s)",
    )
    tune.add_argument(
        "--scheduler",
        choices=["asha", "none"],
        default="asha",
        help="asha stops trials that fall behind (default: %(default)s)",
    )
    tune.add_argument(
        "--grace_period", type=int, help="epochs before asha stops a trial (default: a quarter of the epochs, at least 1)"
    )
    tune.add_argument("--max_concurrent", type=int, default=1, help="trials at a time (default: %(default)s)")
    tune.add_argument(
        "--cpus_per_trial", type=int, help="cores of a trial, and its threads (default: this machine's among max_concurrent)"
    )
    tune.add_argument(
        "--gpus_per_trial",
        type=float,
        help="GPUs of a trial, or a share of one (default: this machine's among max_concurrent, at most 1)",
    )
    tune.add_argument("--ray_address", help="a Ray cluster to run on, or auto (default: this machine alone)")
    tune.add_argument("--resume", action="store_true", help="go on with a sweep that was killed; ended trials are kept")
    tune.add_argument(
        "--results_dir", default="results", help="folder of the sweep and its result file (default: %(default)s)"
    )

    recommend = command(
        "recommend",
        "Recommend the next items after a history",
        "recbole-tiger recommend --checkpoint=saved/TIGER-....pth --history=50,172,181",
        settings=False,
    )
    recommend.add_argument("--checkpoint", required=True, help="a TIGER-*.pth that a run saved")
    which = recommend.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--history",
        type=read_history,
        help="item tokens, oldest first, separated by commas, in double quotes if with commas",
    )
    which.add_argument(
        "--histories", help="file with a history a line, written as for --history; the answer is a line of JSON each"
    )
    recommend.add_argument("--k", type=int, default=10, help="length of the list (default: %(default)s)")
    recommend.add_argument("--beam_size", type=int, help="width of the beam")
    recommend.add_argument("--scoring", default="beam", help="beam, or exact to score the whole catalogue")
    recommend.add_argument("--exclude_history", action="store_true", help="leave out the items of the history")
    recommend.add_argument("--user", help="user token, for a model trained with user tokens")
    recommend.add_argument("--output", help="file for the JSON lines of --histories (default: standard output)")

    board = command(
        "leaderboard",
        "Make tables and pictures of result files, beside published numbers; nothing is run",
        "recbole-tiger leaderboard --results_dir=results --format=markdown --plots=plots",
        settings=False,
    )
    board.add_argument("--results_dir", default="results", help="folder of the result files (default: %(default)s)")
    board.add_argument("--format", default="markdown", choices=["markdown", "latex", "csv"], help="(default: %(default)s)")
    board.add_argument("--against", help="label of a row: tell the differences to it, with p-values (paired bootstrap)")
    board.add_argument("--plots", help="folder for pictures")
    board.add_argument("--output", help="file for the tables (default: standard output)")

    download = command(
        "download",
        "Fetch an Amazon dataset of the paper from its official home, or a dataset of RecBole's list",
        "recbole-tiger download --dataset=amazon-beauty",
        settings=False,
    )
    download.add_argument("--dataset", required=True, help=f"{', '.join(AMAZON)}, or a name of RecBole's list")
    download.add_argument("--data_path", default="dataset", help="the folder of datasets (default: %(default)s)")
    download.add_argument("--source", help="URL or folder that holds the original files of an Amazon dataset")
    return parser


def _tell_unread(args, settings):
    names = unread(args.model, settings)
    if names:
        of = "other models" if model_of(args.model) == "TIGER" else "TIGER alone"
        print(f"recbole-tiger: warning: of {of}, without effect on {args.model}: {', '.join(names)}", file=sys.stderr)


def _run(args, settings):
    _tell_unread(args, settings)
    config = experiment.prepare(args.model, args.dataset, {**settings, **({"resume": True} if args.resume else {})})
    file = experiment.result_path(config, args.results_dir)  # some models write into their settings as they run
    run = experiment.run_or_read if config["resume"] else experiment.run
    result = run(config, args.results_dir)
    print()
    print(leaderboard(rows_of([result], args.results_dir)))
    print(f"\nresult: {file}\ncheckpoint: {result['checkpoint']}")


def _compare(args, settings):
    results = experiment.compare(args.models, args.dataset, settings, args.results_dir)
    modes = sorted({result["settings"]["eval_args"]["mode"]["test"] for result in results})
    print(f"\n{args.dataset}, test set, {'/'.join(modes)} ranking, best validation epoch\n")
    print(leaderboard(rows_of(results, args.results_dir)), end="\n\n")
    for result in results:
        print(f"checkpoint of {result['label']}: {result['checkpoint']}")


def _tune(args, settings):
    for key in ("num_samples", "max_concurrent"):
        if getattr(args, key) < 1:
            raise TigerError(f"{key} has to be a positive whole number, not {getattr(args, key)}")
    _tell_unread(args, settings)
    if args.ray_address:
        tuning.check_address(args.ray_address)
    if "gpu_id" not in settings:
        # RecBole lets a process see the GPUs of its gpu_id alone, and Ray gives out those. That they are counted starts none
        # of them: a process that has started one sees all for good.
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        settings["gpu_id"] = seen if torch.cuda.device_count() else ""
    config = experiment.prepare(args.model, args.dataset, settings)
    cpus, gpus = args.cpus_per_trial, args.gpus_per_trial
    planned = sweep.plan(
        args.model,
        args.dataset,
        settings,
        config,
        sweep=args.sweep,
        search=args.search,
        num_samples=args.num_samples,
        scheduler=args.scheduler,
        grace_period=args.grace_period,
        results_dir=args.results_dir,
    )
    tuning.tune_sweep(
        planned,
        resume=args.resume,
        scheduler=args.scheduler,
        grace_period=max(1, planned.epochs // 4) if args.grace_period is None else args.grace_period,
        max_concurrent=args.max_concurrent,
        cpus_per_trial=max(1, os.cpu_count() // args.max_concurrent) if cpus is None else cpus,
        gpus_per_trial=min(1, torch.cuda.device_count() / args.max_concurrent) if gpus is None else gpus,
        ray_address=args.ray_address,
    )
    result = tuning.evaluate_winner(planned, args.results_dir)
    print(f"\n{args.dataset}, validation, * the winner\n")
    print(sweep.table(planned))
    if result is None:
        raise TigerError(f"no trial of the sweep completed; the reasons are above and in {planned.folder}/trials.csv")
    print("\nthe winner, test set:\n")
    print(leaderboard(rows_of([result], args.results_dir)))
    print(f"\ntables and pictures: {planned.folder}\ncheckpoint: {result['checkpoint']}")


def _tokenize(args, settings):
    config = experiment.prepare(args.model, args.dataset, settings)
    if config["model"] != "TIGER":
        raise TigerError(f"model {args.model} has no semantic IDs: give TIGER or a recipe of it")
    if args.output:
        if Path(args.output).is_dir():
            raise TigerError(f"--output={args.output} is a folder: name a file for the semantic IDs")
        make_folder(Path(args.output).parent)
    catalogue = TIGERDataset(config).catalogue
    ids = catalogue.semantic_ids
    statistics = ids.statistics()
    levels = [
        [level + 1, *(statistics[name][level] for name in ("used_codes", "perplexity", "distinct_prefixes"))]
        for level in range(ids.depth)
    ]
    print()
    print(tabulate(levels, ["level", "used codes", "perplexity", "distinct prefixes"], tablefmt="github"))
    overall = [[name, statistics[name]] for name in ("items", "distinct_ids", "collision_rate", "largest_group")]
    print()
    print(tabulate(overall, tablefmt="plain"))
    print("\nitems that share a prefix:")
    print(tabulate(_examples(catalogue), ["semantic ID", "item", "title"], tablefmt="github"))
    if args.output:
        ids.save(args.output)
        print(f"\nsemantic IDs: {args.output}")


def _examples(catalogue, groups=3, members=4):
    """Rows of items of the largest groups that share their first codes (all but the last of the depth)."""
    shared = max(1, catalogue.semantic_ids.depth - 1)
    by_prefix = {}
    for i, codes in enumerate(catalogue.semantic_ids.codes.tolist()):
        by_prefix.setdefault(tuple(codes[:shared]), []).append(i)
    rows = []
    for group in sorted(by_prefix.values(), key=len, reverse=True)[:groups]:
        for i in group[:members]:
            codes = tuple(catalogue.semantic_ids.codes[i].tolist())
            rows.append([codes, catalogue.items[i], textwrap.shorten(catalogue.titles[i], 60, placeholder="...")])
    return rows


def _recommend(args):
    if args.output and args.histories is None:
        raise TigerError("--output is for --histories; one --history is answered by a table")
    recommender = Recommender.load(args.checkpoint)
    options = {
        "k": args.k,
        "beam_size": args.beam_size,
        "scoring": args.scoring,
        "exclude_history": args.exclude_history,
    }
    if args.histories is None:
        found = recommender.recommend(args.history, user=args.user, **options)
        rows = [[i, row["item"], row["title"], f"{row['score']:.4f}"] for i, row in enumerate(found, start=1)]
        print(tabulate(rows, ["", "item", "title", "log-probability"], tablefmt="github", disable_numparse=True))
        return
    histories = read_histories(args.histories)
    if not histories:
        raise TigerError(f"{args.histories} has no histories: one a line, items separated by commas")
    found = recommender.recommend(histories, user=args.user, **options)
    lines = "".join(
        json.dumps({"history": history, "recommendations": rows}, ensure_ascii=False) + "\n"
        for history, rows in zip(histories, found, strict=True)
    )
    _write(lines, args.output)


def _write(text, output):
    """To a file, or to standard output where none is named."""
    if output:
        with whole_file(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def _leaderboard(args):
    results = read_results(args.results_dir)
    if not results:
        raise TigerError(f"{args.results_dir} holds no result files: make some by recbole-tiger run or compare")
    _write(leaderboards(results, args.results_dir, args.format, args.against), args.output)
    if args.plots:
        for file in plot(results, args.results_dir, args.plots):
            print(f"plot: {file}", file=sys.stderr)


def _download(args):
    if args.dataset in AMAZON:
        counts = download_amazon(args.dataset, args.data_path, args.source or OFFICIAL, show_progress=True)
        print(f"{args.dataset}: {counts}, as published; in {args.data_path}")
        return
    if args.source:
        raise TigerError(f"--source is for {', '.join(AMAZON)}; leave it out, {args.dataset} is fetched by RecBole")
    config = make_config("Pop", args.dataset, {"data_path": args.data_path})
    ensure_dataset(config)
    print(f"{args.dataset}: in {config['data_path']}")


def main(argv=None):
    """Entry point; returns the exit status."""
    warnings.simplefilter("ignore", FutureWarning)  # RecBole's use of pandas, dozens a run
    unwritten = []  # by tensorboard's thread: one line at the end, not a traceback in the middle

    def thread_failed(failure):
        if isinstance(failure.exc_value, OSError):
            unwritten.append(failure.exc_value)
        else:
            threading.__excepthook__(failure)

    threading.excepthook = thread_failed
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    try:
        if "config_files" in args:
            settings = {**read_config_files(args.config_files), **parse_arguments(rest)}
            {"run": _run, "compare": _compare, "tokenize": _tokenize, "tune": _tune}[args.command](args, settings)
        elif rest:
            raise TigerError(f"unknown argument {rest[0]!r} of {args.command}; see --help")
        else:
            {"recommend": _recommend, "leaderboard": _leaderboard, "download": _download}[args.command](args)
    except TigerError as error:
        print(f"recbole-tiger: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"recbole-tiger: error: {reason}; make room or choose another folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("recbole-tiger: interrupted", file=sys.stderr)
        return 130
    for error in unwritten:
        print(f"recbole-tiger: warning: the tensorboard log is cut short: {error}", file=sys.stderr)
    return 0
