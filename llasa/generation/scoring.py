"""Scorers: how good a candidate of :mod:`llasa.generation.search` is, as one number, higher is better.

    Candidate (waveform, codes, what it should say and by whom) ─Scorer, Scorer, …─► weighted sum

A scorer that may judge unfinished speech is a process reward (it chooses between beams at every step), any scorer is an
outcome reward (it chooses between whole utterances); the terms are those of Llasa, arXiv 2502.04128.
Speaker similarity and DNSMOS are in :mod:`llasa.evaluation.scorers`; a config names a scorer by its `_target_`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llasa.config import KernelsConfig, require
from llasa.corpus.recognition import Recognizer, edit_distance, plain_words
from llasa.errors import UserError
from llasa.model.llama import SpeechModel, TokenContract
from llasa.text import characters_per_second, spoken_form


@dataclass(frozen=True)
class Candidate:
    """One try at an utterance: all that a scorer may look at.

    Attributes:
        waveform: float32 [samples] at ``sample_rate`` Hz, decoded from ``codes`` [num_codes].
        text: what is to be said, as it was given.
        finish_reason: as in :class:`llasa.types.Speech`; none = it goes on.
        prompt: ids [n] that the codes follow, the voice's among them.
        speech: the model that said it.
        voice: float32 [samples], the recording it should sound like as the codec renders it; none = no such voice.
    """

    waveform: np.ndarray
    sample_rate: int
    codes: np.ndarray
    finish_reason: str | None
    text: str
    language: str
    prompt: np.ndarray
    speech: TokenContract
    voice: np.ndarray | None = None


class Scorer(Protocol):
    """Judges one candidate by itself, so a score does not depend on what it is compared with."""

    name: str
    judges_unfinished: bool
    """Whether a score of half an utterance says something."""

    def score(self, candidate: Candidate) -> float:
        """Higher is better; finite."""
        ...


class CharacterAccuracy:
    """The character error rate of what a recogniser hears, negated: 0 is all right, -1 as bad as silence.

    Unfinished speech is compared with the prefix of the text that fits best. A prefix has at least one letter: were it
    empty, saying nothing would be free of errors.

    Cost: that of the recogniser, about 2 s a candidate on a CPU core with Whisper base.

    Args:
        asr: a local folder or a name, see :class:`llasa.corpus.recognition.Recognizer`.

    Raises:
        UserError: faster-whisper is not installed, or there is no such model.
    """

    name, judges_unfinished = "cer", True

    def __init__(self, asr: str) -> None:
        self._recognizer = Recognizer(asr)

    def score(self, candidate: Candidate) -> float:
        language = candidate.language
        heard = self._recognizer.transcribe(candidate.waveform, candidate.sample_rate, language)
        reference, hypothesis = plain_words(candidate.text, language), plain_words(heard, language)
        if candidate.finish_reason is None:
            return -prefix_error_rate(reference, hypothesis)
        return -edit_distance(reference, hypothesis) / max(1, len(reference))


class Likelihood:
    """Mean log-probability of the codes, and of END after the last, under the model that said them, in nats.

    Needs no other model, and so knows nothing the model does not: speech that is likely is not always right.

    Cost: one forward pass over prompt and codes, a small part of generating them.
    """

    name, judges_unfinished = "likelihood", True

    def score(self, candidate: Candidate) -> float:
        """Raises ``UserError`` where an engine keeps the weights to itself."""
        import torch

        from llasa.model.loss import summed_loss

        speech = candidate.speech
        if not isinstance(speech, SpeechModel):
            raise UserError(
                "the scorer likelihood needs the model's weights, which this engine keeps to itself",
                remedy="use engine=hf, or other scorers",
            )
        ids = [candidate.prompt, speech.vocabulary.codes_to_ids(candidate.codes)]
        if candidate.finish_reason == "stop":
            ids.append(np.array([speech.vocabulary.speech_end]))
        row = torch.from_numpy(np.concatenate(ids))[None].to(speech.model.device)
        first = len(candidate.prompt)
        with torch.no_grad():
            hidden = speech.model.model(input_ids=row[:, :-1], use_cache=False).last_hidden_state[0, first - 1 :]
            loss = summed_loss(
                hidden, speech.model.get_output_embeddings(), row[0, first:], "torch", KernelsConfig(name="torch")
            )
        return -float(loss) / len(hidden)


class LengthPlausibility:
    """How far the speed of speech lies from the expected one: 0 there, -1 at half the breadth of the language's range.

    Distances are of logarithms: twice as fast is as far off as half as fast. Of whole utterances only.

    Args:
        speed: characters of the spoken form per second, of this speaker; none = the middle of the language's range,
            which prefers slow speech of a fast speaker (experiments/search).
    """

    name, judges_unfinished = "length", False

    def __init__(self, speed: float | None = None) -> None:
        require(
            speed is None or speed > 0, "search.scorers.length.speed", speed, "use characters per second, such as 15"
        )
        self._speed = speed

    def score(self, candidate: Candidate) -> float:
        """Raises ``UserError`` in a language whose range is not known."""
        bounds = characters_per_second(candidate.language)
        if bounds is None:
            raise UserError(
                f"how fast language={candidate.language} is spoken is not known", remedy="leave the scorer length out"
            )
        slow, fast = map(math.log, bounds)
        expected = (slow + fast) / 2 if self._speed is None else math.log(self._speed)
        letters = len(spoken_form(candidate.text, candidate.language))
        speed = math.log(max(letters, 1) * candidate.sample_rate / max(len(candidate.waveform), 1))
        return -abs(speed - expected) / ((fast - slow) / 2)


@dataclass(frozen=True)
class WeightedSum:
    """What several scorers say together.

    Args:
        scorers: by the names under which their scores are reported.
        weights: by the same names; 1 where there is none. Scores are summed as they are: CER lies between 0 and about
            -1, similarity between 0 and 1, DNSMOS between 1 and 5.

    Raises:
        UserError: a weight for a scorer that is not there.
    """

    scorers: Mapping[str, Scorer]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            require(name in self.scorers, f"search.weights.{name}", weight, f"scorers are {', '.join(self.scorers)}")

    def scores(self, candidate: Candidate) -> dict[str, float]:
        """Of each scorer.

        Raises:
            UserError: a score that is no finite number.
        """
        scores = {name: float(scorer.score(candidate)) for name, scorer in self.scorers.items()}
        for name, score in scores.items():
            if not math.isfinite(score):
                raise UserError(f"the scorer {name} gave {score}", remedy="a scorer must give a finite number")
        return scores

    def total(self, scores: Mapping[str, float]) -> float:
        return sum(self.weights.get(name, 1.0) * score for name, score in scores.items())


def prefix_error_rate(reference: str, heard: str) -> float:
    """Edits per character of the prefix of ``reference``, one letter or more, for which they are fewest."""
    # One column of Levenshtein's table: a row for each letter heard leaves the distances to all prefixes.
    letters = np.array([ord(letter) for letter in reference], dtype=np.int64)
    places = np.arange(len(letters) + 1)
    row = places
    for number, letter in enumerate(heard, start=1):
        best = np.concatenate([[number], np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))])
        row = np.minimum.accumulate(best - places) + places
    return float((row[1:] / places[1:]).min()) if len(letters) else float(len(heard))
