"""The engine over vLLM, in an environment of its own (requirements/vllm.txt).

    requests of all streams ─► vLLM's scheduler ─step─► ids of each ─► CodesPart of whole frames

vLLM runs in this process, where there can be only one: the next checkpoint that is loaded ends it. Which code comes
next is decided by :mod:`llasa.generation.vllm_sampling`, so codes are those of the transformers engine as far as the
two calculate the same logits. Prompts with the same beginning (a voice) share its keys and values.

Cost: half a minute until the first code, most of it imports; then a pass over the weights for each code of all the
utterances under way.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from llasa.config import SamplingConfig, require
from llasa.errors import UserError
from llasa.generation import vllm_start
from llasa.generation.engine import CodesPart, GeneratedCodes, Request, Utterance, collect
from llasa.model.llama import TokenContract, load_contract
from llasa.model.loading import is_adapter

if TYPE_CHECKING:
    from vllm import LLMEngine


class VllmEngine:
    """Continues prompts; implements :class:`llasa.generation.engine.Engine`.

    Streams may be read in turn or from several threads: their requests are generated together.

    Args:
        batch_size: prompts that are generated together, of all streams.
        gpu_memory: share of the GPU's memory that vLLM takes, weights included. Without a GPU it takes what
            ``batch_size`` utterances of the longest kind need.
        progress: whether a bar shows how far it is, where there is more than one prompt and a person to see it.
    """

    def __init__(self, *, batch_size: int, gpu_memory: float = 0.9, progress: bool = True) -> None:
        require(batch_size >= 1, "engine.batch_size", batch_size, "use 1 or more")
        require(0 < gpu_memory <= 1, "engine.gpu_memory", gpu_memory, "use a share, 0 < gpu_memory <= 1")
        self.batch_size, self.gpu_memory, self.progress = batch_size, gpu_memory, progress
        self._engine: LLMEngine | None = None
        self._lock = threading.Lock()
        self._names = map(str, itertools.count())
        self._arrived: dict[str, list[int]] = {}
        """Ids that a step gave to requests of other streams than the one that made the step."""

    def load(self, checkpoint: str, device: str) -> TokenContract:
        """A checkpoint folder or hub name with plain weights, in bf16 on CUDA and fp32 elsewhere.

        Raises:
            UserError: it is no checkpoint that speaks, vLLM is not there or not for this device, or it refuses it.
        """
        if is_adapter(checkpoint):
            raise UserError(
                f"{checkpoint} holds an adapter, and engine=vllm wants whole weights",
                remedy=f"`python export.py checkpoint={checkpoint} format=merged output=DIR` makes them",
            )
        vllm_start.require_vllm()
        contract = load_contract(checkpoint)
        self._engine = vllm_start.start_vllm(checkpoint, contract, device, self.batch_size, self.gpu_memory)
        return contract

    def open(self, speech: TokenContract, *, capacity: int) -> VllmBatch:
        """See :class:`llasa.generation.engine.Engine`; ``capacity`` is what the checkpoint was trained on, whatever is
        asked for."""
        return VllmBatch(self, speech)

    def stream(
        self, speech: TokenContract, requests: Sequence[Request], sampling: SamplingConfig
    ) -> Iterator[CodesPart]:
        batch = VllmBatch(self, speech)
        try:
            for index, request in enumerate(requests):  # all at once: those without a place wait in vLLM
                batch.add(index, request, sampling)
            while len(batch):
                yield from batch.step()
        finally:
            batch.cancel_all()

    def generate(
        self, speech: TokenContract, requests: Sequence[Request], sampling: SamplingConfig
    ) -> list[GeneratedCodes]:
        return collect(self.stream(speech, requests, sampling), len(requests), progress=self.progress)

    @property
    def num_unfinished(self) -> int:
        """Requests that are under way or wait."""
        return 0 if self._engine is None else self._engine.get_num_unfinished_requests()

    def _loaded(self) -> LLMEngine:
        assert self._engine is not None, "load a checkpoint first"
        return self._engine

    def _add(self, name: str, request: Request, sampling: SamplingConfig, speech: TokenContract) -> None:
        from vllm.inputs.engine import tokens_input

        from llasa.generation.vllm_sampling import sampling_params

        engine = self._loaded()
        assert self._engine is vllm_start.running, "another checkpoint was loaded since"
        room, needed = engine.model_config.max_model_len, len(request.prompt) + request.max_codes + 1
        if needed > room:  # vLLM would cut the speech, perhaps within a frame
            raise UserError(
                f"prompt and speech may take {needed:,} tokens, engine=vllm was made for {room:,}",
                remedy="split the text into shorter pieces, or lower sampling.max_seconds",
            )
        with self._lock:
            params = sampling_params(request, sampling, speech.vocabulary)
            engine.add_request(name, tokens_input(request.prompt.tolist()), params)

    def _step(self, waiting: Collection[str]) -> dict[str, list[int]]:
        """The next ids of some of a batch's requests; maybe none."""
        engine = self._loaded()
        with self._lock:
            if not self._arrived.keys() & set(waiting):
                assert engine.has_unfinished_requests(), "vLLM has lost a request"
                for output in engine.step():
                    self._arrived.setdefault(output.request_id, []).extend(output.outputs[0].token_ids)
            return {name: self._arrived.pop(name) for name in list(waiting) if name in self._arrived}

    def _forget(self, names: list[str]) -> None:
        """End requests that are under way still; of those that have ended, only what came for them."""
        engine = self._loaded()
        with self._lock:
            if self._engine is vllm_start.running:
                engine.abort_request(names)
            for name in names:
                self._arrived.pop(name, None)


class VllmBatch:
    """Requests of one stream, or of one server; implements :class:`llasa.generation.engine.Batch`.

    :meth:`add` takes more than are ``free``, too: they wait in vLLM.
    """

    def __init__(self, engine: VllmEngine, speech: TokenContract) -> None:
        self._engine, self._speech = engine, speech
        self._waiting: dict[str, Utterance] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def free(self) -> int:
        return max(0, self._engine.batch_size - len(self))

    def add(self, index: int, request: Request, sampling: SamplingConfig) -> None:
        """Raises:
        UserError: prompt and speech may take more tokens than vLLM was made for.
        """
        name = next(self._engine._names)
        self._engine._add(name, request, sampling, self._speech)
        self._waiting[name] = Utterance(index, request, self._speech, sampling)

    def step(self) -> list[CodesPart]:
        vocabulary, parts = self._speech.vocabulary, []
        for name, ids in self._engine._step(self._waiting).items():
            for token_id in ids:
                ended = token_id == vocabulary.speech_end
                part = self._waiting[name].take(None if ended else token_id - vocabulary.first_code)
                if part is None:
                    continue
                parts.append(part)
                if part.finish_reason is not None:
                    self._forget([name])
                    break
        return parts

    def cancel(self, index: int) -> None:
        self._forget([name for name, utterance in self._waiting.items() if utterance.index == index])

    def cancel_all(self) -> None:
        self._forget(list(self._waiting))

    def _forget(self, names: list[str]) -> None:
        self._engine._forget(names)
        for name in names:
            del self._waiting[name]
