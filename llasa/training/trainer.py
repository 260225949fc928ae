"""`transformers.Trainer` with our optimizer, schedule and order of rows.

The trainer's loop, accumulation, mixed precision, distribution and resume are used as they are. The loss is
averaged over the supervised tokens of the whole optimizer step: the trainer counts them over all micro-batches
and devices and the model's loss divides by that number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer

from llasa.config import ScheduleConfig
from llasa.training.optim import build_schedule


class SpeechTrainer(Trainer):
    """Args:
    optimizer_factory: parameter groups → optimizer.
    schedule: shape of the learning rate.
    """

    def __init__(
        self,
        *,
        optimizer_factory: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: ScheduleConfig,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.optimizer_factory, self.schedule = optimizer_factory, schedule

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        """Rows in the plan's order: the plan has shuffled them, and knows them by number."""
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Norms and biases are not decayed."""
        if self.optimizer is None:
            model = model or self.model
            decayed = set(self.get_decay_parameter_names(model))
            named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for name, p in named if name in decayed]},
                {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
            ]
            self.optimizer = self.optimizer_factory([group for group in groups if group["params"]])
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(self.schedule, optimizer or self.optimizer, num_training_steps)
        return self.lr_scheduler
