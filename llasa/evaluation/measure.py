"""From clips to rows of numbers: what is heard, whose voice it is, how it sounds, how fast it is.

The measures are arguments (:class:`Measures`): those whose package or model is not there are none, and their numbers
are then null in every row, with a note that says why.

Cost: a clip through the recogniser (2 s on a core for Whisper base), the speaker encoder
(0.1 s) and DNSMOS (up to 4 s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from llasa.audio import decode_audio
from llasa.config import EvaluateConfig
from llasa.corpus.recognition import Recognizer
from llasa.errors import UserError
from llasa.evaluation.dnsmos import Dnsmos
from llasa.evaluation.sentences import Sentence
from llasa.evaluation.similarity import SpeakerEncoder, similarity
from llasa.evaluation.speed import relative_speed, speaking_rate, spoken_seconds
from llasa.evaluation.statistics import proportion_interval
from llasa.evaluation.systems import Clip, System
from llasa.evaluation.words import character_errors, repeated_words, skipped_words, word_errors

T = TypeVar("T")


@dataclass
class Measures:
    listener: Recognizer | None = None
    encoder: SpeakerEncoder | None = None
    judge: Dnsmos | None = None
    notes: list[str] = field(default_factory=list)
    """Why a measure is none, for the report."""


def load_measures(config: EvaluateConfig) -> Measures:
    """The measures that the config asks for, or those that are there.

    Raises:
        UserError: the recogniser cannot be loaded, or a measure that was asked for cannot.
    """
    measures = Measures()
    proportion_interval(0, 1)  # as below, of what every report needs
    if config.metrics.words is False:
        pass
    elif config.asr is None:
        measures.notes.append("No word or character errors: no recogniser was given (asr=).")
    else:
        word_errors("a", "a", "en")  # here, and not after an hour of speech, its package is found to be missing
        measures.listener = Recognizer(config.asr)

    if config.store is None:
        measures.notes.append("No speaker similarity and no relative speed: a list of texts has no recordings.")
    else:
        measures.encoder = optional(
            lambda: SpeakerEncoder(config.speaker_model, config.device),
            config.metrics.similarity,
            "speaker similarity",
            measures.notes,
        )
    measures.judge = optional(Dnsmos, config.metrics.dnsmos, "DNSMOS", measures.notes)
    return measures


def optional(load: Callable[[], T], wanted: bool | None, what: str, notes: list[str]) -> T | None:
    """Load a measure; one that nobody asked for may be missing, and the report then says why."""
    if wanted is False:
        return None
    try:
        return load()
    except UserError as error:
        if wanted:
            raise
        notes.append(f"No {what}: {error}.")
        return None


@dataclass(frozen=True)
class Reference:
    """What clips are compared with: a system's clip of the same sentence, and for its own clips another one of the
    same speaker, which tells how like a voice is to itself."""

    system: System
    sentences: Sequence[Sentence]

    def of(self, sentence: Sentence, system: System) -> Clip | None:
        """The clip that ``sentence`` of ``system`` is compared with in voice."""
        if system.name != self.system.name:
            return self.system.clips.get(sentence.id)
        alike = [s for s in self.sentences if s.speaker == sentence.speaker and s.id in self.system.clips]
        place = next((index for index, other in enumerate(alike) if other.id == sentence.id), None)
        if place is None or len(alike) < 2:
            return None
        return self.system.clips[alike[(place + 1) % len(alike)].id]

    def same(self, sentence: Sentence, system: System) -> Clip | None:
        """The reference's clip of the sentence itself, for how fast it is said."""
        return None if system.name == self.system.name else self.system.clips.get(sentence.id)


def measure(
    sentences: Sequence[Sentence], systems: Sequence[System], reference: System | None, measures: Measures, output: Path
) -> list[dict[str, Any]]:
    """A row for each clip: system by system, sentences in order."""
    compared = Reference(reference, sentences) if reference is not None else None
    voices: dict[Path, np.ndarray] = {}
    durations: dict[Path, float] = {}

    def duration(clip: Clip) -> float:
        if clip.file not in durations:
            durations[clip.file] = spoken_seconds(*decode_audio(clip.file))
        return durations[clip.file]

    def voice(encoder: SpeakerEncoder, clip: Clip, sound: tuple[np.ndarray, int] | None = None) -> np.ndarray:
        if clip.file not in voices:
            voices[clip.file] = encoder.embed(*(sound or decode_audio(clip.file)))
        return voices[clip.file]

    rows = []
    total = sum(sentence.id in system.clips for system in systems for sentence in sentences)
    with tqdm(total=total, unit=" clips", desc="measuring", disable=None) as progress:
        for system in systems:
            for sentence in sentences:
                clip = system.clips.get(sentence.id)
                if clip is None:
                    continue
                sound = decode_audio(clip.file)
                row = describe(sentence, clip, system, output) | hear(sentence, sound, measures.listener)
                other = compared.of(sentence, system) if compared else None
                row["similarity"] = None
                if measures.encoder is not None and other is not None:
                    row["similarity"] = similarity(voice(measures.encoder, clip, sound), voice(measures.encoder, other))
                row["dnsmos"] = measures.judge.score(*sound) if measures.judge is not None else None
                row["spoken_seconds"] = spoken_seconds(*sound)
                row["speaking_rate"] = speaking_rate(sentence.text, row["spoken_seconds"], sentence.language)
                same = compared.same(sentence, system) if compared else None
                row["relative_speed"] = relative_speed(
                    sentence.text, row["spoken_seconds"], duration(same), sentence.language
                ) if same else None  # fmt: skip
                rows.append(row)
                progress.update()
    return rows


def describe(sentence: Sentence, clip: Clip, system: System, output: Path) -> dict[str, Any]:
    """What is known of a clip before anything is measured; files of the report's folder by their place in it."""
    inside = clip.file.is_relative_to(output)
    return {
        "system": system.name,
        "id": sentence.id,
        "text": sentence.text,
        "language": sentence.language,
        "speaker": sentence.speaker,
        "file": str(clip.file.relative_to(output) if inside else clip.file),
        "seconds": clip.seconds,
        "finish_reason": clip.finish_reason,
        "generation_seconds": clip.generation_seconds,
        "decode_seconds": clip.decode_seconds,
    }


def hear(sentence: Sentence, sound: tuple[np.ndarray, int], listener: Recognizer | None) -> dict[str, Any]:
    if listener is None:
        return {"heard": None, "words": None, "characters": None, "repeated_words": None, "skipped_words": None}
    heard = listener.transcribe(*sound, sentence.language)
    said = (sentence.text, heard, sentence.language)
    return {
        "heard": heard,
        **{
            kind: {
                name: getattr(counts, name) for name in ("errors", "length", "substitutions", "deletions", "insertions")
            }
            for kind, counts in (("words", word_errors(*said)), ("characters", character_errors(*said)))
        },
        "repeated_words": repeated_words(*said),
        "skipped_words": skipped_words(*said),
    }
