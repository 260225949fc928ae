"""A corpus with nothing to download: sentences of a text file, spoken by espeak-ng.

    text file ─► sentence i, voice i mod len(voices) ─► libespeak-ng in this process ─► SourceRow with WAV bytes

espeak-ng comes with its data in the package espeakng-loader and is called through ctypes in its synchronous
mode: no subprocess, no audio device. It is a formant synthesiser, quick (about 6 ms a sentence) and plainly a
robot: good for demonstrations and tests, not for a voice that people want to hear.

The same row gives the same bytes in any order, thread and process. The library makes that hard, because what
it says depends on what it said before: its random generator starts from the clock, the pitch wobble goes on
where the last sentence stopped, and neither ``espeak_Terminate`` nor a new seed resets all of it [ran, 1.52.0].
So every sentence gets a newly loaded library, which costs less than the synthesis. This needs ``dlclose``,
hence Linux or macOS.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llasa.audio import wav_bytes
from llasa.corpus.sources import IndexedSource, SourceRow
from llasa.errors import RejectedRow, UserError

ESPEAK_VOICES = {
    "it": "it",
    "de": "de",
    "en": "en-us",
    "fr": "fr",
    "es": "es",
    "pt": "pt-br",
    "nl": "nl",
    "pl": "pl",
}
"""Our language codes and espeak's voices; en and pt speak as most of the recorded corpora do."""

SENTENCES = Path(__file__).parent / "sentences"
"""The shipped lists: ``LANGUAGE.txt``, 48 sentences each, one per line."""

WORDS_PER_MINUTE = range(80, 451)
"""espeak's own range; beyond it the audio is time-stretched after the synthesis."""

# From speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1
_PARAMETER_RATE = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_MAX_DATA_PATH = 140
"""Bytes; espeak keeps its data path in a buffer of 160 and gives up on a longer one."""

_lock = threading.Lock()


