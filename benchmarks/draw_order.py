"""Copy a dataset with the order of interactions of one day drawn at random, to train and test models on it.

order_of_ties.py measures what a model trained on the file's order loses without it; this copy shows how good a model is that
never saw that order.

python benchmarks/draw_order.py --dataset=amazon-beauty --data_path=dataset --output_path=drawn
recbole-tiger run --model=TIGER-text --dataset=amazon-beauty --data_path=drawn
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_tiger.catalogue.download import DAY
from recbole_tiger.catalogue.item_text import header, read_columns
from recbole_tiger.errors import TigerError
from recbole_tiger.files import whole_folder
from recbole_tiger.runs import experiment


def in_time(table, user, time):
    """Sort interactions by the users' first appearance, and each user's interactions by time (columns of strings)."""
    return table.iloc[np.lexsort((table[time].astype(float), pd.factorize(table[user])[0]))].reset_index(drop=True)


def drawn(table, user, time, rng):
    """Shuffle interactions sorted by :func:`in_time` within each day of a user; the times stay in place.

    Args:
        table: pandas.DataFrame of strings.
        user, time: names of columns, the second of seconds.
        rng: NumPy's generator.
    """
    days = table[time].astype(float) // DAY
    order = np.lexsort((rng.random(len(table)), days, pd.factorize(table[user])[0]))
    return table.iloc[order].reset_index(drop=True).assign(**{time: table[time]})


def main(argv=None):
    """Write the copy and print how many interactions changed places."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", default="dataset/", help="parent folder of the dataset (default: dataset/)")
    parser.add_argument("--output_path", required=True, help="parent folder of the copy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    output = Path(args.output_path) / args.dataset
    try:
        config = experiment.prepare("Pop", args.dataset, {"data_path": args.data_path})
        if output.exists():
            raise TigerError(f"{output} exists: remove it or choose another --output_path")
        folder = Path(config["data_path"])
        file = folder / f"{args.dataset}.inter"
        fields = header(file, config)
        user, time, item = config["USER_ID_FIELD"], config["TIME_FIELD"], config["ITEM_ID_FIELD"]
        table = in_time(read_columns(file, fields, config), user, time)
        copy = drawn(table, user, time, np.random.default_rng(args.seed))
        with whole_folder(output) as temporary:
            for other in set(folder.glob(f"{args.dataset}.*")) - {file}:
                shutil.copyfile(other, temporary / other.name)
            typed = [f"{name}:{kind}" for name, kind in fields.items()]
            copy.to_csv(
                temporary / file.name, header=typed, index=False, sep=config["field_separator"], encoding=config["encoding"]
            )
    except TigerError as error:
        print(f"draw_order.py: error: {error}", file=sys.stderr)
        return 2
    moved = copy[item] != table[item]
    print(f"{output}: {moved.sum():,} of {len(moved):,} interactions changed places")
    return 0


if __name__ == "__main__":
    sys.exit(main())
