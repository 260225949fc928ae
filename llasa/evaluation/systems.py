"""Who speaks in an evaluation: checkpoints, the codec on its own, the recordings. Each turns sentences into clips.

    checkpoint         sentence ─Synthesizer─► OUTPUT/audio/NAME/ID.wav
    codec resynthesis  the store's codes ─codec─► the same        what a perfect model could reach with this codec
    ground truth       files of a folder                          what the metrics say of the real thing

A clip that is there already is not made again: beside the clips of a system, `clips.json` says what each was made
from (weights, codec, seed, sampling, the batch it was in). A killed evaluation goes on, and one with another
recogniser only listens again.

Cost: generation; a checkpoint is loaded when its first missing clip is reached, one at a time.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
from tqdm import tqdm

from llasa.audio import decode_audio, write_wav
from llasa.build import build
from llasa.codec.base import Codec, CodecSpec
from llasa.config import EvaluateConfig
from llasa.errors import RejectedRow, UserError
from llasa.evaluation.sentences import Sentence
from llasa.generation.run import build_codec
from llasa.generation.synthesizer import Synthesizer
from llasa.model.checkpoint import CheckpointCard, fingerprint, require_same_codec
from llasa.provenance import write_json

RESYNTHESIS, RECORDING = "codec resynthesis", "ground truth"
CLIPS = "clips.json"
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
INNER_NAMES = ("best", "adapter")
"""Checkpoints in a run folder beside the final one: such a name alone says nothing."""

T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """A sentence that somebody said. Seconds of generation and decoding are a share of its batch's."""

    file: Path
    seconds: float
    finish_reason: str | None = None
    """"stop", or "length" where the model did not end the sentence; none of what no model said."""
    generation_seconds: float | None = None
    decode_seconds: float | None = None


@dataclass(frozen=True)
class System:
    """A name in the report, what kind it is (checkpoint, codec, recording), and its clips by the sentences' ids."""

    name: str
    kind: str
    clips: dict[str, Clip]


class ClipFolder:
    """The clips of a system on the disk, each with the key of what it was made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._records: dict[str, dict[str, Any]] = json.loads((folder / CLIPS).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            self._records = {}

    def get(self, sentence: Sentence, key: str) -> Clip | None:
        """The clip, if it is there and made from the same."""
        record = self._records.get(sentence.stem)
        path = self.folder / f"{sentence.stem}.wav"
        if record is None or record.get("key") != key or not path.is_file():
            return None
        return Clip(path, **{name: value for name, value in record.items() if name != "key"})

    def forget(self, sentences: Sequence[Sentence]) -> None:
        """Before clips are made anew: a run that is killed then must not leave a new sound under an old key."""
        known = [sentence.stem for sentence in sentences if sentence.stem in self._records]
        for stem in known:
            del self._records[stem]
        if known:
            self.save()

    def put(self, sentence: Sentence, key: str, waveform: np.ndarray, sample_rate: int, **facts: Any) -> Clip:
        """Write a clip; :meth:`save` makes it known. Raises ``UserError`` where that cannot be."""
        path = self.folder / f"{sentence.stem}.wav"
        try:
            write_wav(path, waveform, sample_rate)
        except (OSError, soundfile.SoundFileError) as error:
            raise UserError(f"cannot write {path}: {error}", remedy="choose another output=") from None
        self._records[sentence.stem] = {"key": key, "seconds": len(waveform) / sample_rate, **facts}
        return Clip(path, len(waveform) / sample_rate, **facts)

    def save(self) -> None:
        write_json(self.folder / CLIPS, self._records)


class Codecs:
    """Codecs by their spec, each built once: checkpoints and store mostly share one."""

    def __init__(self, chosen: dict[str, Any] | None, device: str) -> None:
        self._chosen, self._device = chosen, device
        self._built: dict[tuple[str, str, str], Codec] = {}

    def get(self, spec: CodecSpec, owner: str) -> Codec:
        """The codec of ``owner``, a checkpoint or a store.

        Raises:
            UserError: the codec the user chose is another one, or there is no such codec.
        """
        key = (spec.name, spec.fingerprint, spec.checkpoint)
        if key not in self._built:
            codec = build_codec(spec, self._chosen, self._device)
            require_same_codec(spec, codec.spec, owner, "the codec")
            self._built[key] = codec
        return self._built[key]


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """A short name for each: the last part of its path, and as many before it as tell it from the others.

    Raises:
        UserError: one is named twice.
    """
    if len(set(checkpoints)) < len(checkpoints):
        raise UserError(f"checkpoints={list(checkpoints)} names one twice", remedy="name each once")
    parts = [Path(checkpoint).parts for checkpoint in checkpoints]
    # RUN/checkpoint is called RUN.
    parts = [path[:-1] if len(path) > 1 and path[-1] == "checkpoint" else path for path in parts]
    lengths = [2 if path[-1] in INNER_NAMES else 1 for path in parts]
    names: list[str] = []
    while True:
        longer = ["/".join(path[-length:]) for path, length in zip(parts, lengths, strict=True)]
        if longer == names:  # nothing is left to tell them apart, as with RUN and RUN/checkpoint
            return [f"{name} ({index})" for index, name in enumerate(names, start=1)]
        names = longer
        if len(set(names)) == len(names):
            return names
        lengths = [length + (names.count(name) > 1) for length, name in zip(lengths, names, strict=True)]


def folder_name(name: str) -> str:
    """A system's name as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "system"


