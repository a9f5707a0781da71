"""The tokenizer of new items, stored in checkpoints: item text -> embedding -> codes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from recbole_tiger.catalogue.encoder import encode, load_embeddings, load_encoder, own_encoder_hash
from recbole_tiger.catalogue.item_text import header, read_columns, read_item_text, refuse_empty, table_to_lists
from recbole_tiger.catalogue.quantizers import QUANTIZERS, make_quantizer, quantizer_settings
from recbole_tiger.catalogue.quantizers.base import Quantizer
from recbole_tiger.errors import TigerError, named


@dataclass(frozen=True)
class Tokenizer:
    """A fitted quantizer, and the settings that made its embeddings.

    Attributes:
        quantizer: a fitted Quantizer.
        made_by: dict of the settings ``quantizer``, ``text_encoder``, ``text_fields``, ``item_embeddings`` and those of the
            quantizer; and ``encoder_hash``, a hash of the content of the encoder, if it is a folder.
    """

    quantizer: Quantizer
    made_by: dict

    @classmethod
    def of(cls, config, quantizer):
        """The tokenizer of a run, from its settings and its fitted quantizer."""
        names = ("quantizer", "text_encoder", "text_fields", "item_embeddings")
        made_by = {**{name: config[name] for name in names}, **quantizer_settings(config)}
        if (found := own_encoder_hash(config["text_encoder"])) is not None:
            made_by["encoder_hash"] = found
        return cls(quantizer, made_by)

    def state(self):
        """The content for a checkpoint: plain values and tensors on the CPU."""
        learnt = {name: tensor.cpu() for name, tensor in self.quantizer.learnt.items()}
        return {"made_by": self.made_by, "learnt": learnt, "revision": self.quantizer.REVISION}

    @classmethod
    def from_state(cls, state):
        """The tokenizer of a :meth:`state`.

        Raises:
            TigerError: its quantizer is not registered, or has another revision.
        """
        name = state["made_by"]["quantizer"]
        if name not in QUANTIZERS or state["revision"] != QUANTIZERS[name].REVISION:
            raise TigerError(
                f"the checkpoint's tokenizer has revision {state['revision']} of the quantizer {name}, which is not "
                f"installed: install the version that trained it, or train anew"
            )
        quantizer = make_quantizer(state["made_by"])
        quantizer.learnt = dict(state["learnt"])
        return cls(quantizer, state["made_by"])

    def embed(self, texts, items, embeddings, device):
        """Embeddings of new items, from the same source as those of the old items.

        Args:
            texts, items: lists of n strings. embeddings: file of embeddings, if those of the old items come from a file.

        Returns:
            float32 array [n, dim].

        Raises:
            TigerError: the source is another than that of the old items, or an error of the readers.
        """
        from_file = self.made_by["item_embeddings"] is not None
        if from_file and embeddings is None:
            raise TigerError(
                "this model was trained with embeddings from a file: give those of the new items by --item_embeddings=..."
            )
        if not from_file and embeddings is not None:
            raise TigerError(
                f"this model embeds texts by {self.made_by['text_encoder']}: leave out item_embeddings, which do not fit"
            )
        if from_file:
            return load_embeddings(embeddings, items)
        encoder = self.made_by["text_encoder"]
        if "encoder_hash" in self.made_by and self.made_by["encoder_hash"] != own_encoder_hash(encoder):
            raise TigerError(
                f"text_encoder {encoder} is not there or has changed since this model was trained: restore it, or train anew"
            )
        return encode(texts, load_encoder(encoder, device))

    def encode(self, embeddings):
        """Codes of embeddings.

        Args:
            embeddings: float32 array [n, dim].

        Returns:
            int64 array [n, levels], without the collision level.

        Raises:
            TigerError: the quantizer cannot encode new items, or the embeddings have another width.
        """
        return self.quantizer.encode(torch.from_numpy(embeddings)).numpy()


def read_new_items(file, config, text_needed):
    """Tokens, texts and titles of a file of new items.

    Args:
        file: an item file of RecBole's format. config: the settings that the old items were read with.
        text_needed: whether every item needs text.

    Returns:
        three lists of strings; dict of text field -> list of strings.

    Raises:
        TigerError: the file is absent or has no items, an item repeats, or an item has no text.
    """
    path = Path(file)
    if path.suffix != ".item" or not path.is_file():
        raise TigerError(f"file of new items {path} is no item file of RecBole: give a file *.item, with a header")
    place = {"data_path": str(path.parent), "dataset": path.stem, "benchmark_filename": None}
    names = ("ITEM_ID_FIELD", "text_fields", "field_separator", "seq_separator", "encoding")
    config = {**{name: config[name] for name in names}, **place}
    item_id = config["ITEM_ID_FIELD"]
    if item_id not in header(path, config):
        raise TigerError(f"{path} has no column {item_id}: it has {', '.join(header(path, config))}")
    tokens = read_columns(path, [item_id], config)[item_id]
    twice = tokens[tokens.duplicated()].unique()
    if len(twice):
        raise TigerError(f"{path}: {len(twice)} items have several rows: {named(twice)}; keep one of each")
    if tokens.empty or (tokens == "").any():
        raise TigerError(f"{path} has {'a row without an item' if len(tokens) else 'no items'}: give one per row")
    table = read_item_text(config).reindex(tokens, fill_value="")
    if text_needed:
        refuse_empty(table, path, config["text_fields"], "or leave them out")
    return tokens.tolist(), *table_to_lists(table)
