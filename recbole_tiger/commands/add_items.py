"""``recbole-tiger add-items``."""

import textwrap

from recbole_tiger.commands.shared import add_plugins

SUMMARY = "Give new items semantic IDs, so that a trained model recommends them"
EXAMPLE = "recbole-tiger add-items --checkpoint=saved/TIGER-....pth --items=new.item --output=saved/more.pth"
SETTINGS = False
# Most new items in the printed table.
SHOWN = 10


def add_arguments(parser):
    """Add the command's own arguments."""
    add_plugins(parser)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of TIGER or VQRec, a .pth file that a run saved")
    parser.add_argument("--items", required=True, help="item file (*.item, RecBole's format) of the new items")
    parser.add_argument("--output", required=True, help="the checkpoint to write, with the old and the new items")
    parser.add_argument("--item_embeddings", help="file of the new items' embeddings, for a model trained on such a file")


def execute(args):
    """Write the checkpoint with the new items, and print their IDs."""
    from tabulate import tabulate

    from recbole_tiger.runs.recommend import Recommender

    before = Recommender.load(args.checkpoint, "cpu")
    after = before.add_items(args.items, args.item_embeddings)
    after.save(args.output)
    first = len(before.items)
    rows = [
        [
            after.items[i],
            tuple(after.semantic_ids.codes[i].tolist()),
            textwrap.shorten(after.titles[i], 60, placeholder="..."),
        ]
        for i in range(first, min(first + SHOWN, len(after.items)))
    ]
    print(tabulate(rows, ["item", "semantic ID", "title"], tablefmt="github", disable_numparse=True))
    print(f"\n{len(after.items) - first:,} new items after {first:,}: {args.output}")
