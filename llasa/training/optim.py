"""Optimizers and schedules that need more than a name in a config file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import get_scheduler

from llasa.build import build
from llasa.config import ScheduleConfig
from llasa.errors import UserError


def optimizer_name(node: dict[str, Any], device: str) -> str:
    """The class that a config node becomes on ``device``: what `auto` resolves to is printed and recorded."""
    name = node["_target_"].rpartition(".")[2]
    return name if name != "auto" else "Adam8bit" if device == "cuda" else "AdamW"


def build_optimizer_factory(node: dict[str, Any]) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """Parameter groups → optimizer, tried on one parameter so that a wrong setting is told before anything starts.

    Raises:
        UserError: the optimizer refuses its settings.
    """
    factory = build(node)
    try:
        factory([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    except (TypeError, ValueError) as error:
        raise UserError(f"the optimizer refuses its settings: {error}", remedy="check optimizer.*") from error
    return factory


def auto(params: Iterable[Any], **settings: Any) -> torch.optim.Optimizer:
    """8-bit Adam on CUDA, fused AdamW elsewhere (`optimizer=auto`).

    8-bit Adam quarters the memory of the states; on a CPU it costs about 20 times as much time a step.
    """
    groups = list(params)
    if groups[0]["params"][0].is_cuda:
        from bitsandbytes.optim import Adam8bit

        return Adam8bit(groups, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def build_schedule(
    config: ScheduleConfig, optimizer: torch.optim.Optimizer, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over ``num_steps`` optimizer steps: linear warm-up, then the configured shape."""
    warmup = round(config.warmup * num_steps)
    if config.name == "constant":
        return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=warmup)
    if config.name == "wsd":
        kwargs = {"num_decay_steps": round(config.decay * num_steps), "min_lr_ratio": config.min_ratio}
        return get_scheduler("warmup_stable_decay", optimizer, warmup, num_steps, kwargs)
    return get_scheduler("cosine_with_min_lr", optimizer, warmup, num_steps, {"min_lr_rate": config.min_ratio})