def speak(
    name: str, checkpoint: str, sentences: Sequence[Sentence], config: EvaluateConfig, codecs: Codecs, device: str
) -> System:
    """Let a checkpoint say the sentences, in batches of like length.

    Raises:
        UserError: it cannot be loaded, or a sentence is too long for it.
    """
    card = CheckpointCard.load(checkpoint)
    folder = ClipFolder(Path(config.output) / "audio" / folder_name(name))
    engine = build(config.engine)
    engine.progress = False  # one bar is enough
    settings = {
        "checkpoint": fingerprint(checkpoint),
        "codec": card.codec.fingerprint or card.codec.checkpoint,
        "seed": config.seed,
        "sampling": asdict(config.sampling),
        "engine": config.engine,
    }
    clips: dict[str, Clip] = {}
    synthesizer = None
    ordered = sorted(sentences, key=lambda sentence: (len(sentence.text), sentence.id))
    with tqdm(total=len(ordered), unit=" sentences", desc=f"{name} speaks", disable=None) as progress:
        for batch in batches(ordered, engine.batch_size):
            told = [(s.text, s.language, *([s.speaker] if card.rules.speaker_tags else [])) for s in batch]
            key = key_of(settings | {"texts": told})
            known = [clip for sentence in batch if (clip := folder.get(sentence, key)) is not None]
            if len(known) < len(batch):
                if synthesizer is None:
                    codec = codecs.get(card.codec, checkpoint)  # first: it may be the wrong one
                    synthesizer = Synthesizer(engine.load(checkpoint, device), codec, engine, "")
                known = say(batch, synthesizer, config, folder, key)
            clips |= {sentence.id: clip for sentence, clip in zip(batch, known, strict=True)}
            progress.update(len(batch))
    del synthesizer
    gc.collect()  # its memory is the next one's
    return System(name, "checkpoint", clips)


def say(
    batch: Sequence[Sentence], synthesizer: Synthesizer, config: EvaluateConfig, folder: ClipFolder, key: str
) -> list[Clip]:
    """Speak a batch and write its clips; its seconds are shared among them in equal parts."""
    folder.forget(batch)
    texts, languages = [sentence.text for sentence in batch], [sentence.language for sentence in batch]
    began = time.perf_counter()
    card = synthesizer.speech.card
    speakers = [sentence.speaker if card.knows(sentence.speaker) else None for sentence in batch]
    generated = synthesizer.generate(texts, config.sampling, seed=config.seed, languages=languages, speakers=speakers)
    between = time.perf_counter()
    spoken = synthesizer.decode(generated)
    ended = time.perf_counter()
    clips = [
        folder.put(
            sentence,
            key,
            speech.waveform,
            speech.sample_rate,
            finish_reason=speech.finish_reason,
            generation_seconds=(between - began) / len(batch),
            decode_seconds=(ended - between) / len(batch),
        )
        for sentence, speech in zip(batch, spoken, strict=True)
    ]
    folder.save()
    return clips


def resynthesise(
    sentences: Sequence[Sentence], codec: Callable[[], Codec], spec: CodecSpec, output: Path, batch_size: int = 16
) -> System:
    """Decode the store's own codes: what this codec makes of the recordings. ``codec`` is called where clips miss."""
    folder = ClipFolder(output / "audio" / folder_name(RESYNTHESIS))
    clips: dict[str, Clip] = {}
    missing: list[tuple[Sentence, np.ndarray, str]] = []
    for sentence in sentences:
        assert sentence.codes is not None, "not of a store"
        key = key_of({"codec": spec.fingerprint, "codes": sentence.codes.tolist()})
        clip = folder.get(sentence, key)
        if clip is None:
            missing.append((sentence, sentence.codes, key))
        else:
            clips[sentence.id] = clip
    with tqdm(total=len(missing), unit=" sentences", desc="codec decodes", disable=None) as progress:
        for batch in batches(sorted(missing, key=lambda row: len(row[1])), batch_size):
            folder.forget([sentence for sentence, _, _ in batch])
            waveforms = codec().decode([codes for _, codes, _ in batch])
            for (sentence, _, key), waveform in zip(batch, waveforms, strict=True):
                clips[sentence.id] = folder.put(sentence, key, waveform, spec.sample_rate)
            folder.save()
            progress.update(len(batch))
    return System(RESYNTHESIS, "codec", clips)


def find_recordings(sentences: Sequence[Sentence], reference: str) -> System:
    """Recordings in a folder, FOLDER/ID.wav or FOLDER/wavs/ID.wav (as LJSpeech has them), of as many as are there.

    Raises:
        UserError: none is, or one cannot be read.
    """
    clips: dict[str, Clip] = {}
    for sentence in sentences:
        for file in candidates(Path(reference).expanduser(), sentence.id):
            if file.is_file():
                try:
                    waveform, rate = decode_audio(file)
                except RejectedRow as reason:
                    raise UserError(f"{file} cannot be used ({reason})", remedy="replace or remove it") from None
                clips[sentence.id] = Clip(file, len(waveform) / rate)
                break
    if not clips:
        raise UserError(
            f"reference={reference} has a recording of none of the {len(sentences)} sentences",
            remedy=f"name the files by the rows' ids, such as {sentences[0].id}.wav",
        )
    return System(RECORDING, "recording", clips)


def candidates(folder: Path, name: str) -> Iterable[Path]:
    """Where a recording may be; an id that already ends in .wav, or has folders in it, is taken as it is too."""
    for place in (folder, folder / "wavs"):
        yield from (place / f"{name}{suffix}" for suffix in ("", *AUDIO_SUFFIXES))


def batches(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def key_of(facts: dict[str, Any]) -> str:
    content = json.dumps(facts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
