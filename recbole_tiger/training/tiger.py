"""TIGERTrainer: learning rate schedule, averaged weights, CUDA graphs."""

import contextlib
import math

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from recbole_tiger.errors import TigerError
from recbole_tiger.graphs import Graphs
from recbole_tiger.training.evaluation import RankedCollector
from recbole_tiger.training.trainer import WindowTrainer, autocast


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


class TIGERTrainer(WindowTrainer):
    """The trainer of TIGER.

    With ``ema_decay`` the learning rate is constant after the warm-up, and validation, checkpoints and test use an
    exponential moving average of the weights; the first steps have equal weight in it.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.one_target = config["bidirectional_encoder"]
        self.schedule_step = 0
        self.averages = [p.detach().clone() for p in model.parameters()] if config["ema_decay"] else []
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
        self._graphs = Graphs(super()._update) if graphed else None
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay, **adam},
            {"params": others, "weight_decay": 0.0, **adam},
        ]
        return super()._build_optimizer(params=groups, **kwargs)

    def train_step(self, windows, batch, total_steps):
        """As in the base class; ``total_steps`` is the length of the learning rate schedule."""
        self._set_rate(warmup_cosine(self.schedule_step, total_steps, self.config["warmup_ratio"], bool(self.averages)))
        loss = super().train_step(windows, batch, total_steps)
        self.schedule_step += 1
        if self.averages:
            decay = min(self.config["ema_decay"], 1 - 1 / self.schedule_step)
            get_ema_multi_avg_fn(decay)(self.averages, list(self.model.parameters()), None)
        return loss

    def _update(self, *batch):
        return (self._graphs or super()._update)(*batch)

    def _set_rate(self, factor):
        """Set the learning rate to the peak times ``factor``, in place where it is a tensor, which graphs read."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self.learning_rate * factor)
            else:
                group["lr"] = self.learning_rate * factor

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
        return {
            **super()._state(epoch),
            "trained_weights": self.averages,  # the weights that the optimizer updates: state_dict holds the averages
            "schedule_step": self.schedule_step,
        }

    def _resume(self, state, file):
        if bool(state.get("trained_weights")) != bool(self.averages):
            raise TigerError(f"{file} was trained with another ema_decay; use the settings that it was trained with")
        super()._resume(state, file)
        self.schedule_step = state["schedule_step"]
        if self.averages:
            self._swap_averages()
            for parameter, weights in zip(self.model.parameters(), state["trained_weights"], strict=True):
                parameter.data = weights.to(parameter.device)

    def fit(self, *args, **kwargs):
        """Train; arguments and result as in RecBole's trainer."""
        result = super().fit(*args, **kwargs)
        self._swap_averages()  # later evaluations use the averages
        return result

    def evaluate(self, *args, **kwargs):
        """Evaluate; arguments and result as in RecBole's trainer."""
        with autocast(self.config):
            return super().evaluate(*args, **kwargs)

    def _full_sort_batch_eval(self, batched_data):
        """As in RecBole's trainer, but with the items of the beam in place of scores if no scores are needed."""
        if not self.ranks_only:
            return super()._full_sort_batch_eval(batched_data)
        interaction, _, positive_u, positive_i = batched_data
        return interaction, self.model.beam(interaction)[0], positive_u, positive_i
