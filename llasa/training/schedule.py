"""The learning rate over a run: a linear warm-up, then constant, cosine, or stable and a decay (wsd).

No step is wasted: the first has more than 0 although the warm-up rises from 0, and the last has more than the
minimum, which the step after it would have. However short a run is, at least one step has the peak.
"""

from __future__ import annotations

import math

import torch

from llasa.config import ScheduleConfig


def build_schedule(
    config: ScheduleConfig, optimizer: torch.optim.Optimizer, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of ``num_steps`` optimizer steps; every group's own learning rate is its peak."""

    # A function and no object: the scheduler's saved state then holds numbers alone.
    def share(step: int) -> float:
        return share_of_peak(config, step, num_steps)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def share_of_peak(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) as a share of the peak.

    wsd decays by 1 - sqrt, which Hägele et al. (2024, arXiv 2405.18392) found better than a line or a cosine.
    """
    warmup = min(round(config.warmup * num_steps), num_steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    length = num_steps - warmup if config.name == "cosine" else min(round(config.decay * num_steps), num_steps - warmup)
    if step < num_steps - length:
        return 1.0
    progress = min(1.0, (step - (num_steps - length)) / max(1, length)) if step < num_steps else 1.0
    left = (1 + math.cos(math.pi * progress)) / 2 if config.name == "cosine" else 1 - math.sqrt(progress)
    return config.min_ratio + (1 - config.min_ratio) * left
