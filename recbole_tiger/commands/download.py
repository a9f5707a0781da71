"""``recbole-tiger download``."""

from recbole_tiger.catalogue.datasets import DATASETS, OFFICIAL
from recbole_tiger.errors import TigerError

SUMMARY = "Fetch an Amazon dataset of the paper from its official site, or a dataset in RecBole's list"
EXAMPLE = "recbole-tiger download --dataset=amazon-beauty"
SETTINGS = False


def add_arguments(parser):
    """Add the command's own arguments."""
    parser.add_argument("--dataset", required=True, help=f"{', '.join(DATASETS)}, or a name in RecBole's list")
    parser.add_argument("--data_path", default="dataset", help="the folder of datasets (default: %(default)s)")
    parser.add_argument("--source", help="URL or folder that holds the original files of an Amazon dataset")


def execute(args):
    """Fetch a dataset, unless it is there already."""
    from recbole_tiger.catalogue.download import download_amazon, ensure_dataset

    if args.dataset in DATASETS:
        counts = download_amazon(args.dataset, args.data_path, args.source or OFFICIAL, show_progress=True)
        print(f"{args.dataset}: {counts}, as published; in {args.data_path}")
        return
    if args.source:
        raise TigerError(f"--source is for {', '.join(DATASETS)}; leave it out, because RecBole fetches {args.dataset}")
    from recbole_tiger.settings.config import make_config

    config = make_config("Pop", args.dataset, {"data_path": args.data_path})
    ensure_dataset(config)
    print(f"{args.dataset}: in {config['data_path']}")
