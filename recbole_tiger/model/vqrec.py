"""VQ-Rec as a RecBole sequential recommender: an item is the mean of the embeddings of its codes."""

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.layers import TransformerEncoder
from scipy.optimize import linear_sum_assignment
from torch import nn

from recbole_tiger.errors import TigerError
from recbole_tiger.model.base import SemanticIDModel
from recbole_tiger.model.layers import BIAS_SCALE

# Standard deviation of the text's part of the initial code embeddings: as far as a hundred steps of Adam move a weight.
TEXT_SCALE = 0.1


def log_sinkhorn(x, iterations):
    """Scale matrices in log space so that rows and columns sum to one (Sinkhorn and Knopp).

    Args:
        x: float tensor [..., n, n] of logarithms of positive matrices.

    Returns:
        float tensor [..., n, n] of logarithms; column sums are exact, row sums converge with the iterations.
    """
    for _ in range(iterations):
        x = x.log_softmax(dim=-1)
        x = x.log_softmax(dim=-2)
    return x


def gumbel_like(x):
    """Standard Gumbel noise of the shape of ``x``."""
    return -torch.empty_like(x).exponential_().log()


def right_padded(items):
    """Move the padding of rows from the left to the right.

    Args:
        items: int tensor [batch, n], padded with zeros on the left.

    Returns:
        int tensor [batch, n], padded on the right; int tensor [batch] of lengths.
    """
    lengths = (items != 0).sum(dim=1)
    place = torch.arange(items.shape[1], device=items.device) - lengths.unsqueeze(1)
    return items.gather(1, place % items.shape[1]), lengths


