"""``recbole-tiger tokenize``."""

import textwrap
from dataclasses import replace

from recbole_tiger.commands.shared import add_html, warn_unread
from recbole_tiger.errors import TigerError
from recbole_tiger.model import MODELS
from recbole_tiger.settings.properties import model_of

SUMMARY = "Make the semantic IDs of a dataset and show how well they separate items and group similar ones"
EXAMPLE = "recbole-tiger tokenize --dataset=ml-100k --quantizer=rq_kmeans --output=ids.tsv"
SETTINGS = True


def add_arguments(parser):
    """Add the command's own arguments."""
    parser.add_argument(
        "--model", default="TIGER", help="a model that reads semantic IDs, or a recipe of one (default: %(default)s)"
    )
    parser.add_argument("--output", help="write the semantic IDs to this file")
    add_html(parser, "a treemap of the codes, with search, usage and collisions of every level")


def execute(args, settings):
    """Make semantic IDs, and print their statistics, their quality and items that share a prefix."""
    if model_of(args.model) not in MODELS:
        raise TigerError(f"model {args.model} has no semantic IDs: give {' or '.join(MODELS)}, or a recipe of one of them")
    from tabulate import tabulate

    from recbole_tiger.catalogue.encoder import load_embeddings
    from recbole_tiger.runs import experiment
    from recbole_tiger.training.dataset import CatalogueDataset

    # With IDs from a file texts would only be encoded for a model, which is not made here.
    without_text = {"text_initializer": False, "encoder_text": False} if settings.get("semantic_ids") else {}
    config = experiment.prepare(args.model, args.dataset, {**settings, **without_text})
    warn_unread([args.model], settings)
    with experiment.recbole_errors_as_sentences(config):
        catalogue = CatalogueDataset(config).catalogue
    if config["semantic_ids"] and config["item_embeddings"]:
        catalogue = replace(catalogue, embeddings=load_embeddings(config["item_embeddings"], catalogue.items))
    ids = catalogue.semantic_ids
    if args.output:
        ids.save(args.output)
    statistics = ids.statistics()
    levels = [
        [level + 1, *(statistics[name][level] for name in ("used_codes", "perplexity", "distinct_prefixes"))]
        for level in range(ids.depth)
    ]
    print()
    print(tabulate(levels, ["level", "used codes", "perplexity", "distinct prefixes"], tablefmt="github"))
    overall = [[name, statistics[name]] for name in ("items", "distinct_ids", "collision_rate", "largest_group")]
    overall += _quality_rows(catalogue, config)
    print()
    print(tabulate(overall, tablefmt="plain"))
    if examples := _examples(catalogue):
        print("\nitems that share a prefix:")
        print(tabulate(examples, ["semantic ID", "item", "title"], tablefmt="github"))
    if args.output:
        print(f"\nsemantic IDs: {args.output}")
    if args.html:
        from recbole_tiger.report.html.semantic_ids import write_semantic_ids_page

        write_semantic_ids_page(args.html, f"Semantic IDs of {args.dataset}", catalogue)


def _quality_rows(catalogue, config):
    """Rows about how well the codes represent the embeddings; [] if there are no embeddings."""
    import torch

    from recbole_tiger.catalogue.quality import NEIGHBOURS, QUERIES, neighbour_shares, reconstruction_error

    if catalogue.embeddings is None:
        return []
    embeddings = torch.from_numpy(catalogue.embeddings).to(config["device"])
    codes = torch.tensor(catalogue.semantic_ids.codes[:, :-1], device=config["device"])
    shares = neighbour_shares(codes, embeddings, config["seed"])
    names = ["neighbours_share_code_1", "neighbours_share_codes_1_2"]
    note = f"of the {NEIGHBOURS} nearest items by cosine"
    if len(codes) > QUERIES:
        note += f", for {QUERIES:,} drawn items"
    rows = [[name, round(share, 4), note] for name, share in zip(names, shares, strict=False)]
    reconstructs = catalogue.tokenizer and catalogue.tokenizer.quantizer.reconstruct
    if reconstructs and (embeddings != embeddings[0]).any():  # the error of equal embeddings has nothing to be relative to
        error = reconstruction_error(catalogue.tokenizer.quantizer, codes, embeddings)
        rows.append(["reconstruction_error", round(error, 4), "squared, relative to that of the mean embedding"])
    return rows


def _examples(catalogue, groups=3, members=4):
    """Rows of items in the largest groups that share the codes of all levels but the last; [] if no items share them."""
    shared = max(1, catalogue.semantic_ids.depth - 1)
    by_prefix = {}
    for i, codes in enumerate(catalogue.semantic_ids.codes.tolist()):
        by_prefix.setdefault(tuple(codes[:shared]), []).append(i)
    rows = []
    for group in sorted(by_prefix.values(), key=len, reverse=True)[:groups]:
        for i in group[:members] if len(group) > 1 else ():
            codes = tuple(catalogue.semantic_ids.codes[i].tolist())
            rows.append([codes, catalogue.items[i], textwrap.shorten(catalogue.titles[i], 60, placeholder="...")])
    return rows
