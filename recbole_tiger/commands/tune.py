"""``recbole-tiger tune``."""

import os
from importlib import metadata

from recbole_tiger.commands.shared import add_results_dir, warn_unread
from recbole_tiger.errors import TigerError, check_number
from recbole_tiger.settings.properties import model_of, property_files

SUMMARY = "Search settings with Ray Tune on validation, and test the winner"
EXAMPLE = "recbole-tiger tune --dataset=ml-100k --sweep=codebook --max_concurrent=2 --epochs=8 --valid_users=500"
SETTINGS = True


def add_arguments(parser):
    """Add the command's own arguments."""
    parser.add_argument(
        "--model", default="TIGER", help="a model of RecBole or of this package, or a recipe of one (default: %(default)s)"
    )
    parser.add_argument(
        "--sweep",
        default="codebook",
        help=f"search space: a .yaml file, or one of {', '.join(property_files('sweep'))} (default: %(default)s)",
    )
    parser.add_argument(
        "--num_samples",
        type=int,
        default=10,
        help="draws from the distributions for each point of the grid, or with hyperopt the number of trials; without "
        "distributions it has no effect (default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        choices=["random", "hyperopt"],
        default="random",
        help="how trials are drawn; hyperopt chooses by the scores of earlier trials (default: %(default)s)",
    )
    parser.add_argument(
        "--scheduler",
        choices=["asha", "none"],
        default="asha",
        help="asha stops trials that fall behind (default: %(default)s)",
    )
    parser.add_argument(
        "--grace_period", type=int, help="epochs before asha stops a trial (default: a quarter of the epochs, at least 1)"
    )
    parser.add_argument("--max_concurrent", type=int, default=1, help="number of trials at a time (default: %(default)s)")
    parser.add_argument(
        "--cpus_per_trial",
        type=int,
        help="cores and threads per trial (default: the largest node's divided by max_concurrent)",
    )
    parser.add_argument(
        "--gpus_per_trial",
        type=float,
        help="GPUs per trial, may be a fraction (default: this machine's divided by max_concurrent, at most 1)",
    )
    parser.add_argument("--ray_address", help="a Ray cluster to run on, or auto (default: this machine only)")
    parser.add_argument("--resume", action="store_true", help="continue a sweep that was killed; ended trials are kept")
    add_results_dir(parser, "folder of the sweep and its result file")


def _import_ray():
    """Refuse to start if Ray Tune is missing or has an unsupported version."""
    try:
        from recbole_tiger.runs import tuning  # noqa: F401
    except ImportError as error:
        if not (error.name or "").startswith("ray"):
            raise
        (wanted,) = [text for text in metadata.requires("recbole-tiger") if text.startswith("ray")]
        raise TigerError(f"tune needs {wanted}, but {error}: pip install '{wanted}'") from error


def execute(args, settings):
    """Run the trials that have not ended, test the winner, and print both tables."""
    for key in ("num_samples", "max_concurrent", "cpus_per_trial"):
        value = getattr(args, key)
        if value is not None and value < 1:
            raise TigerError(f"{key} has to be a positive whole number, not {value}")
    if args.gpus_per_trial is not None:
        check_number("gpus_per_trial", args.gpus_per_trial)
    model_of(args.model)  # refuse unknown models before the imports, which take seconds
    _import_ray()
    import torch

    from recbole_tiger.report.leaderboard import tables_of_runs
    from recbole_tiger.runs import experiment, sweep, tuning

    if args.ray_address:
        tuning.check_address(args.ray_address)
    if "gpu_id" not in settings:
        # RecBole hides all GPUs but those of gpu_id from a process, and Ray assigns the visible ones. Counting GPUs does not
        # initialise CUDA, after which hiding them would have no effect.
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        settings["gpu_id"] = seen if torch.cuda.device_count() else ""
    config = experiment.prepare(args.model, args.dataset, settings)
    warn_unread([args.model], settings)
    gpus = args.gpus_per_trial
    if gpus is None:
        gpus = min(1, torch.cuda.device_count() / args.max_concurrent)
    elif not args.ray_address and gpus > torch.cuda.device_count():
        raise TigerError(
            f"gpus_per_trial {gpus:g} is more than the {torch.cuda.device_count()} GPUs of this machine: lower it"
        )
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
        cpus_per_trial=args.cpus_per_trial,
        gpus_per_trial=gpus,
        ray_address=args.ray_address,
    )
    result = tuning.evaluate_winner(planned, args.results_dir)
    print(f"\n{args.dataset}, validation, * marks the winner\n")
    print(sweep.table(planned))
    if result is None:
        raise TigerError(f"no trial of the sweep completed; the reasons are above and in {planned.folder}/trials.csv")
    print("\nthe winner, test set:\n")
    print(tables_of_runs([result], args.results_dir))
    print(f"\ntables and pictures: {planned.folder}\ncheckpoint: {result['checkpoint']}")