class EspeakSource(IndexedSource):
    """Sentences spoken by espeak-ng, as a :class:`~llasa.corpus.sources.Source`.

    The sentences keep the order of their file: the last ``test`` are the test split, the ``validation`` before
    them the validation split, the rest is train. Sentence ``i`` of the file has the id ``LANGUAGE-i`` and the
    voice ``i mod len(voices)``, whatever its split.

    Args:
        language: one of :data:`ESPEAK_VOICES`.
        voices: espeak's voice variants, each a speaker: ``m1`` to ``m8``, ``f1`` to ``f5``, and other names;
            the empty string is the language's plain voice.
        words_per_minute: speed, 80 to 450; 150 to 180 is natural.
        validation: number of sentences held out for validation.
        test: number of sentences held out for the test.
        sentences: a UTF-8 text file, one sentence per line, blank lines and lines from ``#`` on left out; None
            takes the shipped list of the language.
        limit: keep only the first so many sentences, before the splits are cut.
        name: what the corpus is called in the store's manifest.

    Raises:
        UserError: an argument that cannot be used, or no espeakng-loader.
    """

    def __init__(
        self,
        *,
        language: str,
        voices: Sequence[str],
        words_per_minute: int,
        validation: int,
        test: int,
        sentences: str | None = None,
        limit: int | None = None,
        name: str = "espeak",
    ) -> None:
        if language not in ESPEAK_VOICES:
            raise UserError(
                f"dataset.language: {language!r} has no espeak voice", remedy=f"use {', '.join(ESPEAK_VOICES)}"
            )
        _check_voices(voices)
        if words_per_minute not in WORDS_PER_MINUTE:
            raise UserError(
                f"dataset.words_per_minute: {words_per_minute} is out of range",
                remedy=f"use {WORDS_PER_MINUTE.start} to {WORDS_PER_MINUTE.stop - 1}",
            )
        if limit is not None and limit < 1:
            raise UserError(
                f"dataset.limit: {limit} leaves no sentence", remedy="use 1 or more, or null for all of them"
            )
        path = SENTENCES / f"{language}.txt" if sentences is None else Path(sentences)
        lines = _read_sentences(path)[:limit]
        for field, count in (("validation", validation), ("test", test)):
            if count < 0:
                raise UserError(f"dataset.{field}: {count} is negative", remedy="use 0 or more")
        if validation + test > len(lines):
            raise UserError(
                f"dataset.validation and dataset.test: {validation} + {test} sentences held out of {len(lines)}",
                remedy=f"hold out fewer, raise limit, or add sentences to {path}",
            )
        self.name = name
        self.language = language
        self.voices = [f"{ESPEAK_VOICES[language]}+{voice}".removesuffix("+") for voice in voices]
        self.words_per_minute = words_per_minute
        self.sentences = lines
        ends = [len(lines) - test - validation, len(lines) - test, len(lines)]
        self._ranges = {
            "train": range(ends[0]),
            "validation": range(ends[0], ends[1]),
            "test": range(ends[1], ends[2]),
        }

    def describe(self) -> dict[str, Any]:
        """What identifies the rows; the sentences by their SHA-256, not by the path of their file."""
        return {
            "name": self.name,
            "espeak_version": espeak_version(),
            "language": self.language,
            "voices": list(self.voices),
            "words_per_minute": self.words_per_minute,
            "rows": self.splits(),
            "sentences_sha256": hashlib.sha256("\n".join(self.sentences).encode()).hexdigest(),
        }

    def splits(self) -> dict[str, int]:
        return {split: len(indices) for split, indices in self._ranges.items()}

    def row(self, split: str, index: int) -> SourceRow:
        """Row ``index`` of ``split``, its audio a mono 16-bit WAV at espeak's 22050 Hz. Safe in threads.

        Raises:
            RejectedRow: ``empty_audio``, a sentence without anything to say.
        """
        if not 0 <= index < len(self._ranges[split]):
            raise IndexError(f"row {index} of {len(self._ranges[split])} in {split}")
        sentence = self._ranges[split][index]
        text = self.sentences[sentence]
        voice = self.voices[sentence % len(self.voices)]
        samples, sample_rate = synthesize(text, voice=voice, words_per_minute=self.words_per_minute)
        if not samples.any():  # of punctuation alone it makes 8 ms of zeros
            raise RejectedRow("empty_audio", f"espeak says nothing for {text!r}")
        return SourceRow(
            id=f"{self.language}-{sentence:04d}",
            text=text,
            audio=wav_bytes(samples, sample_rate),
            speaker=voice,
            language=self.language,
        )


def synthesize(text: str, *, voice: str, words_per_minute: int) -> tuple[np.ndarray, int]:
    """Speak ``text``: int16 [samples] and their rate in Hz, a function of the arguments alone.

    ``voice`` is espeak's name of a language, with a variant after a plus sign: ``it``, ``it+f2``. espeak ignores
    a variant that it does not know; :class:`EspeakSource` has checked its own.
    """
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples: Any, num_samples: int, events: Any) -> int:
        if samples and num_samples > 0:  # a null pointer marks the end
            chunks.append(ctypes.string_at(samples, num_samples * ctypes.sizeof(ctypes.c_short)))
        return 0  # 1 would stop the synthesis

    encoded = text.encode()
    with _fresh_library() as library, _short_data_path() as data_path:
        sample_rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data_path, _INITIALIZE_DONT_EXIT)
        if sample_rate <= 0:
            raise UserError(f"espeak-ng cannot read its data in {_data_path()}", remedy="reinstall espeakng-loader")
        try:
            library.espeak_ng_SetRandSeed(1)
            library.srand(1)  # the C library's: some voices (Reed, caleb) take their noise from it
            library.espeak_SetSynthCallback(collect)
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"espeak-ng has no voice {voice!r}")
            # After the voice, which may bring a rate of its own.
            library.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
            status = library.espeak_Synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
            if status != 0 or library.espeak_Synchronize() != 0:
                raise RuntimeError(f"espeak-ng failed (status {status}) on {text!r}")
        finally:
            library.espeak_Terminate()
    return np.frombuffer(b"".join(chunks), dtype=np.int16), sample_rate


