"""The way from item text to semantic IDs."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recbole_tiger.catalogue.encoder import encode, load_embeddings, load_encoder
from recbole_tiger.catalogue.item_text import text_of_items
from recbole_tiger.catalogue.quantizers import REVISION, make_quantizer, quantizer_settings
from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.errors import TigerError

# A level whose codes are used as unevenly as if fewer than this share of them existed counts as collapsed.
COLLAPSED = 0.1
# So many codes a level are fine for any catalogue.
MOST_CODES = 2**16


@dataclass(frozen=True)
class Catalogue:
    """The items that a model recommends from.

    Attributes:
        titles: list of n_items strings.
        semantic_ids: SemanticIDs; item i + 1 of RecBole is its row i.
        embeddings: float32 array [n_items, dim], or None where neither the codes nor the model need them.
    """

    titles: list
    semantic_ids: SemanticIDs
    embeddings: np.ndarray | None

    @property
    def items(self):
        """Item tokens."""
        return self.semantic_ids.items


class CollapseError(TigerError):
    """Codes that hardly tell items apart."""


def check_codebooks(statistics, codebook_size, quantizer):
    """Refuse codes that hardly tell items apart.

    Raises:
        CollapseError: with the level and what to try.
    """
    other = "rq_vae" if quantizer == "rq_kmeans" else "rq_kmeans"
    told_apart = [1, *statistics["distinct_prefixes"]]
    for level, perplexity in enumerate(statistics["perplexity"], start=1):
        if statistics["items"] - told_apart[level - 1] < codebook_size and level > 1:
            return  # there are fewer items left to tell apart than codes for it
        if perplexity < max(1.5, COLLAPSED * codebook_size):
            raise CollapseError(
                f"codebook {level} has collapsed: {statistics['used_codes'][level - 1]} of {codebook_size} codes used, "
                f"perplexity {perplexity}; try --quantizer={other}, a smaller codebook_size, or check that the item "
                f"texts differ"
            )


def item_embeddings(config, items, texts):
    """Embeddings of the items, the user's own (``item_embeddings``) or encoded from their text: float32 [n_items, dim]."""
    if config["item_embeddings"]:
        return load_embeddings(config["item_embeddings"], items)
    return encode(texts, config["text_encoder"], config["device"], config["cache_dir"], config["show_progress"])


def quantize(config, items, embeddings):
    """Semantic IDs of the items, cached by the hash of the embeddings, the quantizer's settings and its REVISION.

    Args:
        items: their tokens. embeddings: float32 array [n_items, dim].

    Raises:
        TigerError: a codebook has collapsed, or the cached IDs are damaged.
    """
    settings = quantizer_settings(config)
    made_by = [REVISION, config["quantizer"], settings, config["seed"]]
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    digest.update(json.dumps(list(items)).encode())
    digest.update(np.ascontiguousarray(embeddings))
    cache = Path(config["cache_dir"]) / f"semantic-ids-{digest.hexdigest()[:20]}.tsv"
    if cache.is_file():
        try:
            return SemanticIDs.load(cache).reordered(items, cache)
        except TigerError as error:
            raise TigerError(f"the cached semantic IDs are damaged ({error}): delete {cache}") from error
    x = torch.from_numpy(embeddings).to(config["device"])
    codes = make_quantizer(config).fit(x, seed=config["seed"], show_progress=config["show_progress"])
    semantic_ids = SemanticIDs(items, add_collision_level(codes.cpu().numpy()))
    check_codebooks(semantic_ids.statistics(), config["codebook_size"], config["quantizer"])
    semantic_ids.save(cache)
    return semantic_ids


def check_sizes(config, n_items):
    """Refuse what does not fit the catalogue, before any long work.

    Raises:
        TigerError: codebook_size is larger than the catalogue.
    """
    if not config["semantic_ids"] and config["codebook_size"] > n_items:
        raise TigerError(
            f"codebook_size {config['codebook_size']} is larger than the catalogue of {n_items} items; choose a smaller one"
        )


def check_codes(semantic_ids, source):
    """Refuse codes of the user's own that are no numbering: a level has weights for every number up to its largest code.

    Raises:
        TigerError: with the largest code.
    """
    largest = semantic_ids.codes.max()
    if largest >= max(MOST_CODES, 10 * len(semantic_ids.items)):
        raise TigerError(
            f"{source} has the code {largest}, and a level has weights for every number up to its largest: number the codes "
            f"of each level from 0"
        )


def make_catalogue(config, items, embedded):
    """The catalogue of a dataset.

    Args:
        items: item tokens in RecBole's order.
        embedded: whether the codes or the model are made of embeddings; they are made of text, where the user has none.

    Raises:
        TigerError: a setting does not fit the catalogue, or what :func:`quantize` and the readers of texts, embeddings and
            IDs say.
    """
    check_sizes(config, len(items))
    of_text = embedded and not config["item_embeddings"]
    texts, titles = text_of_items(config, items, of_text)
    own_ids = config["semantic_ids"]
    if own_ids:
        semantic_ids = SemanticIDs.load(own_ids).reordered(items, own_ids)
        check_codes(semantic_ids, own_ids)
    embeddings = item_embeddings(config, items, texts) if embedded else None
    if not own_ids:
        try:
            semantic_ids = quantize(config, items, embeddings)
        except CollapseError as error:
            if not of_text or len(set(map(bytes, embeddings))) == len(set(texts)):
                raise
            longest = load_encoder(config["text_encoder"], "cpu").max_seq_length
            raise TigerError(
                f"{error}; they do, but {config['text_encoder']} reads the first {longest} tokens of a text: name what "
                f"differs first in text_fields, or another text_encoder"
            ) from error
    return Catalogue(titles, semantic_ids, embeddings)
