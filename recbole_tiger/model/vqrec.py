"""VQ-Rec as a RecBole sequential recommender: an item is the mean of the embeddings of its codes."""

import torch
import torch.nn.functional as F
from recbole.model.layers import TransformerEncoder
from scipy.optimize import linear_sum_assignment
from torch import nn

from recbole_tiger.errors import TigerError
from recbole_tiger.model.base import SemanticIDModel


def log_sinkhorn(x, iterations):
    """Scale matrices so that rows and columns sum to one, in the logarithm (Sinkhorn and Knopp).

    Args:
        x: float tensor [..., n, n] of logarithms of positive matrices.

    Returns:
        float tensor [..., n, n] of logarithms: exact for the columns, for the rows the nearer the more iterations.
    """
    for _ in range(iterations):
        x = x.log_softmax(dim=-1)
        x = x.log_softmax(dim=-2)
    return x


def gumbel_like(x):
    """A Gumbel variate for every element of ``x``."""
    return -torch.empty_like(x).exponential_().log()


class VQRec(SemanticIDModel):
    """Vector-quantized item representations (Hou et al. 2023, arXiv 2210.12316).

    Codes are those of a product quantizer: every digit has a table of its own, two items may share all digits, and the
    collision level of the semantic IDs is left out.

    With ``train_stage: pretrain`` the loss is the contrastive one. A pre-trained model is fine-tuned in two stages, between
    which its trainer leads: :meth:`learn_permutation`, then :meth:`learn_embeddings`. Without ``pre_model_path`` all of it
    trains at once.

    Args:
        config: RecBole's Config with the settings of ``properties/model/VQRec.yaml``.
        dataset: has ``catalogue`` (a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`).
    """

    trainer_class = "recbole_tiger.training.vqrec.VQRecTrainer"

    @classmethod
    def check_settings(cls, config):
        """Refuse settings that cannot work together.

        Raises:
            TigerError: with the setting and what it may be.
        """
        if config["hidden_size"] % config["n_heads"]:
            raise TigerError(f"hidden_size {config['hidden_size']} has to be a multiple of n_heads, {config['n_heads']}")
        if config["pre_model_path"] is None:
            return
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

        # [n_items + 1, depth + 1], with the collision level, which tells items apart and is not read. Nothing reads what
        # padding looks up: no item attends to it, and it is no candidate.
        self.register_buffer("codes", F.pad(torch.tensor(dataset.catalogue.semantic_ids.codes), (0, 0, 1, 0)))
        depth, size = self.digits.shape[1], max(config["codebook_size"], int(self.digits.max()) + 1)
        self.code_embedding = nn.Parameter(torch.empty(depth, size, hidden_size))
        self.register_buffer("first_row", size * torch.arange(depth), persistent=False)
        # The row of the flat table that each code of a digit looks up: its own, unless a permutation is learned.
        self.register_buffer("row_of_code", torch.arange(depth * size))
        learned = config["pre_model_path"] and self.train_stage == "finetune"
        self.permutation_logits = nn.Parameter(torch.zeros(depth, size, size)) if learned else None
        self.permuting = False

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
        self._candidates = None

    # --- item and sequence representations (paper sections 3.1.2 and 3.2.1) ---

    @property
    def digits(self):
        """Codes of all items, int tensor [n_items + 1, depth]."""
        return self.codes[:, :-1]

    def represent(self, codes):
        """Mean of the code embeddings of items.

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
        return F.embedding_bag(rows, tables.flatten(0, 1), mode="mean")

    def encode(self, vectors, item_seq, lengths):
        """Representations of histories, of length one.

        Args:
            vectors: float tensor [batch, length, hidden_size] of the histories' items.
            item_seq: int tensor [batch, length], padded with zeros on the right; lengths: int tensor [batch].

        Returns:
            float tensor [batch, hidden_size]: the encoder's output at the last item.
        """
        x = vectors + self.position_embedding.weight[: item_seq.shape[1]]
        mask = self.get_attention_mask(item_seq)
        output = self.trm_encoder(self.dropout(self.LayerNorm(x)), mask, output_all_encoded_layers=False)[-1]
        return F.normalize(self.gather_indexes(output, lengths - 1), dim=-1)

    # --- training ---

    def calculate_loss(self, interaction):
        """Loss of RecBole's rows, of the stage that the model is in."""
        rows = (interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], interaction[self.ITEM_ID])
        return self.contrastive_loss(*rows) if self.train_stage == "pretrain" else self.softmax_loss(*rows)

    def softmax_loss(self, item_seq, lengths, targets):
        """Cross-entropy of the targets over the whole catalogue (paper section 3.3.2).

        Args:
            item_seq: int tensor [batch, length], padded with zeros on the right; lengths, targets: int tensors [batch].
        """
        vectors = self.represent(self.digits)
        histories = self.encode(F.embedding(item_seq, vectors), item_seq, lengths)
        scores = histories @ F.normalize(vectors[1:], dim=-1).T / self.temperature
        return F.cross_entropy(scores, targets - 1)

    def contrastive_loss(self, item_seq, lengths, targets):
        """Contrastive loss of pre-training (paper section 3.2.2).

        Negatives are the targets of the other rows, of whatever dataset, and one item a row that is the target with redrawn
        codes. What is the target itself is no negative.

        Args:
            item_seq: int tensor [batch, length], padded with zeros on the right; lengths, targets: int tensors [batch].
        """
        items, place = torch.cat([item_seq.flatten(), targets]).unique(return_inverse=True)
        vectors = F.embedding(place, self.represent(self.digits[items]))
        histories = self.encode(vectors[: item_seq.numel()].view(*item_seq.shape, -1), item_seq, lengths)
        in_batch = histories @ F.normalize(vectors[item_seq.numel() :], dim=-1).T
        codes = self.digits[targets]
        redrawn = self.redraw(codes)
        synthetic = (histories * F.normalize(self.represent(redrawn), dim=-1)).sum(dim=1, keepdim=True)
        same = targets.unsqueeze(1) == targets
        same.fill_diagonal_(False)
        same = torch.cat([same, (redrawn == codes).all(dim=1, keepdim=True)], dim=1)
        scores = torch.cat([in_batch, synthetic], dim=1) / self.temperature
        return F.cross_entropy(scores.masked_fill(same, -torch.inf), torch.arange(len(targets), device=targets.device))

    def redraw(self, codes):
        """Semi-synthetic items: each code is drawn anew with probability ``redraw_prob``, uniformly.

        Args:
            codes: int tensor [n, depth]; the result is another.
        """
        drawn = torch.randint_like(codes, self.code_embedding.shape[1])
        return torch.where(torch.rand(codes.shape, device=codes.device) < self.redraw_prob, drawn, codes)

    # --- fine-tuning of a pre-trained model (paper section 3.3.1) ---

    def start_from(self, pretrained):
        """Take over the code embeddings and the encoder of a model that was pre-trained on other items.

        Args:
            pretrained: its ``state_dict``.
        """
        own = {"codes", "row_of_code", "permutation_logits"}
        nn.Module.load_state_dict(self, {**self.state_dict(), **{k: v for k, v in pretrained.items() if k not in own}})

    def learn_permutation(self):
        """Train nothing but which pre-trained embedding each code of a digit looks up."""
        self._train_only(self.permutation_logits)
        self.permuting = True

    def learn_embeddings(self):
        """Train nothing but the code embeddings, in the order of :meth:`assign_permutation`."""
        self._train_only(self.code_embedding)
        self.permuting = False

    def _train_only(self, wanted):
        for parameter in self.parameters():
            parameter.requires_grad = parameter is wanted

    def _drawn_permutation(self):
        """One matrix a digit, drawn by Gumbel-Sinkhorn: a 1 a row, with the gradient of the smooth matrix.

        Returns:
            float tensor [depth, codebook_size, codebook_size].
        """
        noisy = (self.permutation_logits + gumbel_like(self.permutation_logits)) / self.sinkhorn_temperature
        smooth = log_sinkhorn(noisy, self.sinkhorn_iterations).exp()
        hard = torch.zeros_like(smooth).scatter_(-1, smooth.argmax(dim=-1, keepdim=True), 1.0)
        return hard - smooth.detach() + smooth

    @torch.no_grad()
    def assign_permutation(self):
        """Let codes look up the most probable permutation of each digit, by linear assignment."""
        smooth = log_sinkhorn(self.permutation_logits / self.sinkhorn_temperature, self.sinkhorn_iterations)
        found = [linear_sum_assignment(matrix, maximize=True)[1] for matrix in smooth.float().cpu().numpy()]
        chosen = torch.stack([torch.from_numpy(columns) for columns in found]).to(self.row_of_code.device)
        self.row_of_code.copy_((chosen + self.first_row.unsqueeze(1)).flatten())

    # --- inference ---

    def train(self, mode=True):
        """As PyTorch's; what :meth:`candidates` keeps is made anew."""
        self._candidates = None
        return super().train(mode)

    def load_state_dict(self, state_dict, strict=True):
        """Load weights together with the codes that they were trained on.

        Raises:
            TigerError: they belong to another catalogue, other settings or another model.
        """
        self._candidates = None
        codes = state_dict.get("codes")
        if codes is None or "code_embedding" not in state_dict:
            raise TigerError("the checkpoint holds no code embeddings: it is not one of VQRec")
        if len(codes) != len(self.codes):
            raise TigerError(f"the checkpoint is of another dataset: {len(codes) - 1} items, here {len(self.codes) - 1}")
        try:
            return super().load_state_dict(state_dict, strict)
        except RuntimeError as error:
            raise TigerError(
                f"the checkpoint was made with other settings: {str(error).splitlines()[-1].strip()}"
            ) from error

    @torch.no_grad()
    def candidates(self):
        """Vectors of all items, padding included, and the same of length one: two float tensors [n_items + 1, hidden_size].

        An evaluation computes them once.
        """
        if self.training or self._candidates is None:
            vectors = self.represent(self.digits)
            self._candidates = vectors, F.normalize(vectors, dim=-1)
        return self._candidates

    def _encoded(self, item_seq, lengths):
        vectors, directions = self.candidates()
        return self.encode(F.embedding(item_seq, vectors), item_seq, lengths), directions

    def _scores(self, item_seq, lengths):
        """Scores of all items [batch, n_items + 1], -inf for padding."""
        histories, directions = self._encoded(item_seq, lengths)
        scores = histories @ directions.T / self.temperature
        scores[:, 0] = -torch.inf
        return scores

    @torch.no_grad()
    def full_sort_predict(self, interaction):
        """Scores of all items [batch, n_items]: cosine over temperature, -inf for padding."""
        return self._scores(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    @torch.no_grad()
    def predict(self, interaction):
        """Score of the given item after each history, [batch]."""
        histories, directions = self._encoded(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return (histories * directions[interaction[self.ITEM_ID]]).sum(dim=1) / self.temperature

    @torch.no_grad()
    def exact(self, histories, slots=None):
        """Log-probability of every item after each history.

        Args:
            histories: int tensor [batch, n], padded with zeros on the left; the last MAX_ITEM_LIST_LENGTH items are read.
            slots: None, for there is no user token.

        Returns:
            float tensor [batch, n_items + 1], -inf for padding.
        """
        histories = histories[:, -self.max_seq_length :].to(self.codes.device)
        lengths = (histories != 0).sum(dim=1)
        # From padding on the left to RecBole's, on the right.
        place = torch.arange(histories.shape[1], device=histories.device) - lengths.unsqueeze(1)
        item_seq = histories.gather(1, place % histories.shape[1])
        return self._scores(item_seq, lengths).log_softmax(dim=-1)
