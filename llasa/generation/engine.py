"""What every engine of generation offers: prompts in, codes out, all at the end or as they come.

    Request (ids of a prompt, bounds, seed) ─Engine.stream─► CodesPart, CodesPart, … ─► GeneratedCodes
    Request, Request, … at any time         ─Engine.open, Batch.add, step─► CodesPart, …

Codes come in whole frames. An engine never ends later than ``max_codes``, so every generation has a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from llasa.config import SamplingConfig
from llasa.generation.loops import LoopDetector
from llasa.model.llama import TokenContract


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        prompt: token ids, int64 [n], from the beginning of text to SPEECH_GENERATION_START and what codes follow it.
        max_codes: no more codes than these; whole frames.
        min_codes: END is not allowed before.
        seed: of this prompt's sampling. The same seed gives the same codes, whatever else is in the batch.
        num_spoken: how many of the prompt's last ids are codes of this very utterance, which repetition counts.
    """

    prompt: np.ndarray
    max_codes: int
    min_codes: int = 0
    seed: int = 0
    num_spoken: int = 0

    @property
    def fewest_codes(self) -> int:
        """Before END; speech that continues nothing is never empty."""
        return max(self.min_codes, 0 if self.num_spoken else 1)


@dataclass(frozen=True)
class GeneratedCodes:
    """Codes [num_codes] that followed a prompt, and why they ended.

    ``finish_reason`` is "stop" (the model said END), "length" (``max_codes``) or "loop" (it repeated itself).
    """

    codes: np.ndarray
    finish_reason: str


@dataclass(frozen=True)
class CodesPart:
    """The next codes [num_codes >= 0] of request ``index``; the last part, maybe empty, has a ``finish_reason``."""

    index: int
    codes: np.ndarray
    finish_reason: str | None = None


class Batch(Protocol):
    """Sequences that are decoded together, and come and go at any step. One thread at a time."""

    @property
    def free(self) -> int:
        """Places that wait for a sequence."""
        ...

    def __len__(self) -> int:
        """Sequences under way."""
        ...

    def add(self, index: int, request: Request, sampling: SamplingConfig) -> None:
        """Take a request into a free place; its parts will bear ``index``.

        Cost: a pass over the weights for the prompt, at once or in the next step.
        """
        ...

    def step(self) -> list[CodesPart]:
        """Give each sequence its next code → the frames that are whole now, and the ends of those that end."""
        ...

    def cancel(self, index: int) -> None:
        """Forget a sequence, if it is still there."""
        ...


Loaded = TypeVar("Loaded", bound=TokenContract)


class Engine(Protocol[Loaded]):
    """Continues prompts with codes, of what its own :meth:`load` returned."""

    batch_size: int
    """Prompts that are generated together."""
    progress: bool
    """Whether :meth:`generate` shows a bar, where there is more than one prompt and a person to see it."""

    def load(self, checkpoint: str, device: str) -> Loaded:
        """A checkpoint folder or hub name, ready to speak: what :meth:`stream` and :meth:`generate` want.

        Raises:
            UserError: it is no checkpoint that speaks, or not one for this engine.
        """
        ...

    def open(self, speech: Loaded, *, capacity: int) -> Batch:
        """A batch of up to ``batch_size`` sequences, each of ``len(prompt) + max_codes <= capacity``."""
        ...

    def stream(self, speech: Loaded, requests: Sequence[Request], sampling: SamplingConfig) -> Iterator[CodesPart]:
        """Parts of whole frames as they are generated, of all requests in turn. Closing the iterator cancels them."""
        ...

    def generate(self, speech: Loaded, requests: Sequence[Request], sampling: SamplingConfig) -> list[GeneratedCodes]:
        """What :meth:`stream` gives in the end, in the requests' order."""
        ...


def collect(parts: Iterator[CodesPart], count: int, *, progress: bool) -> list[GeneratedCodes]:
    """The parts of ``count`` requests, joined; with a bar where there is more than one, and a person to see it."""
    codes: list[list[np.ndarray]] = [[] for _ in range(count)]
    reasons: dict[int, str] = {}
    with tqdm(total=count, unit=" sentences", desc="speaking", disable=None if progress and count > 1 else True) as bar:
        for part in parts:
            codes[part.index].append(part.codes)
            if part.finish_reason is not None:
                reasons[part.index] = part.finish_reason
                bar.update()
    return [GeneratedCodes(np.concatenate(found), reasons[index]) for index, found in enumerate(codes)]


class Utterance:
    """What a request has said: codes and END become parts of whole frames, and a reason to stop.

    Attributes:
        num_codes: so far.
    """

    def __init__(self, index: int, request: Request, speech: TokenContract, sampling: SamplingConfig) -> None:
        codec, seconds = speech.card.codec, sampling.loop_seconds
        self.index, self.request, self.sampling, self.num_codes = index, request, sampling, 0
        self._dtype, self._size = codec.code_dtype, codec.codes_per_frame
        self._frame: list[int] = []
        self._loops = LoopDetector(self._size, codec.tokens_per_second / self._size, seconds) if seconds > 0 else None

    @property
    def place(self) -> int:
        """In the frame, of the code that comes next."""
        return self.num_codes % self._size

    @property
    def may_end(self) -> bool:
        """Where a frame ends, after the fewest codes."""
        return self.place == 0 and self.num_codes >= self.request.fewest_codes

    def take(self, code: int | None) -> CodesPart | None:
        """Note the next code, or END (none); a part if it completes a frame or ends the utterance."""
        if code is None:
            return CodesPart(self.index, np.empty(0, self._dtype), "stop")
        if self.num_codes >= self.request.max_codes:  # END was all that could still be said
            return CodesPart(self.index, np.empty(0, self._dtype), "length")
        self.num_codes += 1
        self._frame.append(code)
        if len(self._frame) < self._size:
            return None
        codes, self._frame = np.array(self._frame, self._dtype), []
        looped = self._loops is not None and self._loops.push(codes) is not None
        return CodesPart(self.index, codes, "loop" if looped else None)
