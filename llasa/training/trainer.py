"""`transformers.Trainer` with our optimizer, schedule, order of rows and states.

The trainer's loop, accumulation, mixed precision, distribution and resume are used as they are. The loss is
averaged over the supervised tokens of the whole optimizer step: the trainer counts them over all micro-batches
and devices and the model's loss divides by that number.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.checkpoint import CheckpointException
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer

from llasa.config import ScheduleConfig
from llasa.packing.dataset import PackedRows
from llasa.training.saving import PARTIAL, complete_state, disk_failure, is_disk_failure
from llasa.training.schedule import build_schedule
from llasa.training.state import SavedState


class SpeechTrainer(Trainer):
    """Args:
    optimizer_factory: model → optimizer.
    schedule: shape of the learning rate.
    rows_per_step: rows of ``train_dataset`` in an optimizer step, over all devices and accumulation.
    saved: the state that :meth:`train` is told to resume from.

    Attributes:
        saved_step: the step of the newest whole state, 0 = none (as the first process knows it).
    """

    train_dataset: PackedRows
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler

    def __init__(
        self,
        *,
        optimizer_factory: Callable[[torch.nn.Module], torch.optim.Optimizer],
        schedule: ScheduleConfig,
        rows_per_step: int,
        saved: SavedState | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.optimizer_factory, self.schedule = optimizer_factory, schedule
        self.rows_per_step, self.saved = rows_per_step, saved
        self.saved_step = saved.step if saved else 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        """Rows in the plan's order: the plan has shuffled them, and knows them by number."""
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.optimizer_factory(model or self.model)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(self.schedule, optimizer or self.optimizer, num_training_steps)
        return self.lr_scheduler

    def _get_output_dir(self, trial: Any) -> str:
        """Where the parent class writes `checkpoint-N`, which is complete when it has been renamed."""
        return str(Path(self.args.output_dir) / PARTIAL)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a state under a temporary name, all processes their part; the first one makes it complete.

        A disk that is full costs this state, not the run.
        """
        first, folder = self.is_world_process_zero(), Path(self.args.output_dir)
        partial = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if first:
            shutil.rmtree(partial.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        failure = None
        try:
            super()._save_checkpoint(model, trial)
        except (Exception, CheckpointException) as error:
            if not is_disk_failure(error):
                raise
            failure = disk_failure(error, folder)
        # Also the barrier after which all files are there.
        parts = gather_object([(failure, self._tr_loss.item())])
        if not first:
            self.saved_step = self.state.global_step
            return
        failure = next((failure for failure, _ in parts if failure), None)
        facts = {
            "step": self.state.global_step,
            "position": self.train_dataset.position(self.state.global_step * self.rows_per_step),
            "logged_step": self._globalstep_last_logged,
            "unlogged_losses": [loss for _, loss in parts],
        }
        if failure is None:
            try:
                complete_state(partial, facts, self.args.save_total_limit)
                self.saved_step = self.state.global_step
            except OSError as error:
                failure = disk_failure(error, folder)
        if failure is not None:
            shutil.rmtree(partial.parent, ignore_errors=True)
            print(
                f"warning: the state of step {facts['step']} could not be written ({failure}); training goes on, make "
                f"room in {folder} before the next one",
                file=sys.stderr,
                flush=True,
            )

    def _run_epoch(self, **kwargs: Any) -> None:
        """The mean that is logged next counts the steps before the resume too, or it would not be the same."""
        if self.saved is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            losses = self.saved.unlogged_losses
            same_processes = len(losses) == self.args.world_size
            self._tr_loss += losses[self.args.process_index] if same_processes else sum(losses) / len(losses)
            self._globalstep_last_logged = self.saved.logged_step
        super()._run_epoch(**kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The learning rate follows the schedule as configured now, and changed settings of the optimizer count."""
        configured = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.saved is None:
            return
        if self.saved.has_changed("optimizer"):
            for group, settings in zip(self.optimizer.param_groups, configured, strict=True):
                group.update(settings)
            self.lr_scheduler.base_lrs = [settings["initial_lr"] for settings in configured]
        # A schedule of another length or shape has another rate at this step; the same one has the same.
        schedule, groups = self.lr_scheduler, self.optimizer.param_groups
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in groups]
