"""The catalogue: from item text to semantic IDs."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from recbole_tiger.catalogue.encoder import encode_or_read, load_embeddings, load_encoder
from recbole_tiger.catalogue.item_text import text_of_items
from recbole_tiger.catalogue.quantizers import QUANTIZERS, make_quantizer, quantizer_settings
from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.catalogue.tokenizer import Tokenizer
from recbole_tiger.errors import TigerError
from recbole_tiger.files import check_writable, content_hash, read_arrays, whole_file, write_arrays

# A level has collapsed if its perplexity is below this share of its number of codes.
COLLAPSED = 0.1
# Numbers of codes per level that are accepted for any catalogue.
MAX_CODES = 2**16


@dataclass(frozen=True)
class Catalogue:
    """The items that a model recommends from.

    Attributes:
        titles: list of n_items strings.
        semantic_ids: SemanticIDs; row i belongs to RecBole's item i + 1.
        embeddings: float32 array [n_items, dim], or None if neither the codes nor the model need them.
        tokenizer: the Tokenizer that made the codes, or None if they come from a file.
        columns: dict of text field -> list of n_items strings, "" for a missing value.
    """

    titles: list
    semantic_ids: SemanticIDs
    embeddings: np.ndarray | None
    tokenizer: Tokenizer | None = None
    columns: dict = field(default_factory=dict)

    @property
    def items(self):
        """Item tokens."""
        return self.semantic_ids.items


class CollapseError(TigerError):
    """The codes hardly tell items apart."""


def check_codebooks(statistics, quantizer):
    """Check that no codebook has collapsed.

    Args:
        statistics: of the SemanticIDs.
        quantizer: the fitted Quantizer.

    Raises:
        CollapseError: names the level and what to try.
    """
    for level in quantizer.levels_to_check(statistics):
        width, perplexity = quantizer.widths[level], statistics["perplexity"][level]
        if perplexity < max(1.5, COLLAPSED * width):
            other = "rq_vae" if type(quantizer) is QUANTIZERS["rq_kmeans"] else "rq_kmeans"
            smaller = "a smaller codebook_size, " if hasattr(quantizer, "codebook_size") else ""
            raise CollapseError(
                f"codebook {level + 1} has collapsed: {statistics['used_codes'][level]} of {width} codes used, perplexity "
                f"{perplexity}; try --quantizer={other}, {smaller}or check that the item texts differ"
            )


def item_embeddings(config, items, texts):
    """Embeddings of the items, from the file ``item_embeddings`` or encoded from text: float32 array [n_items, dim]."""
    if config["item_embeddings"]:
        return load_embeddings(config["item_embeddings"], items)
    check_width = None if config["semantic_ids"] else make_quantizer(config).check_width
    return encode_or_read(config, texts, check_width)


def quantize(config, items, embeddings):
    """Semantic IDs of the items, and the fitted quantizer.

    Both are cached, in one file, under a hash of the items, the embeddings, the quantizer's settings and its REVISION, and
    of all plugin files for a quantizer from outside this package.

    Args:
        items: item tokens. embeddings: float32 array [n_items, dim].

    Returns:
        SemanticIDs, Quantizer.

    Raises:
        TigerError: a codebook has collapsed, or a cached file is damaged.
    """
    quantizer = make_quantizer(config)
    made_by = [quantizer.REVISION, config["quantizer"], quantizer_settings(config), config["seed"]]
    made_by += [content_hash(file).hex() for file in QUANTIZERS.plugin_files(config["quantizer"])]
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    digest.update(json.dumps(list(items)).encode())
    digest.update(np.ascontiguousarray(embeddings))
    cache = Path(config["cache_dir"]) / f"quantized-{digest.hexdigest()[:20]}.npz"
    if cache.is_file():
        arrays = read_arrays(cache)
        semantic_ids = SemanticIDs(items, arrays.pop("semantic_ids"))
        quantizer.learnt = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return semantic_ids, quantizer
    check_writable(cache)
    x = torch.from_numpy(embeddings).to(config["device"])
    codes = quantizer.fit(x, seed=config["seed"], show_progress=config["show_progress"])
    semantic_ids = SemanticIDs(items, add_collision_level(codes.cpu().numpy()))
    check_codebooks(semantic_ids.statistics(), quantizer)
    learnt = {name: tensor.cpu().numpy() for name, tensor in quantizer.learnt.items()}
    with whole_file(cache) as temporary:
        write_arrays(temporary, semantic_ids=semantic_ids.codes, **learnt)
    return semantic_ids, quantizer


def check_sizes(config, n_items):
    """Check that settings fit the size of the catalogue, before any long work.

    Raises:
        TigerError: codebook_size is larger than the catalogue.
    """
    settings = {} if config["semantic_ids"] else quantizer_settings(config)
    if settings.get("codebook_size", 0) > n_items:
        raise TigerError(
            f"codebook_size {config['codebook_size']} is larger than the catalogue of {n_items} items; choose a smaller one"
        )


def check_codes(semantic_ids, source):
    """Check that codes from a file are not too large: a level has weights for every number up to its largest code.

    Raises:
        TigerError: names the largest code.
    """
    largest = semantic_ids.codes.max()
    if largest >= max(MAX_CODES, 10 * len(semantic_ids.items)):
        raise TigerError(
            f"{source} has the code {largest}, and a level has weights for every number up to its largest: number the codes "
            f"of each level from 0"
        )


def make_catalogue(config, items, needs_embeddings):
    """The catalogue of a dataset.

    Args:
        items: item tokens in RecBole's order.
        needs_embeddings: whether the codes or the model need embeddings; without ``item_embeddings`` these need text.

    Raises:
        TigerError: a setting does not fit the catalogue, or an error of :func:`quantize` or of the readers of texts,
            embeddings and IDs.
    """
    check_sizes(config, len(items))
    needs_text = needs_embeddings and not config["item_embeddings"]
    texts, titles, columns = text_of_items(config, items, needs_text)
    ids_file, tokenizer = config["semantic_ids"], None
    if ids_file:
        semantic_ids = SemanticIDs.load(ids_file).reordered(items, ids_file)
        check_codes(semantic_ids, ids_file)
    embeddings = item_embeddings(config, items, texts) if needs_embeddings else None
    if not ids_file:
        try:
            semantic_ids, quantizer = quantize(config, items, embeddings)
            tokenizer = Tokenizer.of(config, quantizer)
        except CollapseError as error:
            if not needs_text or len(set(map(bytes, embeddings))) >= len(set(texts)):
                raise
            longest = load_encoder(config["text_encoder"], "cpu").max_seq_length
            raise CollapseError(
                f"{error}; they do, but {config['text_encoder']} reads only the first {longest} tokens of a text: put the "
                f"fields that differ first in text_fields, or choose another text_encoder"
            ) from error
    return Catalogue(titles, semantic_ids, embeddings, tokenizer, columns)
