"""Models and a quantizer of one's own, as a user's file has them: it registers them when it is imported."""

import torch
import torch.nn.functional as F
from torch import nn

from recbole_tiger import SemanticIDModel, register_model, register_quantizer
from recbole_tiger.catalogue.quantizers.base import Quantizer
from recbole_tiger.model.tiger import TIGER


class Toy(SemanticIDModel):
    """The mean of the codes' embeddings of a history against those of every item."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        codes = torch.tensor(dataset.catalogue.semantic_ids.codes)
        self.register_buffer("codes", F.pad(codes, (0, 0, 1, 0)))
        self.embeddings = nn.ModuleList(nn.Embedding(width, config["hidden_size"]) for width in codes.max(0).values + 1)
        self.scale = config["toy_scale"]

    def logits(self, histories):
        items = torch.stack([table(self.codes[:, level]) for level, table in enumerate(self.embeddings)]).mean(dim=0)
        there = (histories > 0).unsqueeze(-1)
        read = (items[histories] * there).sum(dim=1) / there.sum(dim=1)
        logits = self.scale * read @ items.T
        return logits.masked_fill(torch.arange(len(items), device=logits.device) == 0, -torch.inf)

    def calculate_loss(self, interaction):
        return F.cross_entropy(self.logits(self.histories_of(interaction)), interaction[self.ITEM_ID])

    def exact(self, histories, slots):
        return self.logits(histories).log_softmax(dim=-1)

    def full_sort_predict(self, interaction):
        return self.exact(self.histories_of(interaction), None)

    def predict(self, interaction):
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


class Shallow(TIGER):
    """TIGER under another name, with other defaults."""


class Signs(Quantizer):
    """Codes of two values: whether a number of the embedding is above the median."""

    def __init__(self, *, codebook_depth, first_number):
        super().__init__()
        self.codebook_size, self.codebook_depth = 2, codebook_depth
        self.numbers = slice(first_number, first_number + codebook_depth)

    def fit(self, x, *, seed, show_progress=False):
        self.learnt = {"mean": x.mean(dim=0), "median": x.median(dim=0).values}
        return self.encode(x)

    def encode_part(self, x):
        return (x > self.learnt["median"])[:, self.numbers].long()


register_model(Toy, {"hidden_size": 16, "toy_scale": 1.0, "train_neg_sample_args": None, "eval_batch_size": None})
register_model(Shallow, {"n_layers": 1, "n_decoder_layers": 1, "hidden_size": 16, "epochs": 1})
register_quantizer("signs", Signs, {"first_number": 0})