@functools.cache
def espeak_version() -> str:
    with _fresh_library() as library:
        return library.espeak_Info(None).decode()


@contextlib.contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    """libespeak-ng as if loaded for the first time, with its global state untouched; one at a time."""
    from _ctypes import dlclose

    path = _loader().get_library_path()
    with _lock:
        # Loaded already, by another package or because the last dlclose did not unload it, it would bring old
        # state along, and rows would depend on their order without anyone noticing.
        try:
            loaded = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            loaded = None
        if loaded is not None:
            dlclose(loaded._handle)
            raise RuntimeError(f"{path} is already loaded in this process, so its audio would not be reproducible")
        library = ctypes.CDLL(path)
        try:
            _declare(library)
            yield library
        finally:
            dlclose(library._handle)


def _declare(library: ctypes.CDLL) -> None:
    """Argument types; without them ctypes passes pointers and sizes as 32-bit integers."""
    c_uint, c_void_p = ctypes.c_uint, ctypes.c_void_p
    library.espeak_Info.argtypes = [ctypes.POINTER(ctypes.c_char_p)]
    library.espeak_Info.restype = ctypes.c_char_p
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_Terminate.argtypes = []
    library.espeak_Synchronize.argtypes = []
    library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
    library.espeak_SetSynthCallback.restype = None
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,  # text, zero-terminated
        ctypes.c_size_t,  # its bytes, the zero included
        c_uint,  # start
        ctypes.c_int,  # what start counts
        c_uint,  # end, 0 for none
        c_uint,  # flags
        c_void_p,  # out: message identifier
        c_void_p,  # user data
    ]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_ng_SetRandSeed.restype = None
    library.srand.argtypes = [c_uint]
    library.srand.restype = None


def _loader() -> Any:
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "dataset=espeak needs the package espeakng-loader", remedy="pip install espeakng-loader"
        ) from error
    return espeakng_loader


def _data_path() -> Path:
    return Path(_loader().get_data_path())


@contextlib.contextmanager
def _short_data_path() -> Iterator[bytes]:
    """The data folder under a name that fits espeak's buffer, through a temporary link where it must."""
    path = os.fsencode(_data_path())
    if len(path) <= _MAX_DATA_PATH:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        link = os.path.join(os.fsencode(folder), b"espeak-ng-data")
        os.symlink(path, link, target_is_directory=True)
        yield link


def _check_voices(voices: Sequence[str]) -> None:
    if isinstance(voices, str) or not voices:
        raise UserError(f"dataset.voices: {voices!r} is not a list of names", remedy="use a list such as [m1, f2]")
    if len(set(voices)) != len(voices):
        raise UserError(f"dataset.voices: {list(voices)} names a voice twice", remedy="name each once")
    folder = _data_path() / "voices" / "!v"
    known = sorted(entry.name for entry in folder.iterdir())
    for voice in voices:
        if voice and voice not in known:
            nearest = difflib.get_close_matches(voice, known, n=3) or ["m1", "f2"]
            raise UserError(
                f"dataset.voices: espeak has no variant {voice!r}",
                remedy=f"did you mean {' or '.join(nearest)}? All are in {folder}",
            )


def _read_sentences(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a byte-order mark first
    except FileNotFoundError as error:
        raise UserError(
            f"dataset.sentences: no file {path}", remedy="give a text file, or null for the shipped list"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"dataset.sentences: {path} is not UTF-8 ({error.reason} at byte {error.start})", remedy="convert it"
        ) from error
    except OSError as error:
        raise UserError(
            f"dataset.sentences: {path} cannot be read ({error.strerror})", remedy="give a text file"
        ) from error
    if "\0" in text:
        raise UserError(f"dataset.sentences: {path} holds a zero byte", remedy="give a text file")
    lines = [line.strip() for line in text.splitlines()]
    sentences = [line for line in lines if line and not line.startswith("#")]
    if not sentences:
        raise UserError(f"dataset.sentences: {path} has none", remedy="write one per line")
    return sentences
