"""The one place that chooses a device and a precision."""

from __future__ import annotations

import torch

from llasa.errors import UserError


def resolve_device(device: str) -> str:
    """cuda where there is one, else cpu; asking for a CUDA device that is not there is a mistake."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("device=cuda, but torch sees no CUDA device", remedy="use device=cpu (or auto)")
    return "cuda" if device != "cpu" and available else "cpu"


def resolve_precision(precision: str, device: str) -> str:
    """bf16 autocast on CUDA, fp32 elsewhere, unless it was chosen."""
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" else "fp32"
