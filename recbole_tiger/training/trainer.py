"""WindowTrainer: batches of windows, resuming after every epoch."""

import contextlib
import os
import textwrap
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import dict2str, early_stopping
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_tiger.errors import TigerError
from recbole_tiger.files import link_or_copy
from recbole_tiger.settings.identity import run_key
from recbole_tiger.training.checkpoint import checkpoint_name, load_checkpoint
from recbole_tiger.training.dataset import target_positions, training_windows
from recbole_tiger.training.memory import keep_freed_memory


def autocast(config):
    """Context of bf16 computation if ``enable_amp`` is set."""
    return torch.autocast(config["device"].type, dtype=torch.bfloat16, enabled=config["enable_amp"])


@contextlib.contextmanager
def tf32(device):
    """Context of TF32 matrix products on a GPU: float32 with mantissas of 10 bits (bf16 has 7), on tensor cores."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class WindowTrainer(Trainer):
    """RecBole's trainer with windows as batches, which resumes after every epoch.

    RecBole's rows hold one prefix each; here a batch consists of windows, each with all prefixes of a user.
    ``train_batch_size`` counts targets, as RecBole's counts rows. After every epoch the whole state is saved in
    ``<checkpoint_dir>/<model>-<key>/last.pth``, where the key is a hash of the settings and the data. With ``resume`` the
    run continues from there, with the same result as an uninterrupted run. The best epoch is saved in
    ``<checkpoint_dir>/<label>-<dataset>-<time>-<key>.pth``.

    The model has ``window_loss(items, targets, positions, users, padded)``, as
    :meth:`~recbole_tiger.model.tiger.TIGER.window_loss`.

    Attributes:
        epoch_log: list of one dict per epoch.
        one_target: whether a window has one target, as RecBole's rows.
    """

    one_target = False

    def __init__(self, config, model):
        keep_freed_memory()
        super().__init__(config, model)
        key = run_key(config)
        self.saved_model_file = checkpoint_name(self.saved_model_file, config, key)
        self.state_file = Path(self.checkpoint_dir) / f"{config['model']}-{key}" / "last.pth"
        self.epoch_log = []
        self.stopped = False

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """One pass over the windows; returns the mean loss of a batch."""
        self.model.train()
        windows = train_data.windows
        generator = torch.Generator().manual_seed(self.config["seed"] + epoch_idx)
        batches = windows.batches(self.config["train_batch_size"], generator)
        total_steps = len(batches) * self.epochs
        total = torch.zeros((), device=self.device)
        for batch in tqdm(batches, desc=f"Train {epoch_idx:>5}", ncols=100, disable=not show_progress):
            total += self.train_step(windows, batch, total_steps)
        mean = total / len(batches)
        if not mean.isfinite():
            raise TigerError(
                f"the loss of epoch {epoch_idx} is {mean.item()}: training has diverged; lower learning_rate, now "
                f"{self.learning_rate}, or set clip_grad_norm"
            )
        return mean.item()

    def train_step(self, windows, batch, total_steps):
        """One step of the optimizer.

        Args:
            windows: from :func:`training_windows`, on the trainer's device.
            batch: int tensor of the indices of the windows to train on.
            total_steps: number of steps of all epochs.

        Returns:
            the detached loss.
        """
        shortest, longest = map(int, windows.lengths[batch].aminmax())
        targets, positions = target_positions(windows.n_targets[batch])
        rows = batch.to(self.device, non_blocking=True)
        items, users = windows.items[rows, -longest:], windows.users[rows]
        if positions is not None:
            positions = positions.to(self.device, non_blocking=True)
        return self._update(items, targets, positions, users, shortest < longest)

    def _update(self, *batch):
        """Do a step of the optimizer with the arguments of the model's ``window_loss``; returns the detached loss."""
        with tf32(self.device):
            with autocast(self.config):
                loss = self.model.window_loss(*batch)
            loss.backward()
        if self.clip_grad_norm:
            clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def averaged(self):
        """Context in which the model has the weights that are evaluated and saved."""
        return contextlib.nullcontext()

    # --- checkpoints ---

    def _state(self, epoch):
        kind, key, *rest = np.random.get_state()
        return {
            **super()._state(epoch),
            "best_valid_result": None if self.best_valid_result is None else dict(self.best_valid_result),
            "random_state": torch.get_rng_state(),
            "numpy_random_state": [kind, key.tolist(), *rest],  # RecBole draws the items of sampled evaluation with it
            "cuda_random_states": [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [],
            "epoch_log": self.epoch_log,
            "saved_model_file": os.path.basename(self.saved_model_file),
            "stopped": self.stopped,
        }

    def _load_model(self, state, file):
        """Load the weights of a checkpoint.

        Raises:
            TigerError: the checkpoint has another model, revision, dataset or settings.
        """
        if state["config"]["model"] != self.config["model"]:
            raise TigerError(
                f"{file} is a checkpoint of {state['config']['model']}, not of {self.config['model']}; give another"
            )
        self.model.check_revision(state["other_parameter"], file)
        name = self.model.codes_name
        theirs, ours = (weights[name].shape[1] for weights in (state["state_dict"], self.model.state_dict()))
        try:
            if theirs != ours:
                raise TigerError(f"the checkpoint was made with other settings: IDs of {theirs} codes, here {ours}")
            self.model.load_state_dict(state["state_dict"])
            self.model.load_other_parameter(state["other_parameter"])
        except TigerError as error:
            reason = textwrap.shorten(str(error), 200, placeholder="...")
            raise TigerError(f"{file}: {reason}; use the settings and data that it was trained with") from error

    def resume_checkpoint(self, resume_file):
        """Resume from a checkpoint of this trainer, of the best or of the last epoch."""
        state = load_checkpoint(resume_file)
        self._load_model(state, resume_file)
        if "random_state" not in state:
            raise TigerError(f"{resume_file} was not written by this trainer: it lacks the state to resume from")
        self._resume(state, resume_file)
        self.logger.info(f"Resuming from {resume_file}: epochs 0 to {state['epoch']} are done")

    def _optimizer_of(self, epoch):
        """The optimizer that an epoch uses, without its state."""
        return self._build_optimizer()

    def _resume(self, state, file):
        """Take over the state of training from a checkpoint; the model has its weights."""
        # If the checkpoint has other codes, loading it has rebuilt the network.
        self.optimizer = self._optimizer_of(state["epoch"])
        device_options = [
            {name: group[name] for name in ("lr", "capturable") if name in group} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, device_options, strict=True):
            group.update(options)  # the state may come from another device
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self.best_valid_result = state["best_valid_result"]
        self.epoch_log = state["epoch_log"]
        self.stopped = state["stopped"]
        torch.set_rng_state(state["random_state"])
        np.random.set_state(tuple(state["numpy_random_state"]))
        if state["cuda_random_states"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random_states"][0], self.device)
        self.saved_model_file = os.path.join(self.checkpoint_dir, state["saved_model_file"])

    # --- RecBole's interface ---

    def fit(
        self,
        train_data,
        valid_data=None,
        verbose=True,
        saved=True,
        show_progress=False,
        callback_fn=None,
    ):
        """Train; arguments as in RecBole's trainer.

        Returns:
            best validation score and result; (-inf, None) without validation data.
        """
        if self.config["resume"] and self.start_epoch == 0 and self.state_file.is_file():
            self.resume_checkpoint(self.state_file)
        train_data.windows = training_windows(train_data._dataset, self.one_target).to(self.device)
        self.eval_collector.data_collect(train_data)
        for epoch in range(self.start_epoch, self.epochs):
            if self.stopped:
                break
            loss = self._train_epoch(train_data, epoch, show_progress=show_progress)
            self.train_loss_dict[epoch] = loss
            self._add_train_loss_to_tensorboard(epoch, loss)
            self.wandblogger.log_metrics({"epoch": epoch, "train_loss": loss, "train_step": epoch}, head="train")
            if verbose:
                self.logger.info(f"epoch {epoch} training [train loss: {loss:.4f}]")
            with self.averaged():
                improved = not valid_data or self.eval_step <= 0
                if not improved and (epoch + 1) % self.eval_step == 0:
                    improved = self._validate(valid_data, epoch, verbose, show_progress, callback_fn)
                if saved:
                    if improved:
                        self._save_checkpoint(epoch, verbose=verbose)
                        link_or_copy(self.saved_model_file, self.state_file)
                    else:
                        self._save_checkpoint(epoch, verbose=False, saved_model_file=self.state_file)
        self._add_hparam_to_tensorboard(self.best_valid_score)
        return self.best_valid_score, self.best_valid_result

    def _validate(self, valid_data, epoch, verbose, show_progress, callback_fn):
        """Validate and decide whether to stop; returns whether the epoch is the best so far."""
        score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        self.best_valid_score, self.cur_step, self.stopped, improved = early_stopping(
            score, self.best_valid_score, self.cur_step, max_step=self.stopping_step, bigger=self.valid_metric_bigger
        )
        if improved:
            self.best_valid_result = result
        if verbose:
            self.logger.info(f"epoch {epoch} evaluating [valid_score: {score:f}]\nvalid result: \n{dict2str(result)}")
            if self.stopped:
                self.logger.info(f"Finished training, best eval result in epoch {epoch - self.cur_step * self.eval_step}")
        self.tensorboard.add_scalar("Vaild_score", score, epoch)
        self.wandblogger.log_metrics({**result, "valid_step": epoch}, head="valid")
        if callback_fn:
            callback_fn(epoch, score)
        return improved

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Evaluate; arguments as in RecBole's trainer."""
        if eval_data and load_best_model:
            state = load_checkpoint(model_file or self.saved_model_file)
            self._load_model(state, model_file or self.saved_model_file)
            self.logger.info(f"Loading model structure and parameters from {model_file or self.saved_model_file}")
        # RecBole's collector keeps the rows of an interrupted evaluation, and would count them again.
        collected = self.eval_collector.data_struct._data_dict
        for name in [name for name in collected if name.startswith("rec.") or name == "data.label"]:
            del collected[name]
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
