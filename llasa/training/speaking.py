"""Generation with a model in the midst of its training, which finds itself as it was afterwards.

It speaks as a checkpoint of this step would (:func:`llasa.model.llama.load_for_inference`), but with the training's
weights and arithmetic, so nothing is copied.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from llasa.config import SamplingConfig
from llasa.generation.engine import GeneratedCodes, Request
from llasa.generation.engine_hf import TransformersEngine
from llasa.model.attention import SDPA
from llasa.model.llama import SpeechModel

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class EngineInTraining(TransformersEngine):
    """The engine for a model (not a `PeftModel` around one) that is training.

    Args:
        device, precision: of the training, whose arithmetic this is too.
        synced: fsdp, where all processes generate the same.
    """

    def __init__(self, *, device: str, precision: str, synced: bool) -> None:
        super().__init__(batch_size=1, progress=False, synced=synced)
        self.device, self.precision = device, precision

    def generate(
        self, speech: SpeechModel, requests: Sequence[Request], sampling: SamplingConfig
    ) -> list[GeneratedCodes]:
        # One context around all steps: autocast then keeps the weights that it has rounded.
        rounded = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")
        with as_at_inference(speech.model), rounded:
            return super().generate(speech, requests, sampling)


@contextmanager
def as_at_inference(model: LlamaForCausalLM) -> Iterator[None]:
    """The model as a loaded checkpoint generates: evaluation mode, sdpa, its class's own `forward`, nothing compiled.

    The training's attention may know no cache (flex attention would be compiled for every length), and what stands in
    the place of `forward` hides from `generate` that it takes positions, which left-padded prompts need.
    """
    attention = model.config._attn_implementation
    modes = [(module, module.training) for module in model.modules()]
    forward = vars(model).pop("forward", None)
    # Only where something was compiled: asking loads the compiler.
    compiled = any(module._compiled_call_impl is not None for module, _ in modes)
    model.eval()
    model.set_attn_implementation(SDPA)
    try:
        if compiled:
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        model.set_attn_implementation(attention)
        if forward is not None:
            model.forward = forward
        for module, mode in modes:
            module.training = mode


@contextmanager
def generators_kept(device: str) -> Iterator[None]:
    """Random generators of torch, numpy and Python are afterwards where they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - whatever a codec draws from it
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
