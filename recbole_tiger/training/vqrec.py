"""VQRecTrainer: RecBole's trainer, and the two stages in which a pre-trained VQRec is fine-tuned."""

from pathlib import Path

from recbole.trainer import Trainer

from recbole_tiger.errors import TigerError
from recbole_tiger.training.checkpoint import load_checkpoint

# Settings that a pre-trained model and the one that starts from it have to share.
SHARED = ("codebook_depth", "codebook_size", "hidden_size", "inner_size", "n_layers", "n_heads", "MAX_ITEM_LIST_LENGTH")


def pretrained(config):
    """The checkpoint that ``pre_model_path`` names.

    Raises:
        TigerError: it is absent, of another model or revision, was not pre-trained, or does not fit the settings.
    """
    file = Path(config["pre_model_path"])
    if not file.is_file():
        raise TigerError(
            f"pre_model_path {file} does not exist: give the checkpoint of a run with --train_stage=pretrain, or leave "
            f"pre_model_path out to train from scratch"
        )
    state = load_checkpoint(file, "cpu")
    theirs, own = state["config"], config["model"]
    if theirs["model"] != own:
        raise TigerError(f"pre_model_path {file} is a checkpoint of {theirs['model']}, not of {own}; give another")
    if theirs["train_stage"] != "pretrain":
        raise TigerError(
            f"pre_model_path {file} was trained with train_stage {theirs['train_stage']}: give the checkpoint of a run with "
            f"--train_stage=pretrain"
        )
    for name in SHARED:
        if theirs[name] != config[name]:
            raise TigerError(
                f"pre_model_path {file} was trained with {name} {theirs[name]}, and here it is {config[name]}: give "
                f"--{name}={theirs[name]}, or another checkpoint"
            )
    return state


class VQRecTrainer(Trainer):
    """RecBole's trainer for VQRec.

    Only a model with ``pre_model_path`` trains otherwise than RecBole's models do: it starts from the pre-trained weights, for
    ``permutation_epochs`` learns a permutation of the codes alone, and then the code embeddings alone (paper section 3.3).
    Early stopping counts from the second stage on.
    """

    @staticmethod
    def check_settings(config):
        """Refuse a pre-trained model that is absent or does not fit.

        Raises:
            TigerError: as :func:`pretrained`.
        """
        if config["pre_model_path"] is not None:
            pretrained(config)

    def fit(self, *args, **kwargs):
        """Train as RecBole's trainer does; see there for the arguments and what it returns."""
        if self.model.permutation_logits is not None and self.start_epoch == 0:
            self.model.start_from(pretrained(self.config)["state_dict"])
        return super().fit(*args, **kwargs)

    def _train_epoch(self, train_data, epoch_idx, *args, **kwargs):
        """One pass over the data, in the stage that the epoch belongs to."""
        if self.model.permutation_logits is None:
            return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
        permuting = epoch_idx < self.config["permutation_epochs"]
        if epoch_idx in (self.start_epoch, self.config["permutation_epochs"]):
            if permuting:
                self.model.learn_permutation()
            else:
                self.model.learn_embeddings()
            rate = self.config["permutation_learning_rate"] if permuting else self.learning_rate
            self.optimizer = self._build_optimizer(learning_rate=rate)
        if permuting:
            self.cur_step = 0
        loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
        if permuting:
            self.model.assign_permutation()
        return loss
