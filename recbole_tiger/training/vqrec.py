"""VQRecTrainer: RecBole's trainer with windows as batches, and with two-stage fine-tuning of a pre-trained VQRec."""

from pathlib import Path

import torch
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer

from recbole_tiger.errors import TigerError
from recbole_tiger.model import MODELS
from recbole_tiger.training.checkpoint import load_checkpoint
from recbole_tiger.training.dataset import training_windows

# Settings that must be the same in pre-training and in fine-tuning.
SHARED_SETTINGS = ("codebook_depth", "codebook_size", "hidden_size", "inner_size", "n_layers", "n_heads")
SHARED_SETTINGS += ("hidden_act", "MAX_ITEM_LIST_LENGTH")


def load_pretrained(config):
    """Load the checkpoint ``pre_model_path``.

    Raises:
        TigerError: it is absent, has another model or revision, was not pre-trained, or does not fit the settings.
    """
    file = Path(config["pre_model_path"])
    if not file.is_file():
        raise TigerError(
            f"pre_model_path {file} does not exist: give the checkpoint of a run with --train_stage=pretrain, or leave "
            f"pre_model_path out to train from scratch"
        )
    state = load_checkpoint(file, "cpu")
    theirs, model = state["config"], config["model"]
    if theirs["model"] != model:
        raise TigerError(f"pre_model_path {file} is a checkpoint of {theirs['model']}, not of {model}; give another")
    MODELS[model].check_revision(state["other_parameter"], file)
    if theirs["train_stage"] != "pretrain":
        raise TigerError(
            f"pre_model_path {file} was trained with train_stage {theirs['train_stage']}: give the checkpoint of a run with "
            f"--train_stage=pretrain"
        )
    for name in SHARED_SETTINGS:
        if theirs[name] != config[name]:
            raise TigerError(
                f"pre_model_path {file} was trained with {name} {theirs[name]}, but here it is {config[name]}: give "
                f"--{name}={theirs[name]}, or another checkpoint"
            )
    return state


class Batches:
    """The batches of windows of an epoch, in place of RecBole's loader of rows.

    Args:
        windows: from :func:`~recbole_tiger.training.dataset.training_windows`.
        n_targets: approximate number of targets per batch.
        seed: of the order of the batches.
    """

    def __init__(self, windows, n_targets, seed):
        self.windows = windows
        self.rows = windows.batches(n_targets, torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        for rows in self.rows:
            longest = int(self.windows.lengths[rows].max())
            items, n_targets = self.windows.items[rows, -longest:], self.windows.n_targets[rows]
            yield Interaction({"items": items, "n_targets": n_targets})


class VQRecTrainer(Trainer):
    """RecBole's trainer for VQRec.

    RecBole's rows hold one prefix each; here a batch consists of windows, each with all prefixes of a user.
    ``train_batch_size`` counts targets, as RecBole's counts rows.

    A model with ``pre_model_path`` starts from the pre-trained weights. For ``permutation_epochs`` it learns only a
    permutation of the codes, then only the code embeddings (paper section 3.3). Early stopping counts from the second stage.
    """

    @staticmethod
    def check_settings(config):
        """Check that the pre-trained model exists and fits.

        Raises:
            TigerError: as in :func:`load_pretrained`.
        """
        if config["pre_model_path"] is not None:
            load_pretrained(config)

    def fit(self, train_data, *args, **kwargs):
        """Train; arguments and result as in RecBole's trainer."""
        if self.model.permutation_logits is not None and self.start_epoch == 0:
            self.model.start_from(load_pretrained(self.config)["state_dict"])
        self.windows = training_windows(train_data._dataset, one_target=False)
        return super().fit(train_data, *args, **kwargs)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """One pass over the windows, in the stage of the epoch; returns the mean loss of a batch."""
        permuting = self._begin_stage(epoch_idx)
        batches = Batches(self.windows, self.config["train_batch_size"], self.config["seed"] + epoch_idx)
        loss = super()._train_epoch(batches, epoch_idx, self._loss, show_progress)
        if permuting:
            self.model.assign_permutation()
        return loss / len(batches)

    def _loss(self, batch):
        return self.model.window_loss(batch["items"], batch["n_targets"])

    def _begin_stage(self, epoch):
        """Set which weights train in an epoch; returns whether it is the permutation."""
        if self.model.permutation_logits is None:
            return False
        first_of_embeddings = self.config["permutation_epochs"]
        permuting = epoch < first_of_embeddings
        if epoch in (self.start_epoch, first_of_embeddings):
            if permuting:
                self.model.learn_permutation()
            else:
                self.model.learn_embeddings()
            self.cur_step = 0
            rate = self.config["permutation_learning_rate"] if permuting else self.learning_rate
            self.optimizer = self._build_optimizer(learning_rate=rate)
        self.stopping_step = self.epochs if permuting else self.config["stopping_step"]
        return permuting
