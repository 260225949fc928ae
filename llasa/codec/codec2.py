"""Codec2 at 2400 bit/s as a token codec: 8 kHz, 200 tokens/s, 13,312 codes, nothing to download.

A frame is 20 ms and 48 bits, most significant first: 2 voicing and 8 pitch-and-energy bits, 36 bits of line
spectral pairs, 2 spare bits that are always zero. It becomes four codes of 10, 12, 12 and 12 bits, each with a
range of its own, so one flat codebook holds them all: 1,024 + 3 x 4,096 = 13,312.

Source: Rowe, "Techniques for Harmonic Sinusoidal Coding" (1997); the library comes with the package pycodec2.
Cost: about 300 times faster than real time on one CPU core, both ways.
"""

from __future__ import annotations

import _ctypes
import ctypes
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import files, version
from pathlib import Path

import numpy as np

from llasa.codec.base import Codec, CodecSpec
from llasa.errors import UserError, first_line

BITS = (10, 12, 12, 12)
FRAME_BYTES, SPARE_BITS = 6, 2
SAMPLE_RATE, FRAME_SAMPLES = 8000, 160
MODE_2400 = 1

_SIZES = np.array([1 << bits for bits in BITS])
_STARTS = np.concatenate([[0], np.cumsum(_SIZES)[:-1]])
_SHIFTS = SPARE_BITS + np.concatenate([np.cumsum(BITS[::-1])[::-1][1:], [0]])
_BYTE_WEIGHTS = 1 << (8 * np.arange(FRAME_BYTES)[::-1])
_LIBRARY_LOCK = threading.Lock()


