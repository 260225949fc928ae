"""What is suspicious while training, told in one clear line.

It is looked for where the trainer logs (`trainer.log_every`, and the first step): reading the loss or the gradient norm
of a step makes a GPU wait. Nothing that is not a number gets past it, though: the logged loss is the mean since the
line before, so one step's NaN is in it, and weights that a NaN has reached give no number in any later step.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import deque
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llasa.config import SanityConfig
from llasa.device import is_first_process
from llasa.errors import UserError

SEEN = 100
"""Gradient norms whose median is the usual one."""
ENOUGH = 10
"""Norms that have to be seen before one can be unusual."""
ZEROS = 3
"""Gradient norms of 0, from the first one on, that are no chance."""


def first_loss_band(vocabulary_size: int, start: str) -> tuple[float, float]:
    """The plausible losses of the first step, in nats per supervised token.

    A model that knows nothing gives each of V tokens 1 / V and has a loss of ln V. Random logits of standard deviation
    s add s² / 2 to it. Less than ln V is knowledge, or labels that tell the answer.

    Args:
        start: scratch = random weights: from 0.8 ln V to ln V + 4, which is s = 2.8;
            extended = a text model with new tokens: it still expects text, so up to 2.5 ln V, and cannot know which
            of the new tokens comes, so from 0.6 ln V;
            speaks = weights that speak: better than knowing nothing, ln V; a published LLaSA on a new language has 5.5
            to 7, one's own on its corpus 1 to 3, and 0.4 says that the labels are wrong: from 0.5.
    """
    unknowing = math.log(vocabulary_size)
    return {
        "scratch": (0.8 * unknowing, unknowing + 4),
        "extended": (0.6 * unknowing, 2.5 * unknowing),
        "speaks": (0.5, unknowing),
    }[start]


class SanityCallback(TrainerCallback):
    """Warns of a first loss outside of its band, of a spike of the gradient norm and of gradients that are 0.

    With `sanity.stop` these end the run. A loss or gradient norm that is not a number always does.

    Args:
        band: of the first step's loss if the config leaves it to us, see :func:`first_loss_band`.

    Raises (while training):
        UserError: what ends the run, and what to do. The states that were saved before are good.
    """

    def __init__(self, config: SanityConfig, band: tuple[float, float]) -> None:
        self.config = config
        self.band = band if config.first_loss == "auto" else config.first_loss
        self._norms: deque[float] = deque(maxlen=SEEN)
        self._logged = 0

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
        step, loss, norm = state.global_step, float(logs["loss"]), float(logs["grad_norm"])
        self._logged += 1
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise UserError(
                    f"the {what} is {value} at step {step}",
                    remedy="lower optimizer.lr or raise schedule.warmup; resume=true force=true goes on with them from "
                    "the last state",
                )
        if step == 1 and self.band is not None and not self.band[0] <= loss <= self.band[1]:
            self._first_loss(loss, *self.band)
        if self._logged == ZEROS and norm == 0 and not any(self._norms):
            self._tell(
                f"the gradient norm was 0 at each of the first {ZEROS} logged steps, so nothing learns",
                "check finetune.*, and that the texts of the store have codes",
            )
        spike, usual = self.config.grad_norm_spike, statistics.median(self._norms) if self._norms else 0.0
        if spike is not None and len(self._norms) >= ENOUGH and norm > spike * usual > 0:
            self._tell(
                f"the gradient norm is {norm:.3g} at step {step}, {norm / usual:.0f} times its median of {usual:.3g}",
                "if it stays or the loss rises, lower optimizer.lr, and look at the rows of this step",
            )
        self._norms.append(norm)

    def _first_loss(self, loss: float, lowest: float, highest: float) -> None:
        low = "the labels may tell the answer, or the weights know this corpus already"
        high = "the weights may not fit the tokenizer or the codec, or optimizer.lr is far too high"
        self._tell(
            f"the first loss is {loss:.2f}, and {lowest:.2f} to {highest:.2f} is plausible here",
            f"{low if loss < lowest else high}; sanity.first_loss=[LOWEST,HIGHEST] sets the range, null leaves it out",
        )

    def _tell(self, message: str, remedy: str) -> None:
        if self.config.stop:
            raise UserError(
                f"{message} (sanity.stop=true)", remedy=f"{remedy}; resume=true goes on from the last state"
            )
        if is_first_process():
            tqdm.write(f"warning: {message}; {remedy}", file=sys.stderr)
