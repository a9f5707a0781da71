"""How much memory does recommending take? Bytes per item, by the size of the catalogue.

pip install faiss-cpu
python benchmarks/index_memory.py --output=benchmarks/results/index_memory.json --plot=benchmarks/results/index_memory.png

TIGER keeps codes, trie, and weights whose number does not depend on the items; TIGER-text also keeps the text embedding
of every item and an embedding of every prefix. They are compared with a table of item embeddings, of 64 dimensions (SASRec's
here) and of 768, and an HNSW index over it. All but the table are built and their bytes are counted, except for those that
do not fit --gigabytes and HNSW indexes of more than --hnsw items. Codes are random, which gives the trie the largest
possible number of nodes.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from tqdm import tqdm

from recbole_tiger.catalogue.semantic_ids import add_collision_level
from recbole_tiger.model.tiger import NETWORK, make_network
from recbole_tiger.report.results import write_result
from recbole_tiger.settings.config import make_config

SIZES = (10**4, 10**5, 10**6, 10**7)
DIMENSIONS, TEXT_DIMENSION = (64, 768), 384
# Neighbours of an item in the graph, as in the examples of the library.
NEIGHBOURS = 32
CODEBOOKS = (256, 256, 256)
# Approximate bytes per item to build a recipe.
BYTES = {"TIGER": 400, "TIGER-text": 4000}


def sizes(text):
    """Parse whole numbers separated by commas."""
    return [int(part) for part in text.split(",")]


def bytes_of_hnsw(x):
    """Bytes of an HNSW index over float32 array ``x`` [n, dim], the vectors included."""
    import faiss

    index = faiss.IndexHNSWFlat(x.shape[1], NEIGHBOURS)
    index.add(x)
    return len(faiss.serialize_index(index))


def bytes_of_tiger(recipe, n_items):
    """Bytes of the tensors of a recipe of TIGER: weights, codes, trie and the inputs of the encoder."""
    codes = np.random.default_rng(0).integers(0, CODEBOOKS, size=(n_items, len(CODEBOOKS)))
    codes = torch.from_numpy(add_collision_level(codes))
    widths = [*CODEBOOKS, int(codes[:, -1].max()) + 1]
    config = make_config(recipe, "any", {"gpu_id": ""})
    # Only the size of the text embeddings matters, so one row stands for all.
    text = torch.randn(2, TEXT_DIMENSION) if config["encoder_text"] else None
    network = make_network(F.pad(codes, (0, 0, 1, 0)), widths, text, {name: config[name] for name in NETWORK})
    tensors = [*network.parameters(), *network.buffers()]
    more = 4 * TEXT_DIMENSION * (n_items - 2) if text is not None else 0
    return sum(tensor.nbytes for tensor in tensors) + more


def measure(args):
    """Bytes of everything at every size; a list of dicts."""
    rows = []
    for n_items in tqdm(args.sizes, "catalogues"):
        for recipe, at_most in BYTES.items():
            if at_most * n_items < args.gigabytes * 2**30:
                rows.append({"items": n_items, "kept": recipe, "bytes": bytes_of_tiger(recipe, n_items)})
        for dimension in DIMENSIONS:
            table = 4 * dimension * n_items
            rows.append({"items": n_items, "kept": f"embeddings of {dimension}", "bytes": table})
            if n_items <= args.hnsw and 2 * table < args.gigabytes * 2**30:
                x = np.random.default_rng(0).normal(size=(n_items, dimension)).astype(np.float32)
                rows.append({"items": n_items, "kept": f"HNSW of {dimension}", "bytes": bytes_of_hnsw(x)})
    return [{**row, "bytes_an_item": row["bytes"] / row["items"]} for row in rows]


def plot(rows, file):
    """Plot bytes per item over the size of the catalogue."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kept in dict.fromkeys(row["kept"] for row in rows):
        own = [row for row in rows if row["kept"] == kept]
        axis.plot([row["items"] for row in own], [row["bytes_an_item"] for row in own], "o-", label=kept)
    axis.set(xscale="log", yscale="log", xlabel="items", ylabel="bytes an item")
    axis.legend()
    figure.savefig(file, dpi=120)


def main(argv=None):
    """Print a table; write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=sizes, default=SIZES, help="sizes of catalogues, separated by commas")
    parser.add_argument(
        "--gigabytes", type=float, default=8, help="most memory for building an index (default: %(default)s)"
    )
    parser.add_argument(
        "--hnsw", type=int, default=10**5, help="largest number of items of an HNSW index (default: %(default)s)"
    )
    parser.add_argument("--output", help="JSON file of all numbers")
    parser.add_argument("--plot", help="PNG file")
    args = parser.parse_args(argv)
    rows = measure(args)
    kept = list(dict.fromkeys(row["kept"] for row in rows))
    found = {(row["kept"], row["items"]): f"{row['bytes_an_item']:,.0f}" for row in rows}
    table = [[name, *(found.get((name, n_items), "") for n_items in args.sizes)] for name in kept]
    print(
        tabulate(
            table, ["bytes an item", *(f"{n_items:,} items" for n_items in args.sizes)], tablefmt="github", stralign="right"
        )
    )
    if args.output:
        write_result({"rows": rows}, args.output)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
