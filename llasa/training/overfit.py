"""`debug=overfit_batch`: the rows of the first step again and again, to see whether the model can learn at all.

A model that cannot bring the loss of one batch near 0 has something wrong that no corpus cures: labels, a frozen
weight, the learning rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llasa.packing.dataset import PackedRows
from llasa.packing.plan import PackingPlan


class FirstStep:
    """A packing plan, every step of which has the rows of the plan's first one. The rest is the plan's own."""

    def __init__(self, plan: PackingPlan, rows_per_step: int) -> None:
        self.first_step_of, self.rows_per_step = plan, rows_per_step

    def locate(self, row: int) -> tuple[int, int]:
        return self.first_step_of.locate(row % self.rows_per_step)

    def examples(self, row: int) -> np.ndarray:
        return self.first_step_of.examples(row % self.rows_per_step)

    def tokens_before(self, row: int) -> np.ndarray:
        steps, rest = divmod(row, self.rows_per_step)
        plan = self.first_step_of
        return steps * plan.tokens_before(self.rows_per_step) + plan.tokens_before(rest)

    def __getattr__(self, name: str) -> Any:
        if name == "first_step_of":  # while it is unpickled in a loader's process
            raise AttributeError(name)
        return getattr(self.first_step_of, name)


def overfit_batch(data: PackedRows, rows_per_step: int) -> None:
    """Make every step of ``data`` its first one."""
    data.plan = FirstStep(data.plan, rows_per_step)  # type: ignore[assignment]  # it answers as a plan does
