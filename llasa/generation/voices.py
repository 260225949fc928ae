"""Voices to imitate: a recording and its transcript, as the text and the codes that stand in front of a prompt.

    voice=FILE.wav, voice_text or asr   ─decode, checks, trim, codec─► Voice
    voice=NAME   VOICES/NAME.wav, NAME.txt (or heard by asr and written) ─► NAME.CODEC-KEY.npz ─► Voice

In a folder of voices the codes are kept beside the recording, for each codec and way of encoding. Whatever the codes
come from is part of the file's key; a damaged file or one of another key is made anew. Files appear whole or not at
all, so several processes may use a folder at once; where it cannot be written, each encodes for itself.

Cost: the codec's, once for each recording and codec; with a recogniser about 2 s more on a CPU core, once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa.audio import decode_audio
from llasa.errors import RejectedRow, UserError
from llasa.explain import nearest
from llasa.generation.voice_recording import (
    MAX_FILE_SECONDS,
    VoiceEncoder,
    encode,
    heard,
    read_content,
    read_recording,
    require_room,
    spoken_text,
    warn,
    warn_of_oddities,
)
from llasa.model.checkpoint import CheckpointCard
from llasa.paths import location
from llasa.provenance import write_atomically

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
"""Of recordings in a folder of voices; the first that is there is taken."""

MAX_SECONDS = 30.0
"""Of a voice, as of a corpus' recordings. Some 3 to 15 s are enough."""

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Voice:
    """A recording to imitate: its transcript in spoken form and its codes [num_codes]."""

    text: str
    codes: np.ndarray


@dataclass(frozen=True)
class VoiceInfo:
    """A voice of a folder; ``text`` is its transcript as it was given, none if it has not been heard yet."""

    name: str
    seconds: float
    text: str | None


def longest_voice(card: CheckpointCard) -> float:
    """Seconds of a recording that leave room for speech: half of what the model was trained on in one go."""
    return min(MAX_SECONDS, card.max_length / 2 / card.codec.tokens_per_second)


@dataclass(frozen=True)
class VoiceReader:
    """Encodes voices, of files and of a folder. What is odd but usable is a warning.

    Args:
        language: for the spoken form of the transcript, the recogniser, and the bounds of the speaking rate.
        recognizer_name: hears what has no transcript; none = that is a mistake.
        max_seconds: of a voice without the silence at its ends, see :func:`longest_voice`.
    """

    codec: VoiceEncoder
    language: str
    recognizer_name: str | None = None
    max_seconds: float = MAX_SECONDS

    def open(self, voice: str, text: str | None, folder: str | Path) -> Voice:
        """`voice=`: a file if there is one of that name, or if it has a slash or a suffix; else a name in ``folder``.

        Only for what a user of this machine typed: it reads any file. A client's names go to :meth:`named`.

        Raises:
            UserError: as :meth:`load` or :meth:`named`; a transcript is given for a voice that has its own.
        """
        if Path(voice).suffix or "/" in voice or os.sep in voice or os.path.isfile(voice):
            return self.load(voice, text)
        if text is not None:
            raise UserError(
                f"voice={voice} is a name in {folder}, where {voice}.txt has its transcript",
                remedy="leave voice_text= out, or name a file with voice=FILE.wav",
            )
        return self.named(voice, folder)

    def load(self, file: str | Path, text: str | None) -> Voice:
        """Encode a recording of any rate and any number of channels, in which ``text`` is said.

        Raises:
            UserError: the file is not usable, or there is no transcript.
        """
        field = f"voice={file}"
        recording = read_recording(read_content(location(file), field), field, self.max_seconds)
        if text is None:
            text = heard(*recording, field, self.language, self.recognizer_name, 'pass voice_text="…"')
            spoken = spoken_text(text, field, self.language, "pass voice_text=…")
        else:
            spoken = spoken_text(text, f"voice_text={text!r}", self.language, "pass what is said in the recording")
        warn_of_oddities(*recording, spoken, field, self.language)
        return Voice(spoken, encode(*recording, self.codec))

    def named(self, name: str, folder: str | Path) -> Voice:
        """A voice of a folder, from the codes that are kept there if they still belong to it.

        A transcript that is missing is heard, and written for the next time and for people to correct.

        Raises:
            UserError: there is no such voice, it is not usable, or it has no transcript.
        """
        file = find_voice(name, folder)
        field, transcript = f"voice={name} ({file})", file.with_suffix(".txt")
        content = read_content(file, field)
        recording = None
        if transcript.is_file():
            text = read_transcript(transcript)
        else:
            recording = read_recording(content, field, self.max_seconds)
            remedy = f"write what is said into {transcript}"
            text = heard(*recording, field, self.language, self.recognizer_name, remedy)
            write_if_possible(transcript, (text.strip() + "\n").encode())
        told = f"{transcript}: {text.strip()[:80]!r}"
        spoken = spoken_text(text, told, self.language, "write what is said into it")
        cache, key = cache_file(file, self.codec), cache_key(content, spoken, self.codec)
        codes = read_codes(cache, key)
        if codes is None:
            recording = recording or read_recording(content, field, self.max_seconds)
            warn_of_oddities(*recording, spoken, field, self.language)
            codes = encode(*recording, self.codec)
            write_if_possible(cache, packed_codes(codes, key))
        # Kept codes may be of a run with a model of longer speech.
        require_room(len(codes) / self.codec.spec.tokens_per_second, field, self.max_seconds)
        return Voice(spoken, codes)


