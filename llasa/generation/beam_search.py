"""Step-wise search: of several continuations of an utterance the better ones are kept, again and again.

    beams ─Engine─► step_seconds more of each, in several ways ─codec, step scorers─► the best beams ─┐
      ▲                                                                                               │
      └──────────────────────────── until every beam ended ───────────────────────────────────────────┤
                                                                     scorers among what is left ─► the best

Source: Llasa, arXiv 2502.04128: step scorers are its process rewards (there speaker similarity), scorers
its outcome rewards (there the word error rate).

Cost: up to width x candidates codes generated for each one that is kept. At each step all candidates are decoded and
scored from their beginning, and the engine reads them again, so that part grows with the square of the number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Unpack

import numpy as np

from llasa.codec.base import CodecSpec
from llasa.config import SamplingConfig, require
from llasa.errors import UserError
from llasa.generation.engine import GeneratedCodes
from llasa.generation.limits import retry_seed
from llasa.generation.loops import find_loop
from llasa.generation.scoring import Scorer, WeightedSum
from llasa.generation.search import MAX_CANDIDATES, Judge, SearchResult, plain, require_variety
from llasa.generation.synthesizer import Manner, Synthesizer


@dataclass(frozen=True)
class BeamSearch:
    """The best of up to ``width`` utterances that grew in steps.

    Each beam is continued in ``candidates`` ways by ``step_seconds``, rounded down to whole frames. Continuations that
    are the same count once. A beam that said END is a candidate like others, as it is; one that ran into a loop or into
    the text's limit is kept only where nothing else is left. The search ends when all beams have ended, so after no
    more steps than the text's limit has room for.

    One beam with one candidate is plain synthesis, code for code: where there is nothing to choose, nothing is cut.

    Args:
        step_scorers: choose at each step, by their weighted sum; each must judge unfinished speech.
        scorers: choose among the beams at the end.
        weights: of the scores of both, by name; 1 where there is none.

    Raises:
        UserError: a number out of range; several candidates, and no scorer; a step scorer that only judges whole
            utterances; a weight of no scorer.
    """

    width: int
    candidates: int
    step_seconds: float
    step_scorers: Mapping[str, Scorer]
    scorers: Mapping[str, Scorer]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.width >= 1, "search.width", self.width, "use 1 or more")
        require(self.candidates >= 1, "search.candidates", self.candidates, "use 1 or more")
        require(self._count <= MAX_CANDIDATES, "search.width x candidates", self._count, f"at most {MAX_CANDIDATES}")
        require(self.step_seconds > 0, "search.step_seconds", self.step_seconds, "use more than 0")
        for key in ("step_scorers", "scorers"):
            scorers = getattr(self, key)
            require(self._count == 1 or len(scorers) > 0, f"search.{key}", scorers, "name one, or use search=none")
        for name, scorer in self.step_scorers.items():
            if not scorer.judges_unfinished:
                raise UserError(
                    f"search.step_scorers.{name} only judges whole utterances", remedy="move it to search.scorers"
                )
        WeightedSum({**self.step_scorers, **self.scorers}, self.weights)

    @property
    def _count(self) -> int:
        return self.width * self.candidates

    def speak(
        self, synthesizer: Synthesizer, text: str, sampling: SamplingConfig, **said: Unpack[Manner]
    ) -> SearchResult:
        spec = synthesizer.speech.card.codec
        frame = spec.codes_per_frame
        step = int(self.step_seconds * spec.tokens_per_second / frame + 1e-9) * frame
        shortest = frame / spec.tokens_per_second
        require(step > 0, "search.step_seconds", self.step_seconds, f"a frame of the codec has {shortest:g} s")
        if self._count == 1:
            return plain(synthesizer, text, sampling, **said)
        require_variety(self._count, sampling)
        first = synthesizer.request(text, sampling, **said)
        judge = Judge(synthesizer, text, first.prompt, sampling.loop_seconds, said)
        step_sum, end_sum = self._weighted(self.step_scorers), self._weighted(self.scorers)
        codes_generated = 0
        beams = [_Beam(np.empty(0, spec.code_dtype), None, first.seed)] * self.width
        for number in range(-(-first.max_codes // step)):
            growing = [beam for beam in beams if beam.finish_reason is None for _ in range(self.candidates)]
            if not growing:
                break
            requests = []
            for place, beam in enumerate(growing):
                request = first
                if number > 0:
                    request = synthesizer.request(text, sampling, **said, spoken=beam.codes)
                    # Whether END follows these codes was asked when the step before them ended.
                    request = replace(request, min_codes=max(request.min_codes, frame))
                seed = retry_seed(first.seed, number * self._count + place)
                requests.append(replace(request, seed=seed, max_codes=min(step, first.max_codes - len(beam.codes))))
            parts = synthesizer.engine.generate(synthesizer.speech, requests, sampling)
            codes_generated += sum(len(part.codes) for part in parts)
            ended = [beam for beam in beams if beam.finish_reason is not None]
            grown = [
                _grown(beam, request.seed, part, first.max_codes, spec, sampling)
                for beam, request, part in zip(growing, requests, parts, strict=True)
            ]
            beams = _keep(_without_duplicates([*ended, *grown]), self.width, step_sum, judge)
        whole = []
        for beam in beams:
            assert beam.finish_reason is not None, "a beam passed the text's limit"
            whole.append(GeneratedCodes(beam.codes, beam.finish_reason))
        return SearchResult(judge.score_whole(whole, [beam.seed for beam in beams], end_sum), codes_generated)

    def _weighted(self, scorers: Mapping[str, Scorer]) -> WeightedSum:
        return WeightedSum(scorers, {name: weight for name, weight in self.weights.items() if name in scorers})


@dataclass(frozen=True)
class _Beam:
    """Codes so far, why they ended (none = they go on), and the seed of the last step."""

    codes: np.ndarray
    finish_reason: str | None
    seed: int


def _grown(
    beam: _Beam, seed: int, part: GeneratedCodes, limit: int, spec: CodecSpec, sampling: SamplingConfig
) -> _Beam:
    """The beam with what it said next. The engine sees the length and the loops of one step only."""
    codes = np.concatenate([beam.codes, part.codes.astype(beam.codes.dtype)])
    frame = spec.codes_per_frame
    reason: str | None = part.finish_reason
    if reason == "length" and len(codes) < limit:
        looped = find_loop(codes, frame, spec.tokens_per_second / frame, sampling.loop_seconds) is not None
        reason = "loop" if looped else None
    return _Beam(codes, reason, seed)


def _keep(beams: list[_Beam], width: int, scorers: WeightedSum, judge: Judge) -> list[_Beam]:
    """The ``width`` best, of equals the first ones."""
    if len(beams) <= width:
        return beams
    waveforms = judge.synthesizer.waveforms([beam.codes for beam in beams])
    ranks = []
    for beam, waveform in zip(beams, waveforms, strict=True):
        scores = scorers.scores(judge.candidate(waveform, beam.codes, beam.finish_reason))
        ranks.append((beam.finish_reason in (None, "stop"), scorers.total(scores)))
    order = sorted(range(len(beams)), key=ranks.__getitem__, reverse=True)  # stable, also when reversed
    return [beams[place] for place in order[:width]]


def _without_duplicates(beams: Sequence[_Beam]) -> list[_Beam]:
    """The first of each."""
    first: dict[tuple[bytes, str | None], _Beam] = {}
    for beam in beams:
        first.setdefault((beam.codes.tobytes(), beam.finish_reason), beam)
    return list(first.values())
