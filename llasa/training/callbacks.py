"""What happens beside the steps: metrics to the tracker, a progress bar to the person."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llasa.packing.dataset import PackedRows
from llasa.packing.plan import PackingPlan
from llasa.packing.rows import EpochRows
from llasa.tracking import Tracker


def speech_hours(plan: PackingPlan, num_codes: np.ndarray, tokens_per_second: float) -> Callable[[int], float]:
    """A function from rows of the plan to the hours of speech in them, counted as often as they are trained on.

    Cost: 8 bytes a row of the epoch, and for each epoch one pass over its examples.

    Args:
        num_codes: of each example of the plan, int [examples].
        tokens_per_second: codes of a second of speech.
    """

    @lru_cache(maxsize=1)
    def rows_of(epoch: int) -> EpochRows:
        rows = plan.epoch(epoch)
        return EpochRows(rows.indices, rows.offsets, num_codes, rows.bounds)

    @cache
    def codes_before_epoch(epoch: int) -> int:
        return sum(int(num_codes[plan.mixture.examples(e)].sum(dtype=np.int64)) for e in range(epoch))

    def hours(row: int) -> float:
        epoch, number = plan.locate(row)
        codes = codes_before_epoch(epoch) + (int(rows_of(epoch).tokens_before(number).sum()) if number else 0)
        return codes / tokens_per_second / 3600

    return hours


def peak_memory_gb() -> float:
    """The most memory that this process has had at a time, in 10^9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class MetricsCallback(TrainerCallback):
    """Logs loss, learning rate, gradient norm and throughput, and shows them beside a progress bar.

    Tokens are counted from the plan (padding excluded), so they are right after a resume too. Throughput covers
    all devices; memory is the first process's, the loader's processes not included. Processes other than the first
    have no tracker and stay silent.

    Args:
        utilisation: tokens a second → model FLOPs utilisation; none where there is no GPU to utilise.
        hours: rows of the plan → hours of speech in them, see :func:`speech_hours`.
        pauses: seconds spent on measuring and speaking so far, which are no training.
    """

    def __init__(
        self,
        tracker: Tracker | None,
        data: PackedRows,
        rows_per_step: int,
        utilisation: Callable[[float], float | None] | None = None,
        hours: Callable[[int], float] | None = None,
        pauses: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.tracker, self.data, self.rows_per_step = tracker, data, rows_per_step
        self.utilisation, self.hours, self.pauses = utilisation, hours, pauses
        self.tokens = 0
        self.by_source: dict[str, int] = {}
        self._bar: Any = None
        self._mark = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A resumed state brings the settings of the run that wrote it.
        state.compute_steps(args, state.max_steps)
        self._count(state.global_step)
        self._mark = (self.tokens, self._now())
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit=" steps",
            desc="training",
            disable=None if self.tracker else True,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        self._bar.update(1)
        if step >= state.max_steps:
            control.should_log = True  # the end's loss is the run's, also between two multiples of `log_every`

    def _now(self) -> float:
        """A clock of seconds that stands still in pauses."""
        return time.perf_counter() - self.pauses()

    def _count(self, step: int) -> None:
        """Tokens of each source since the beginning, after ``step`` steps."""
        self.by_source = self.data.tokens_by_source(-self.data.shift, step * self.rows_per_step)
        self.tokens = sum(self.by_source.values())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        now = self._now()
        self._count(state.global_step)
        tokens, since = self._mark
        self._mark = (self.tokens, now)
        row = {
            "step": state.global_step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": float(logs["grad_norm"]),
            "tokens_per_second": round((self.tokens - tokens) / max(now - since, 1e-9), 1),
            "tokens": self.tokens,
            "epoch": round(self.data.epochs_before(state.global_step * self.rows_per_step), 4),
            "memory_gb": round(peak_memory_gb(), 3),
        }
        if self.hours is not None:
            row["audio_hours"] = round(self.hours(state.global_step * self.rows_per_step + self.data.shift), 6)
        if len(self.by_source) > 1:
            row |= {f"tokens/{name}": tokens for name, tokens in self.by_source.items()}
        if self.utilisation is not None:
            row["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            if (mfu := self.utilisation(row["tokens_per_second"])) is not None:
                row["mfu"] = round(mfu, 4)
        if self.tracker is not None:
            self.tracker.log(row)
        shown = f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
        self._bar.set_postfix_str(shown)
        if self.tracker is not None and self._bar.disable:
            print(f"step {state.global_step}/{state.max_steps}: {shown}", flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.close()