class Codec2(Codec):
    """The codec protocol over libcodec2."""

    def __init__(self, *, name: str = "codec2") -> None:
        self._library = _library_path()
        self.spec = CodecSpec(
            name=name,
            fingerprint=f"codec2-2400-{'.'.join(map(str, BITS))}-pycodec2-{version('pycodec2').split('.')[0]}",
            sample_rate=SAMPLE_RATE,
            tokens_per_second=len(BITS) * SAMPLE_RATE / FRAME_SAMPLES,
            codebook_size=int(_SIZES.sum()),
            code_ranges=tuple((int(start), int(start + size)) for start, size in zip(_STARTS, _SIZES, strict=True)),
        )

    def num_codes(self, num_samples: int) -> int:
        """Four codes for each 160 samples begun: the last frame is filled with silence."""
        return len(BITS) * -(-num_samples // FRAME_SAMPLES)

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        return [self._encode(waveform) for waveform in waveforms]

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        return [self._decode(clip) for clip in codes]

    def open_stream(self) -> Codec2Stream:
        """A clip decoded frame by frame, to the very samples of :meth:`decode`.

        Raises:
            UserError: the folder for temporary files cannot hold a library.
        """
        return Codec2Stream(self._library)

    def _encode(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] → uint16 [4 * frames]."""
        pcm = np.clip(np.rint(waveform * 32767.0), -32768, 32767).astype(np.int16)
        pcm = np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
        frames = np.zeros((len(pcm), FRAME_BYTES), dtype=np.uint8)
        with _fresh_coder(self._library) as (library, coder):
            for source, target in zip(pcm, frames, strict=True):
                library.codec2_encode(coder, target.ctypes.data, source.ctypes.data)
        words = frames.astype(np.int64) @ _BYTE_WEIGHTS
        return ((words[:, None] >> _SHIFTS) % _SIZES + _STARTS).astype(np.uint16).reshape(-1)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        """uint16 [4 * frames] → float32 [160 * frames]."""
        frames = _frames(codes)
        with _fresh_coder(self._library) as (library, coder):
            return _samples(library, coder, frames)


class Codec2Stream:
    """A coder that stays open between the pieces of a clip; implements :class:`llasa.codec.base.StreamDecoder`.

    The coder lives in a copy of the library of its own, so the generator that is static in the library (see
    :func:`_fresh_coder`) serves this stream alone: any number of streams and whole clips may be under way at once.
    A stream that is dropped before its end frees both.

    Cost: 2 ms and 2.4 MB to open; every whole frame pushed is decoded at once.
    """

    def __init__(self, path: str) -> None:
        self._library = _own_library(path)
        self._coder = self._library.codec2_create(MODE_2400)
        self._rest = np.zeros(0, dtype=np.int64)
        self._close = weakref.finalize(self, _close, self._library, self._coder)

    def push(self, codes: np.ndarray) -> np.ndarray:
        assert self._close.alive, "the stream is finished"
        pending = np.concatenate([self._rest, np.asarray(codes, dtype=np.int64)])
        whole = len(pending) - len(pending) % len(BITS)
        frames, self._rest = _frames(pending[:whole]), pending[whole:]
        return _samples(self._library, self._coder, frames)

    def finish(self) -> np.ndarray:
        """Nothing is left to come but an error: the coder has no delay."""
        self._close()
        _frames(self._rest)
        return np.zeros(0, dtype=np.float32)


def _frames(codes: np.ndarray) -> np.ndarray:
    """Codes [4 * frames] → the coder's bytes, uint8 [frames, 6]; raises ValueError as ``decode``."""
    if len(codes) % len(BITS):
        raise ValueError(f"{len(codes)} codes are no whole number of frames of {len(BITS)}")
    parts = np.asarray(codes, dtype=np.int64).reshape(-1, len(BITS)) - _STARTS
    if ((parts < 0) | (parts >= _SIZES)).any():
        raise ValueError("a code stands outside the range of its place in the frame")
    words = (parts << _SHIFTS).sum(axis=1)
    return (words[:, None] // _BYTE_WEIGHTS % 256).astype(np.uint8)


def _samples(library: ctypes.CDLL, coder: int, frames: np.ndarray) -> np.ndarray:
    """The coder's bytes [frames, 6] → float32 [160 * frames]."""
    pcm = np.zeros((len(frames), FRAME_SAMPLES), dtype=np.int16)
    for source, target in zip(frames, pcm, strict=True):
        library.codec2_decode(coder, target.ctypes.data, source.ctypes.data)
    return pcm.reshape(-1).astype(np.float32) / 32768.0


@contextmanager
def _fresh_coder(path: str) -> Iterator[tuple[ctypes.CDLL, int]]:
    """A coder of a library that was loaded for it alone.

    libcodec2 draws the phases of unvoiced frames from a generator that is static in the library, has no seed and
    runs on from clip to clip. Loading the library for each clip (0.1 ms) starts it anew, so a clip's waveform never
    depends on what was decoded before. The Python module pycodec2 must not be imported: it would keep the library
    loaded.
    """
    if "pycodec2" in sys.modules:
        raise RuntimeError(
            "pycodec2 is imported: Codec2's generator cannot be started anew, decoding is not repeatable"
        )
    with _LIBRARY_LOCK:
        library = _load(path)
        coder = library.codec2_create(MODE_2400)
        try:
            yield library, coder
        finally:
            _close(library, coder)


def _load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.codec2_create.restype = ctypes.c_void_p
    library.codec2_create.argtypes = [ctypes.c_int]
    library.codec2_destroy.argtypes = [ctypes.c_void_p]
    library.codec2_encode.argtypes = library.codec2_decode.argtypes = [ctypes.c_void_p] * 3
    return library


def _own_library(path: str) -> ctypes.CDLL:
    """The library once more, from a copy: a file that is open already would only be counted.

    The copy's name is gone when this returns, so nothing is left behind, however the process ends.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="codec2-") as folder:
            return _load(shutil.copyfile(path, str(Path(folder) / "libcodec2")))
    except OSError as error:
        raise UserError(
            f"Codec2 cannot open a stream, for which its library is copied: {first_line(error)}",
            remedy="set TMPDIR to a folder with 3 MB left from which libraries may be loaded",
        ) from error


def _close(library: ctypes.CDLL, coder: int) -> None:
    library.codec2_destroy(coder)
    _ctypes.dlclose(library._handle)


def _library_path() -> str:
    """The shared library inside the package pycodec2 (`pycodec2.libs` on Linux, `.dylibs` on macOS)."""
    found = [file for file in files("pycodec2") or () if file.name.startswith("libcodec2")]
    if not found:
        raise UserError("the package pycodec2 has no libcodec2 here", remedy="use Linux or macOS, or another codec")
    return str(found[0].locate())