# --- a folder of voices -----------------------------------------------------------------------------------------------


def find_voice(name: str, folder: str | Path) -> Path:
    """The recording of a named voice. The name is looked up in a list of the folder and never becomes a path.

    Raises:
        UserError: there is no voice of that name.
    """
    recordings = recordings_in(location(folder))
    found = recordings.get(unicodedata.normalize("NFC", name))
    if found is None:
        remedy = nearest(name, list(recordings)) if recordings else "there is none yet: put NAME.wav and NAME.txt there"
        raise UserError(f"there is no voice {name[:100]!r} in {folder}", remedy=remedy)
    return found


def list_voices(folder: str | Path) -> list[VoiceInfo]:
    """The usable voices of a folder by name; one that cannot be decoded is left out with a warning.

    Cost: every recording is decoded.
    """
    voices = []
    for name, file in recordings_in(location(folder)).items():
        try:
            waveform, rate = decode_audio(file, MAX_FILE_SECONDS)
            transcript = file.with_suffix(".txt")
            text = read_transcript(transcript) if transcript.is_file() else None
        except (RejectedRow, UserError) as reason:
            warn(f"voice {file} is left out ({reason})")
            continue
        voices.append(VoiceInfo(name, len(waveform) / rate, text))
    return voices


def recordings_in(folder: Path) -> dict[str, Path]:
    """Name (composed Unicode, which macOS does not write) → recording, sorted by name."""
    try:
        files = sorted(folder.iterdir(), key=lambda file: file.name)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"cannot read voices_folder={folder}: {error.strerror}", remedy="choose another") from None
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for file in files:
            if file.suffix.lower() == suffix and not file.name.startswith(".") and file.is_file():
                found.setdefault(unicodedata.normalize("NFC", file.stem), file)
    return dict(sorted(found.items()))


def read_transcript(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}", remedy="write it as UTF-8") from None


def cache_file(file: Path, codec: VoiceEncoder) -> Path:
    """`NAME.CODEC-KEY.npz` beside the recording: one for each codec and way of encoding."""
    facts = json.dumps([codec.spec.to_dict(), codec.encoding_facts()], sort_keys=True)
    return file.with_name(f"{file.stem}.{codec.spec.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.npz")


def cache_key(content: bytes, spoken: str, codec: VoiceEncoder) -> str:
    """Of all that the codes come from. The transcript is in it too: another one is compared with the sound anew."""
    facts = {
        "version": FORMAT_VERSION,
        "recording": hashlib.sha256(content).hexdigest(),
        "transcript": hashlib.sha256(spoken.encode()).hexdigest(),
        "codec": codec.spec.to_dict(),
        "encoding": codec.encoding_facts(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def packed_codes(codes: np.ndarray, key: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, codes=codes, key=np.array(key))
    return buffer.getvalue()


def read_codes(file: Path, key: str) -> np.ndarray | None:
    """The codes in a file; none where it is missing, damaged (each member has a checksum) or of another key."""
    try:
        with np.load(file, allow_pickle=False) as members:
            return members["codes"] if str(members["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def write_if_possible(file: Path, content: bytes) -> None:
    """A folder that may not be written, or is full, costs time and not the voice."""
    try:
        write_atomically(file, content)
    except OSError as error:
        warn(f"cannot write {file} ({error.strerror})")
