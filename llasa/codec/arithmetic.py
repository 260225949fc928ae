"""What surrounds a codec's forward pass: one arithmetic, few graphs, and out-of-memory told as the user's error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llasa.errors import UserError

PRECISIONS = ("fp32", "bf16")
SHAPES = 1024
"""That one function may be compiled for."""


def checked_precision(precision: str, device: torch.device) -> str:
    """The precision of the encoder, if this device has it.

    Raises:
        UserError: neither fp32 nor bf16, or bf16 on a GPU without it.
    """
    if precision not in PRECISIONS:
        raise UserError(f"codec.precision={precision} is not valid", remedy="choose one of fp32, bf16")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("codec.precision=bf16, but this GPU has no bf16", remedy="use codec.precision=fp32")
    return precision


def compiled(function: Callable[..., torch.Tensor], backend: str = "inductor") -> Callable[..., torch.Tensor]:
    """``function`` through torch.compile, one static graph for each of the shapes it is called with.

    Without the higher limit, torch would compile the first eight shapes and run the others as they are, so that a
    result depended on what came before it. ``fullgraph`` makes that, and a graph that breaks, an error.
    """
    optimized = torch.compile(function, backend=backend, dynamic=False, fullgraph=True)

    @functools.wraps(function)
    def call(*args: Any) -> torch.Tensor:
        with torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=SHAPES):
            return optimized(*args)

    return call


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Float32 throughout, whatever a training run in this process has switched on, and no trace left in it.

    On CUDA, convolutions use TF32 by default. The new names (``fp32_precision``) are used alone, because the old
    ones raise once the two are mixed. Sums in bf16 products are kept in float32 to their end. The semantic encoder
    draws a random number per layer even in eval mode, which would shift the seeds of everything after it.
    """
    switches = (
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        (torch.backends.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]  # torch adds it on import
        (torch.backends.cudnn, "deterministic", True),
        (torch.backends.cudnn, "benchmark", False),  # it may choose another algorithm every time
    )
    before = [getattr(module, name) for module, name, _ in switches]
    try:
        for module, name, value in switches:
            setattr(module, name, value)
        with torch.inference_mode(), torch.random.fork_rng(devices=[]), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (module, name, _), value in zip(switches, before, strict=True):
            setattr(module, name, value)


@contextmanager
def memory_for(clips: int, seconds: float, batch_seconds: float) -> Iterator[None]:
    """Around the work on one batch of ``clips`` clips of ``seconds`` seconds, made under ``codec.batch_seconds``.

    Raises:
        UserError: the device's memory did not suffice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if clips > 1:
            remedy = f"use codec.batch_seconds={batch_seconds / 2:g} or less"
        else:
            remedy = "use codec.device=cpu, or leave such long clips out (filters.max_seconds)"
        raise UserError(
            f"codec.batch_seconds={batch_seconds:g}: no GPU memory left for a batch of {clips} x {seconds:.1f} s",
            remedy=remedy,
        ) from error
