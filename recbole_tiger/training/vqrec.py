"""VQRecTrainer: two-stage fine-tuning of a pre-trained VQRec."""

from pathlib import Path

from recbole_tiger.errors import TigerError
from recbole_tiger.model import MODELS
from recbole_tiger.training.checkpoint import load_checkpoint
from recbole_tiger.training.trainer import WindowTrainer

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
    state = load_checkpoint(file)
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


class VQRecTrainer(WindowTrainer):
    """The trainer of VQRec.

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

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """One pass over the windows, in the stage of the epoch; returns the mean loss of a batch."""
        if self.model.permutation_logits is not None:
            if epoch_idx == 0:
                self.model.start_from(load_pretrained(self.config)["state_dict"])
            if epoch_idx in (0, self.config["permutation_epochs"]):
                self.optimizer = self._optimizer_of(epoch_idx)
                self.cur_step = 0
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        if self.model.permuting:
            self.model.assign_permutation()
        return loss

    def _optimizer_of(self, epoch):
        """As in the base class; sets which weights the epoch trains."""
        if self.model.permutation_logits is None:
            return super()._optimizer_of(epoch)
        if epoch < self.config["permutation_epochs"]:
            self.model.learn_permutation()
            self.stopping_step = self.epochs
            return self._build_optimizer(learning_rate=self.config["permutation_learning_rate"])
        self.model.learn_embeddings()
        self.stopping_step = self.config["stopping_step"]
        return self._build_optimizer()
