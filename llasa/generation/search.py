"""More compute, better speech: several candidates for one text, judged by scorers, of which the best is kept.

    text ─Engine─► n utterances ─codec─► Candidate ─Scorer, …─► the best

:mod:`llasa.generation.beam_search` chooses on the way already. Source of both: Llasa, arXiv 2502.04128.
What was selected for always looks better afterwards: measure the result with something that did not select it.

Cost: n codes generated for each one that is kept, all in one batch, and the scorers n times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Unpack

import numpy as np

from llasa.config import SamplingConfig, require
from llasa.errors import UserError
from llasa.generation.engine import GeneratedCodes
from llasa.generation.limits import retry_seed
from llasa.generation.retries import BEST_FIRST, generate_with_retries, without_loop
from llasa.generation.scoring import Candidate, Scorer, WeightedSum
from llasa.generation.synthesizer import Manner, Synthesizer
from llasa.types import Speech

MAX_CANDIDATES = 1024
"""At a time: more is a slip of the keyboard."""


@dataclass(frozen=True)
class Scored:
    """A whole candidate, its scores by the scorers' names, and their weighted sum.

    ``seed`` is the one it was drawn with; in a beam search, its last step.
    """

    speech: Speech
    seed: int
    scores: dict[str, float]
    total: float

    @property
    def rank(self) -> tuple[int, float]:
        """To be compared: whatever the model did not end is below all that it ended."""
        return -BEST_FIRST.index(self.speech.finish_reason), self.total


@dataclass(frozen=True)
class SearchResult:
    """``candidates`` in the order in which they were drawn; ``codes_generated`` for all of them, dropped ones too.

    Without a search there is one candidate, and its codes are counted alone, not those of tries before it.
    """

    candidates: tuple[Scored, ...]
    codes_generated: int

    @property
    def best(self) -> Scored:
        """Of equals the first."""
        return max(self.candidates, key=lambda scored: scored.rank)

    @property
    def speech(self) -> Speech:
        return self.best.speech

    @property
    def cost(self) -> float:
        """Codes generated for each one that is kept."""
        return self.codes_generated / max(1, len(self.speech.codes))


class Search(Protocol):
    """What an option of the config group `search` builds."""

    def speak(
        self, synthesizer: Synthesizer, text: str, sampling: SamplingConfig, **said: Unpack[Manner]
    ) -> SearchResult:
        """The best speech for a text. The same seed gives the same result.

        Raises:
            UserError: as :meth:`Synthesizer.speak` and the scorers do; at a temperature of 0, where all candidates
                would be the same.
        """
        ...


def no_search() -> None:
    """The option `search=none`."""


@dataclass(frozen=True)
class BestOf:
    """The best of ``n`` utterances by the weighted sum of the scorers.

    The seed of the first is the one given, and the others' are those that plain synthesis tries again with. So
    best-of-4 chooses among the first four of best-of-8, and one candidate is plain synthesis, code for code; it is not
    scored. More are not tried again where they did not end by themselves: the others are the retries.

    Args:
        scorers: by the names under which their scores are reported.
        weights: of scores, by the same names; 1 where there is none.

    Raises:
        UserError: ``n`` that is no number of candidates; several candidates, and no scorer; a weight of no scorer.
    """

    n: int
    scorers: Mapping[str, Scorer]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(1 <= self.n <= MAX_CANDIDATES, "search.n", self.n, f"use 1 to {MAX_CANDIDATES}")
        require(self.n == 1 or len(self.scorers) > 0, "search.scorers", self.scorers, "name one, or use search=none")
        WeightedSum(self.scorers, self.weights)

    def speak(
        self, synthesizer: Synthesizer, text: str, sampling: SamplingConfig, **said: Unpack[Manner]
    ) -> SearchResult:
        if self.n == 1:
            return plain(synthesizer, text, sampling, **said)
        require_variety(self.n, sampling)
        first = synthesizer.request(text, sampling, **said)
        seeds = [retry_seed(first.seed, number) for number in range(self.n)]
        requests = [replace(first, seed=seed) for seed in seeds]
        generated = synthesizer.engine.generate(synthesizer.speech, requests, sampling)
        judge = Judge(synthesizer, text, first.prompt, sampling.loop_seconds, said)
        candidates = judge.score_whole(generated, seeds, WeightedSum(self.scorers, self.weights))
        return SearchResult(candidates, sum(len(result.codes) for result in generated))


class Judge:
    """Decodes and scores the candidates of one text."""

    def __init__(
        self, synthesizer: Synthesizer, text: str, prompt: np.ndarray, loop_seconds: float, said: Manner
    ) -> None:
        self.synthesizer, self.text, self.prompt, self.loop_seconds = synthesizer, text, prompt, loop_seconds
        self.language = said.get("language") or synthesizer.language
        voice = said.get("voice")
        self.voice = None if voice is None else synthesizer.waveforms([voice.codes])[0]

    def score_whole(
        self, generated: Sequence[GeneratedCodes], seeds: Sequence[int], scorers: WeightedSum
    ) -> tuple[Scored, ...]:
        """Utterances that go no further; a loop is cut after its first turn."""
        spec = self.synthesizer.speech.card.codec
        whole = [without_loop(result, spec, self.loop_seconds) for result in generated]
        scored = []
        for speech, seed in zip(self.synthesizer.decode(whole), seeds, strict=True):
            scores = scorers.scores(self.candidate(speech.waveform, speech.codes, speech.finish_reason))
            scored.append(Scored(speech, seed, scores, scorers.total(scores)))
        return tuple(scored)

    def candidate(self, waveform: np.ndarray, codes: np.ndarray, finish_reason: str | None) -> Candidate:
        return Candidate(
            waveform=waveform,
            sample_rate=self.synthesizer.speech.card.codec.sample_rate,
            codes=codes,
            finish_reason=finish_reason,
            text=self.text,
            language=self.language,
            prompt=self.prompt,
            speech=self.synthesizer.speech,
            voice=self.voice,
        )


def plain(synthesizer: Synthesizer, text: str, sampling: SamplingConfig, **said: Unpack[Manner]) -> SearchResult:
    """Without a search: one candidate, which nobody scored."""
    request = synthesizer.request(text, sampling, **said)
    (result,) = generate_with_retries(synthesizer.engine, synthesizer.speech, [request], sampling)
    (speech,) = synthesizer.decode([result])
    return SearchResult((Scored(speech, result.seed, {}, 0.0),), len(speech.codes))


def require_variety(count: int, sampling: SamplingConfig) -> None:
    """Raises ``UserError`` where candidates cannot differ."""
    if sampling.temperature == 0:
        raise UserError(
            f"a search among {count} candidates with sampling.temperature=0 finds {count} times the same",
            remedy="use a temperature above 0, or search=none",
        )
