"""Ending a training early without losing a step of it: Ctrl-C, and a cluster that takes the machine back.

signal ─► flag ─end of the step─► all processes agree ─► a state is written ─► exit status

Cost: with several processes one exchange of an integer a step, over the CPU (about 0.1 ms; the GPU is not waited
for).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llasa.device import is_first_process, part_processes
from llasa.errors import UserError

PREEMPTED = [signal.SIGTERM, signal.SIGUSR1]
"""SIGTERM: a scheduler takes the machine back. SIGUSR1: it will soon (`sbatch --signal=USR1@120`)."""
PROMPT_REPEAT = 1.0
"""Seconds in which a second Ctrl-C is the first one's echo: `torchrun` passes on what the terminal sends to all."""


class InterruptCallback(TrainerCallback):
    """The first signal ends the training after the current step, with a state to resume from.

    Ctrl-C exits 130, and a second one ends the run at once; preemption exits 0. A signal that reaches one process of
    several stops them all at the same step. A context: outside of it signals do what they did before.

    Attributes:
        stopping: the signal that all processes have agreed to stop for, 0 = none.
    """

    def __init__(self) -> None:
        self.stopping = 0
        self._received = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        self._group: Any = None

    def __enter__(self) -> InterruptCallback:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *PREEMPTED):
                # A shell ignores Ctrl-C for what it runs in the background: that is to stay so.
                if (previous := signal.getsignal(number)) is not signal.SIG_IGN:
                    self._previous[number] = previous
                    signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _request(self, number: int, frame: object) -> None:
        echo = self._group is not None and time.monotonic() - self._since < PROMPT_REPEAT
        if number == signal.SIGINT and self._received == signal.SIGINT and not echo:
            raise KeyboardInterrupt
        if self._received != number and is_first_process():
            again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            # Not print: the signal may have come in the middle of one, which refuses to be entered again.
            os.write(2, f"\n{signal.Signals(number).name}: saving after this step{again}\n".encode())
        self._received, self._since = number, time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:
            # The processes' own group may be NCCL's, and asking it would wait for the GPU every step.
            self._group = torch.distributed.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stopping = torch.tensor(self._received)
        if self._group is not None:
            torch.distributed.all_reduce(stopping, torch.distributed.ReduceOp.MAX, group=self._group)
        self.stopping = int(stopping)
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def leave(self, run: Path, step: int, saved_step: int) -> NoReturn:
        """Say how to go on, and exit. ``saved_step``: the step of the newest state, 0 = none.

        Raises:
            KeyboardInterrupt: after Ctrl-C. SystemExit: status 0, after a preemption: a sweep ends with it.
            UserError: the state could not be written.
        """
        part_processes()
        if saved_step < step:
            lost = f"the state of step {step} could not be written"
            if saved_step:
                raise UserError(lost, remedy=f"resume=true output_dir={run} goes on from step {saved_step}")
            raise UserError(lost, remedy="there is nothing to resume from, so start again")
        if is_first_process():
            print(f"stopped after step {step}; continue with resume=true output_dir={run}", file=sys.stderr, flush=True)
        if self.stopping == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0)