class MeanOfRows(torch.autograd.Function):
    """Means of rows of a table, whose gradient is a sum of sorted rows: three times as fast on a CPU as PyTorch's scatter.

    Args:
        table: float tensor [n_rows, width]. rows: int tensor [n, depth] of the rows to average.

    Returns:
        float tensor [n, width].
    """

    @staticmethod
    def forward(ctx, table, rows):
        ctx.save_for_backward(rows)
        ctx.n_rows = len(table)
        return F.embedding_bag(rows, table, mode="mean")

    @staticmethod
    def backward(ctx, gradient):
        (rows,) = ctx.saved_tensors
        in_order, place = rows.flatten().sort(stable=True)
        begin = torch.searchsorted(in_order, torch.arange(ctx.n_rows, device=rows.device))
        depth = rows.shape[1]
        return F.embedding_bag(place // depth, gradient / depth, begin, mode="sum"), None


class HistoryLogit(nn.Module):
    """A learned logit for items of the history, by which a model learns whether users repeat items.

    It is the sum of a term for all items and one for how many items ago the item was. An item that is in a history twice has
    both logits.

    Args:
        max_items: longest history.
    """

    def __init__(self, max_items):
        super().__init__()
        self.of_all = nn.Parameter(torch.zeros(1))
        self.of_distance = nn.Parameter(torch.zeros(max_items))

    def forward(self, history, ago):
        """Logits of the items of histories, zeros for padding.

        Args:
            history: int tensor [n, items], padded with zeros. ago: int tensor [n, items], 0 for the latest item.

        Returns:
            float tensor [n, items].
        """
        return BIAS_SCALE * (self.of_all + self.of_distance[ago.clamp(min=0)]) * (history != 0)

    def loss(self, log_probs, history, ago, wanted):
        """What the logits add to the cross-entropy of targets; its gradient reaches only them, not the other weights.

        Args:
            log_probs: float tensor [n, items], log-probabilities of the items of histories without these logits.
            history, ago: as in :meth:`forward`. wanted: int tensor [n] of the targets.

        Returns:
            float tensor [n].
        """
        added, same = self(history, ago), history.unsqueeze(2) == history.unsqueeze(1)
        total = (same * added.unsqueeze(1)).sum(dim=2)
        counted = (history != 0) & ~same.tril(-1).any(dim=2)  # a repeated item counts once
        normaliser = (counted * log_probs.detach().exp() * total.expm1()).sum(dim=1).clamp(min=1e-6 - 1).log1p()
        return normaliser - ((history == wanted.unsqueeze(1)) * added).sum(dim=1)


class VQRec(SemanticIDModel):
    """Vector-quantized item representations (Hou et al. 2023, arXiv 2210.12316).

    It reads the codes of a product quantizer: every digit has its own embedding table, and two items may share all digits.
    The collision level of the semantic IDs is not read.

    With ``train_stage: pretrain`` the loss is contrastive, otherwise it is cross-entropy over the whole catalogue. The
    trainer fine-tunes a pre-trained model in two stages: :meth:`learn_permutation`, then :meth:`learn_embeddings`. Without
    ``pre_model_path`` all weights train at once.

    Args:
        config: RecBole's Config with the settings of ``properties/model/VQRec.yaml``.
        dataset: has ``catalogue`` (a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`).
    """

    trainer_class = "recbole_tiger.training.vqrec.VQRecTrainer"
    training_only = ("permutation_logits",)  # parameters that no score depends on

    @classmethod
    def check_settings(cls, config):
        """Refuse settings that cannot work together.

        Raises:
            TigerError: names the setting and its valid values.
        """
        if config["hidden_size"] % config["n_heads"]:
            raise TigerError(f"hidden_size {config['hidden_size']} has to be a multiple of n_heads, {config['n_heads']}")
        if config["history_bias"] and config["train_stage"] == "pretrain":
            raise TigerError("history_bias learns with train_stage finetune: give --history_bias=False to pre-train")
        if config["text_initializer"] and (config["quantizer"] != "opq" or config["semantic_ids"]):
            raise TigerError(
                "text_initializer starts from the codebooks of the quantizer opq: give --quantizer=opq and no semantic_ids, "
                "or --text_initializer=False"
            )
        if config["pre_model_path"] is None:
            return
        if config["text_initializer"]:
            raise TigerError("pre_model_path holds the embeddings to start from: give --text_initializer=False")
        if config["train_stage"] == "pretrain":
            raise TigerError("pre_model_path is for train_stage finetune: leave it out to pre-train")
        if config["epochs"] <= config["permutation_epochs"]:
            raise TigerError(
                f"epochs {config['epochs']} leaves none to train code embeddings after permutation_epochs, "
                f"{config['permutation_epochs']}: raise the first or lower the second"
            )

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.train_stage, self.temperature = config["train_stage"], config["temperature"]
        self.redraw_prob = config["redraw_prob"]
        self.sinkhorn_temperature = config["sinkhorn_temperature"]
        self.sinkhorn_iterations = config["sinkhorn_iterations"]
        hidden_size, eps = config["hidden_size"], config["layer_norm_eps"]

        # [n_items + 1, depth + 1], with the collision level, which is not read. The codes of padding have no effect: no item
        # attends to it, and it is no candidate.
        self.register_buffer("codes", F.pad(torch.tensor(dataset.catalogue.semantic_ids.codes), (0, 0, 1, 0)))
        depth, size = self.digits.shape[1], max(config["codebook_size"], int(self.digits.max()) + 1)
        self.code_embedding = nn.Parameter(torch.empty(depth, size, hidden_size))
        self.register_buffer("first_row", size * torch.arange(depth), persistent=False)
        # The row of the flat table for each code of a digit: the identity, unless a permutation is learned.
        self.register_buffer("row_of_code", torch.arange(depth * size))
        learned = config["pre_model_path"] and self.train_stage == "finetune"
        self.permutation_logits = nn.Parameter(torch.zeros(depth, size, size)) if learned else None
        self.permuting = False

        self.history_logit = HistoryLogit(self.max_seq_length) if config["history_bias"] else None
        self.position_embedding = nn.Embedding(self.max_seq_length, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.trm_encoder = TransformerEncoder(
            n_layers=config["n_layers"],
            n_heads=config["n_heads"],
            hidden_size=hidden_size,
            inner_size=config["inner_size"],
            hidden_dropout_prob=config["hidden_dropout_prob"],
            attn_dropout_prob=config["attn_dropout_prob"],
            hidden_act=config["hidden_act"],
            layer_norm_eps=eps,
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config["initializer_range"])
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.code_embedding, std=config["initializer_range"])
        if config["text_initializer"]:
            self.start_from_text(self.tokenizer["learnt"]["codebooks"])
        self._candidates = None

    @torch.no_grad()
    def start_from_text(self, codebooks):
        """Add to each code's embedding its centroid, by one random projection of the text embeddings.

        Items of similar text then start close to each other. The paper's embeddings start at random.

        Args:
            codebooks: float tensor [depth, codebook_size, width], centroids of the slices of the rotated text embeddings.
        """
        depth, _, hidden_size = self.code_embedding.shape
        projected = codebooks @ torch.randn(depth, codebooks.shape[2], hidden_size)
        self.code_embedding += TEXT_SCALE * projected / projected.std()

    # --- item and sequence representations (paper sections 3.1.2 and 3.2.1) ---

    @property
    def digits(self):
        """Codes of all items, int tensor [n_items + 1, depth]."""
        return self.codes[:, :-1]

    def represent(self, codes):
        """Item vectors: the mean of the embeddings of their codes.

        Args:
            codes: int tensor [n, depth].

        Returns:
            float tensor [n, hidden_size].
        """
        tables, rows = self.code_embedding, codes + self.first_row
        if self.permuting and self.training:
            tables = self._drawn_permutation() @ tables
        else:
            rows = self.row_of_code[rows]
        return MeanOfRows.apply(tables.flatten(0, 1), rows)

    def encode(self, vectors, item_seq):
        """User vectors after each item of a history.

        Args:
            vectors: float tensor [batch, n, hidden_size] of the histories' items.
            item_seq: int tensor [batch, n] of the items, padded with zeros on the right.

        Returns:
            float tensor [batch, n, hidden_size] of unit vectors.
        """
        x = self.dropout(self.LayerNorm(vectors + self.position_embedding.weight[: item_seq.shape[1]]))
        mask = self.get_attention_mask(item_seq)
        return F.normalize(self.trm_encoder(x, mask, output_all_encoded_layers=False)[-1], dim=-1)

    # --- training ---

    def window_loss(self, items, targets, positions=None, users=None, padded=True):
        """Mean loss of the targets of a batch of windows.

        A target is predicted from the items before it in its window. If the window begins with its user's first item,
        this is the loss of RecBole's rows, one per target, but shared prefixes are computed once.

        Args:
            items: int tensor [batch, n + 1], padded with zeros on the left.
            targets, positions: from :func:`~recbole_tiger.training.dataset.target_positions`.
            users, padded: ignored; there is no user token, and the masks follow from the items.
        """
        items, lengths = right_padded(items)
        place = (lengths.unsqueeze(1) + torch.arange(-targets, 0, device=items.device)).clamp(min=1).flatten()
        window = torch.arange(len(items), device=items.device).repeat_interleave(targets, output_size=len(place))
        if positions is not None:
            place, window = place[positions], window[positions]
        wanted = items[window, place]
        if self.train_stage == "pretrain":
            digits = self.digits[items]
            vectors = self.represent(digits.flatten(0, 1)).view(*items.shape, -1)
            histories = self.encode(vectors[:, :-1], items[:, :-1])[window, place - 1]
            return self.contrastive_loss(histories, vectors[window, place], digits[window, place], wanted, window)
        vectors = self.represent(self.digits)
        histories = self.encode(F.embedding(items[:, :-1], vectors), items[:, :-1])[window, place - 1]
        # Divide before the product, which is as wide as the catalogue.
        logits = histories / self.temperature @ F.normalize(vectors[1:], dim=-1).T
        if self.history_logit is None:
            return F.cross_entropy(logits, wanted - 1)
        losses = F.cross_entropy(logits, wanted - 1, reduction="none")
        ago = place.unsqueeze(1) - torch.arange(1, items.shape[1], device=items.device)
        history = items[window, :-1].masked_fill(ago < 0, 0)
        own = logits.gather(1, (wanted - 1).unsqueeze(1)).float()
        log_probs = logits.gather(1, (history - 1).clamp(min=0)).float() - own - losses.unsqueeze(1)
        return (losses + self.history_logit.loss(log_probs, history, ago, wanted)).mean()

    def contrastive_loss(self, histories, vectors, digits, targets, windows):
        """Contrastive loss of pre-training (paper section 3.2.2).

        Negatives of a target are the targets of the other windows, from any dataset, and one semi-synthetic item. Negatives
        that equal the target are masked.

        Args:
            histories: float tensor [n, hidden_size] of the unit vectors that predict the targets.
            vectors: float tensor [n, hidden_size] of the targets. digits: int tensor [n, depth] of their codes.
            targets, windows: int tensors [n] that identify the target and the window.
        """
        synthetic = self.redraw(digits)
        others = histories @ F.normalize(vectors, dim=-1).T
        own = (histories * F.normalize(self.represent(synthetic), dim=-1)).sum(dim=1, keepdim=True)
        masked = (targets.unsqueeze(1) == targets) | (windows.unsqueeze(1) == windows)
        masked.fill_diagonal_(False)
        masked = torch.cat([masked, (synthetic == digits).all(dim=1, keepdim=True)], dim=1)
        scores = torch.cat([others, own], dim=1) / self.temperature
        return F.cross_entropy(scores.masked_fill(masked, -torch.inf), torch.arange(len(targets), device=targets.device))

    def calculate_loss(self, interaction):
        """Loss of RecBole's rows, one target per row."""
        items = torch.cat([self.histories_of(interaction), interaction[self.ITEM_ID].unsqueeze(1)], dim=1)
        return self.window_loss(items, 1)

    def redraw(self, codes):
        """Codes of semi-synthetic items: each code is redrawn uniformly with probability ``redraw_prob``.

        Args:
            codes: int tensor [n, depth], which is not changed.

        Returns:
            int tensor [n, depth].
        """
        drawn = torch.randint_like(codes, self.code_embedding.shape[1])
        return torch.where(torch.rand(codes.shape, device=codes.device) < self.redraw_prob, drawn, codes)

    # --- fine-tuning of a pre-trained model (paper section 3.3.1) ---

    def start_from(self, pretrained):
        """Load the code embeddings and the encoder of a model that was pre-trained on other items.

        Args:
            pretrained: its ``state_dict``.

        Raises:
            TigerError: the number of digits or of codes per digit differs.
        """
        theirs, ours = pretrained["code_embedding"].shape[:2], self.code_embedding.shape[:2]
        if theirs != ours:
            raise TigerError(
                f"pre_model_path holds tables of {theirs[0]} digits of {theirs[1]} codes, but items here have {ours[0]} of "
                f"{ours[1]}: use the same quantizer, codebook_depth and codebook_size for both"
            )
        item_buffers = {"codes", "row_of_code"}
        shared = {name: pretrained[name] for name in self.state_dict().keys() & pretrained.keys() - item_buffers}
        nn.Module.load_state_dict(self, shared, strict=False)

    def learn_permutation(self):
        """Train only the permutation: which pre-trained embedding each code of a digit uses."""
        self._train_only([self.permutation_logits])
        self.permuting = True

    def learn_embeddings(self):
        """Train only the code embeddings, permuted by :meth:`assign_permutation`, and the logit of the history."""
        self._train_only([self.code_embedding, *([] if self.history_logit is None else self.history_logit.parameters())])
        self.permuting = False

    def _train_only(self, wanted):
        self.requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad = True

    def _drawn_permutation(self):
        """One matrix per digit, drawn by Gumbel-Sinkhorn: one-hot rows, with the gradient of the smooth matrix.

        Returns:
            float tensor [depth, codebook_size, codebook_size].
        """
        noisy = (self.permutation_logits + gumbel_like(self.permutation_logits)) / self.sinkhorn_temperature
        smooth = log_sinkhorn(noisy, self.sinkhorn_iterations).exp()
        hard = torch.zeros_like(smooth).scatter_(-1, smooth.argmax(dim=-1, keepdim=True), 1.0)
        return hard - smooth.detach() + smooth

    @torch.no_grad()
    def assign_permutation(self):
        """Fix the permutation with the largest weight in each digit, by linear assignment.

        It is the limit of Gumbel-Sinkhorn without noise as the temperature goes to zero (Mena et al. 2018).
        """
        found = [linear_sum_assignment(logits, maximize=True)[1] for logits in self.permutation_logits.cpu().numpy()]
        chosen = torch.from_numpy(np.stack(found)).to(self.row_of_code.device)
        self.row_of_code.copy_((chosen + self.first_row.unsqueeze(1)).flatten())

    # --- inference ---

    def train(self, mode=True):
        """As in PyTorch; also clears the cache of :meth:`candidates`."""
        self._candidates = None
        return super().train(mode)

    def fit_to(self, state_dict):
        """Clear the cache of :meth:`candidates`."""
        self._candidates = None

    @torch.no_grad()
    def candidates(self):
        """Vectors of all items and of padding, and the same as unit vectors: two float tensors [n_items + 1, hidden_size].

        They are cached for an evaluation.
        """
        if self.training or self._candidates is None:
            vectors = self.represent(self.digits)
            self._candidates = vectors, F.normalize(vectors, dim=-1)
        return self._candidates

    def _encoded(self, histories):
        """User vectors after histories [batch, n], padded on the left, and unit vectors of all items.

        Also the histories' items and the logits that they have for it, each [batch, items]; None for the logits without
        ``history_bias``.
        """
        vectors, directions = self.candidates()
        item_seq, lengths = right_padded(histories[:, -self.max_seq_length :].to(vectors.device))
        found = self.gather_indexes(self.encode(F.embedding(item_seq, vectors), item_seq), lengths - 1)
        ago = lengths.unsqueeze(1) - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)
        return found, directions, item_seq, None if self.history_logit is None else self.history_logit(item_seq, ago)

    def _scores(self, histories):
        """Scores of all items [batch, n_items + 1], -inf for padding."""
        found, directions, item_seq, added = self._encoded(histories)
        scores = found / self.temperature @ directions.T
        if added is not None:
            scores.scatter_add_(1, item_seq, added.to(scores.dtype))
        scores[:, 0] = -torch.inf
        return scores

    @torch.no_grad()
    def exact(self, histories, slots=None):
        """Log-probability of every item after each history.

        Args:
            histories: int tensor [batch, n], padded with zeros on the left; the last MAX_ITEM_LIST_LENGTH items are read.
            slots: ignored, because there is no user token.

        Returns:
            float tensor [batch, n_items + 1], -inf for padding.
        """
        return self._scores(histories).log_softmax(dim=-1)

    @torch.no_grad()
    def full_sort_predict(self, interaction):
        """Scores of all items [batch, n_items]: cosine divided by temperature, -inf for padding."""
        return self._scores(self.histories_of(interaction))

    @torch.no_grad()
    def predict(self, interaction):
        """Score of the given item after each history, [batch]; equal histories are encoded once."""
        histories, which = torch.unique(self.histories_of(interaction), dim=0, return_inverse=True)
        found, directions, item_seq, added = self._encoded(histories)
        items = interaction[self.ITEM_ID]
        scores = (found[which] * directions[items]).sum(dim=1) / self.temperature
        return scores if added is None else scores + ((item_seq[which] == items.unsqueeze(1)) * added[which]).sum(dim=1)
