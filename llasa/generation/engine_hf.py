"""The engine over transformers' Llama, on any device: a decoding loop that is kept full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llasa.config import SamplingConfig, require
from llasa.generation.decoding import Decoder
from llasa.generation.engine import CodesPart, GeneratedCodes, Request, collect
from llasa.model.llama import SpeechModel, load_for_inference


class TransformersEngine:
    """Continues prompts by a :class:`~llasa.generation.decoding.Decoder`; implements
    :class:`llasa.generation.engine.Engine`.

    Args:
        batch_size: prompts that are generated together; where one ends the next comes in.
        progress: whether a bar shows how far it is, where there is more than one prompt and a person to see it.
        synced: whether several processes share the model's weights (FSDP) and generate the same.
    """

    def __init__(self, *, batch_size: int, progress: bool = True, synced: bool = False) -> None:
        require(batch_size >= 1, "engine.batch_size", batch_size, "use 1 or more")
        self.batch_size, self.progress, self.synced = batch_size, progress, synced

    def load(self, checkpoint: str, device: str) -> SpeechModel:
        return load_for_inference(checkpoint, device)

    def open(self, speech: SpeechModel, *, capacity: int) -> Decoder:
        """See :class:`llasa.generation.engine.Engine`; the memory for all sequences is taken by the first."""
        return Decoder(speech, slots=self.batch_size, capacity=capacity, synced=self.synced)

    def stream(self, speech: SpeechModel, requests: Sequence[Request], sampling: SamplingConfig) -> Iterator[CodesPart]:
        if not requests:
            return
        capacity = max(len(request.prompt) + request.max_codes for request in requests)
        slots = min(self.batch_size, len(requests))
        decoder = Decoder(speech, slots=slots, capacity=capacity, synced=self.synced)
        waiting = list(enumerate(requests))[::-1]
        while waiting or decoder.sequences:
            while waiting and decoder.free:
                decoder.add(*waiting.pop(), sampling)
            yield from decoder.step()

    def generate(
        self, speech: SpeechModel, requests: Sequence[Request], sampling: SamplingConfig
    ) -> list[GeneratedCodes]:
        return collect(self.stream(speech, requests, sampling), len(requests), progress=self.progress)
