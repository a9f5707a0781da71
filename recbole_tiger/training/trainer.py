"""TIGERTrainer: batches of windows, learning rate schedule, averaged weights, resuming after every epoch."""

import contextlib
import math
import os
import textwrap
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import dict2str, early_stopping
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from recbole_tiger.errors import TigerError
from recbole_tiger.files import link_or_copy
from recbole_tiger.graphs import Graphs
from recbole_tiger.model.tiger import target_positions
from recbole_tiger.settings.identity import run_key
from recbole_tiger.training.checkpoint import checkpoint_name, load_checkpoint
from recbole_tiger.training.dataset import training_windows
from recbole_tiger.training.evaluation import RankedCollector
from recbole_tiger.training.memory import keep_freed_memory


def warmup_cosine(step, total, warmup_ratio, constant=False):
    """Factor of the learning rate: linear warm-up over the share ``warmup_ratio`` of the steps, then a cosine to zero.

    With ``constant`` it stays at 1 after the warm-up.
    """
    warmup = max(1, round(warmup_ratio * total))
    if step < warmup:
        return (step + 1) / warmup
    if constant:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


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


class TIGERTrainer(Trainer):
    """RecBole's trainer for TIGER.

    ``train_batch_size`` counts targets, as RecBole's counts rows. After every epoch the whole state is saved in
    ``<checkpoint_dir>/<model>-<key>/last.pth``, where the key is a hash of the settings and the data. With ``resume`` the
    run continues from there, with the same result as an uninterrupted run. The best epoch is saved in
    ``<checkpoint_dir>/<label>-<dataset>-<time>-<key>.pth``.

    With ``ema_decay`` the learning rate is constant after the warm-up, and validation, checkpoints and test use an
    exponential moving average of the weights; the first steps have equal weight in it.

    Attributes:
        epoch_log: list of one dict per epoch.
    """

    def __init__(self, config, model):
        keep_freed_memory()
        super().__init__(config, model)
        key = run_key(config)
        self.saved_model_file = checkpoint_name(self.saved_model_file, config, key)
        self.state_file = Path(self.checkpoint_dir) / f"{config['model']}-{key}" / "last.pth"
        self.epoch_log = []
        self.schedule_step = 0
        self.averages = [p.detach().clone() for p in model.parameters()] if config["ema_decay"] else []
        self.stopped = False
        self.ranks_only = not model.needs_scores(config)
        if self.ranks_only:
            self.eval_collector = RankedCollector(config)

    def _build_optimizer(self, **kwargs):
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        others = [p for p in self.model.parameters() if p.dim() < 2]
        adam = {"betas": tuple(self.config["betas"]), "fused": True} if self.learner.lower() in ("adam", "adamw") else {}
        # A graph of the step reads the learning rate from a tensor, which only these optimizers support.
        graphed = self.device.type == "cuda" and adam
        if graphed:
            adam.update(capturable=True, lr=torch.tensor(self.learning_rate, device=self.device))
        self._update = Graphs(self._update_weights) if graphed else self._update_weights
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay, **adam},
            {"params": others, "weight_decay": 0.0, **adam},
        ]
        return super()._build_optimizer(params=groups, **kwargs)

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
            total_steps: number of steps of the learning rate schedule.

        Returns:
            the detached loss.
        """
        self._set_rate(warmup_cosine(self.schedule_step, total_steps, self.config["warmup_ratio"], bool(self.averages)))
        shortest, longest = map(int, windows.lengths[batch].aminmax())
        targets, positions = target_positions(windows.n_targets[batch])
        rows = batch.to(self.device, non_blocking=True)
        items, users = windows.items[rows, -longest:], windows.users[rows]
        if positions is not None:
            positions = positions.to(self.device, non_blocking=True)
        loss = self._update(items, targets, positions, users, shortest < longest)
        self.schedule_step += 1
        if self.averages:
            decay = min(self.config["ema_decay"], 1 - 1 / self.schedule_step)
            get_ema_multi_avg_fn(decay)(self.averages, list(self.model.parameters()), None)
        return loss

    def _set_rate(self, factor):
        """Set the learning rate to the peak times ``factor``, in place where it is a tensor, which graphs read."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self.learning_rate * factor)
            else:
                group["lr"] = self.learning_rate * factor

    def _update_weights(self, *batch):
        """Do a step of the optimizer with the arguments of :meth:`TIGER.window_loss`; returns the detached loss."""
        with tf32(self.device):
            with autocast(self.config):
                loss = self.model.window_loss(*batch)
            loss.backward()
        if self.clip_grad_norm:
            clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _swap_averages(self):
        """Swap the weights of the model and their averages, without copying."""
        if self.averages:
            for parameter, average in zip(self.model.parameters(), self.averages, strict=True):
                parameter.data, average.data = average.data, parameter.data

    @contextlib.contextmanager
    def averaged(self):
        """Context in which the model has its averaged weights, if ``ema_decay`` is set."""
        self._swap_averages()
        try:
            yield
        finally:
            self._swap_averages()

    def _state(self, epoch):
        kind, key, *rest = np.random.get_state()
        return {
            **super()._state(epoch),
            "trained_weights": self.averages,  # the weights that the optimizer updates: state_dict holds the averages
            "best_valid_result": None if self.best_valid_result is None else dict(self.best_valid_result),
            "schedule_step": self.schedule_step,
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
        theirs, ours = state["state_dict"]["network.codes"].shape[1], self.model.network.codes.shape[1]
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
        state = load_checkpoint(resume_file, self.device)
        self._load_model(state, resume_file)
        if "schedule_step" not in state:
            raise TigerError(f"{resume_file} was not written by this trainer: it lacks the state to resume from")
        if bool(state.get("trained_weights")) != bool(self.averages):
            raise TigerError(f"{resume_file} was trained with another ema_decay; use the settings that it was trained with")
        # If the checkpoint has other codes, loading it has rebuilt the network.
        self.optimizer = self._build_optimizer()
        device_options = [
            {name: group[name] for name in ("lr", "capturable") if name in group} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, device_options, strict=True):
            group.update(options)  # the state may come from another device
        if self.averages:
            self._swap_averages()
            for parameter, weights in zip(self.model.parameters(), state["trained_weights"], strict=True):
                parameter.data = weights
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self.best_valid_result = state["best_valid_result"]
        self.schedule_step = state["schedule_step"]
        self.epoch_log = state["epoch_log"]
        self.stopped = state["stopped"]
        torch.set_rng_state(state["random_state"].cpu())
        np.random.set_state(tuple(state["numpy_random_state"]))
        if state["cuda_random_states"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random_states"][0].cpu(), self.device)
        self.saved_model_file = os.path.join(self.checkpoint_dir, state["saved_model_file"])
        self.logger.info(f"Resuming from {resume_file}: epochs 0 to {state['epoch']} are done")

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
        windows = training_windows(train_data._dataset, self.config["bidirectional_encoder"])
        train_data.windows = windows.to(self.device)
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
        self._swap_averages()  # later evaluations use the averages
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
            state = load_checkpoint(model_file or self.saved_model_file, self.device)
            self._load_model(state, model_file or self.saved_model_file)
            self.logger.info(f"Loading model structure and parameters from {model_file or self.saved_model_file}")
        # RecBole's collector keeps the rows of an interrupted evaluation, and would count them again.
        collected = self.eval_collector.data_struct._data_dict
        for name in [name for name in collected if name.startswith("rec.") or name == "data.label"]:
            del collected[name]
        with autocast(self.config):
            return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    def _full_sort_batch_eval(self, batched_data):
        """As in RecBole's trainer, but with the items of the beam in place of scores if no scores are needed."""
        if not self.ranks_only:
            return super()._full_sort_batch_eval(batched_data)
        interaction, _, positive_u, positive_i = batched_data
        return interaction, self.model.beam(interaction)[0], positive_u, positive_i
