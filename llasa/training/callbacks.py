"""What happens beside the steps: metrics to the tracker, a progress bar to the person."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llasa.errors import UserError
from llasa.packing.dataset import PackedRows
from llasa.tracking import Tracker


class MetricsCallback(TrainerCallback):
    """Logs loss, learning rate, gradient norm and throughput, and shows them beside a progress bar.

    Tokens are counted from the plan (padding excluded), so they are right after a resume too. Throughput covers
    all devices. Processes other than the first have no tracker and stay silent.
    """

    def __init__(self, tracker: Tracker | None, data: PackedRows, rows_per_step: int) -> None:
        self.tracker, self.data, self.rows_per_step = tracker, data, rows_per_step
        self.tokens = 0
        self._bar: Any = None
        self._mark = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tokens = self.data.num_tokens(0, state.global_step * self.rows_per_step)
        self._mark = (self.tokens, time.perf_counter())
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit=" steps",
            desc="training",
            disable=None if self.tracker else True,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        self.tokens += self.data.num_tokens((step - 1) * self.rows_per_step, step * self.rows_per_step)
        self._bar.update(1)

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
        now = time.perf_counter()
        tokens, since = self._mark
        self._mark = (self.tokens, now)
        row = {
            "step": state.global_step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": float(logs["grad_norm"]),
            "tokens_per_second": round((self.tokens - tokens) / max(now - since, 1e-9), 1),
            "tokens": self.tokens,
            "epoch": round(state.global_step * self.rows_per_step / self.data.plan.rows_in(1), 4),
        }
        if self.tracker is not None:
            self.tracker.log(row)
        if not math.isfinite(row["loss"]):
            raise UserError(
                f"the loss is {row['loss']} at step {state.global_step}",
                remedy="lower optimizer.lr or raise schedule.warmup, and start again",
            )
        shown = f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
        self._bar.set_postfix_str(shown)
        if self.tracker is not None and self._bar.disable:
            print(f"step {state.global_step}/{state.max_steps}: {shown}", flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.close()


class InterruptCallback(TrainerCallback):
    """Ctrl-C ends the training after the current step, with a state to resume from; a second one ends it at once.

    A context: outside of it Ctrl-C is what it was before.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> InterruptCallback:
        self._previous = signal.getsignal(signal.SIGINT)
        if self._previous is not signal.SIG_IGN and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nsaving after this step; Ctrl-C again ends at once", file=sys.stderr, flush=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True
