"""Speech that did not end by itself is tried again with other seeds, and the best outcome is kept.

    Requests ─engine─► GeneratedCodes ─those without END, other seeds─► engine ─► … ─► the best of each

What is tried again is tried together. The decision hangs on codes alone, so processes that share a model decide alike.
Cost: none where all end; else each try as much as those that did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from llasa.codec.base import CodecSpec
from llasa.config import SamplingConfig
from llasa.generation.engine import Engine, GeneratedCodes, Request
from llasa.generation.limits import retry_seed
from llasa.generation.loops import find_loop
from llasa.model.llama import TokenContract

BEST_FIRST = ("stop", "length", "loop")
"""A cut sentence has its beginning; of a loop nobody knows what is left."""

Codes = TypeVar("Codes", bound=GeneratedCodes)


@dataclass(frozen=True)
class TriedCodes(GeneratedCodes):
    """The best of some tries: how many there were, and the seed of the one that was kept."""

    tries: int = 1
    seed: int = 0


def generate_with_retries(
    engine: Engine, speech: TokenContract, requests: Sequence[Request], sampling: SamplingConfig
) -> list[TriedCodes]:
    """What the engine generates for each request, in order; a loop is cut after its first turn.

    Up to ``sampling.retries`` more tries for each that ends in "length" or "loop", whatever set its length; none at
    temperature 0, where they would all be the same. Of like outcomes the first is kept.
    """
    best = [
        TriedCodes(result.codes, result.finish_reason, seed=request.seed)
        for request, result in zip(requests, engine.generate(speech, requests, sampling), strict=True)
    ]
    for attempt in range(1, 1 + (sampling.retries if sampling.temperature > 0 else 0)):
        unfinished = [index for index, result in enumerate(best) if result.finish_reason != "stop"]
        if not unfinished:
            break
        again = [replace(requests[i], seed=retry_seed(requests[i].seed, attempt)) for i in unfinished]
        for index, request, result in zip(unfinished, again, engine.generate(speech, again, sampling), strict=True):
            kept = replace(best[index], tries=attempt + 1)
            if BEST_FIRST.index(result.finish_reason) < BEST_FIRST.index(kept.finish_reason):
                kept = replace(kept, codes=result.codes, finish_reason=result.finish_reason, seed=request.seed)
            best[index] = kept
    return [without_loop(result, speech.card.codec, sampling.loop_seconds) for result in best]


def without_loop(result: Codes, spec: CodecSpec, loop_seconds: float) -> Codes:
    """What ended in "loop" up to the end of the loop's first turn; anything else as it is."""
    if result.finish_reason != "loop":
        return result
    frame = spec.codes_per_frame
    end = find_loop(result.codes, frame, spec.tokens_per_second / frame, loop_seconds)
    return replace(result, codes=result.codes[:end])
