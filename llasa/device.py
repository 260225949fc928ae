"""The one place that chooses a device and a precision, and that knows of other processes."""

from __future__ import annotations

import os
from typing import TypeVar

import torch

from llasa.errors import UserError


def resolve_device(device: str) -> str:
    """cuda where there is one, else cpu; asking for a CUDA device that is not there is a mistake."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device} is not valid", remedy="choose one of auto, cpu, cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("device=cuda, but torch sees no CUDA device", remedy="use device=cpu (or auto)")
    return "cuda" if device != "cpu" and available else "cpu"


def visible_cuda_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the devices that this process sees."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in names[:count]] if names[0] else [str(index) for index in range(count)]


T = TypeVar("T")


def agree(value: T, device: str) -> T:
    """The first process's value, in every process that `torchrun` started (the value itself without torchrun)."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=device == "cpu")
    return broadcast_object_list([value])[0]


def part_processes() -> None:
    """Leave the process group, when all have come to this point: a process that just exits can abort the others."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()


def is_first_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def resolve_precision(precision: str, device: str) -> str:
    """bf16 autocast on a GPU that has it, fp32 elsewhere, unless it was chosen."""
    bf16 = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not bf16:
        raise UserError(
            "trainer.precision=bf16, but this GPU has no bf16", remedy="use trainer.precision=fp32 (or auto)"
        )
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" and bf16 else "fp32"
