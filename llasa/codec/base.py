"""The codec protocol: waveforms to codes and back.

Codes of all codecs are flat integers in [0, codebook_size). A codec that emits several sub-codes a frame
(Codec2) gives each its own range, in a fixed order; ``code_ranges`` states that order so that generation
can never produce a code in the wrong place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class CodecSpec:
    """What the rest of the system needs to know of a codec; stored with every store and checkpoint."""

    name: str
    fingerprint: str
    sample_rate: int
    tokens_per_second: float
    codebook_size: int
    code_ranges: tuple[tuple[int, int], ...]
    """Half-open ranges of the codes of one frame, in order; they repeat frame after frame."""
    checkpoint: str = ""
    """The weights it was built from (hub name or folder), empty where the codec has none."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"code_ranges": [list(r) for r in self.code_ranges]}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CodecSpec:
        return cls(**{**fields, "code_ranges": tuple((int(a), int(b)) for a, b in fields["code_ranges"])})

    @property
    def codes_per_frame(self) -> int:
        return len(self.code_ranges)

    @property
    def code_dtype(self) -> type[np.unsignedinteger]:
        return np.uint16 if self.codebook_size <= 1 << 16 else np.uint32


def code_problem(codes: np.ndarray, spec: CodecSpec) -> str:
    """What makes ``codes`` [num_codes] impossible for a codec; empty for codes that could be its own."""
    places = spec.codes_per_frame
    if len(codes) == 0 or len(codes) % places:
        return f"{len(codes)} codes are no whole number of frames of {places}"
    starts, ends = np.array(spec.code_ranges).T
    frames = codes.astype(np.int64).reshape(-1, places)
    outside = (frames < starts) | (frames >= ends)
    if not outside.any():
        return ""
    frame, place = np.argwhere(outside)[0]
    return f"code {frames[frame, place]} stands where {starts[place]} to {ends[place] - 1} belong"


def checked_codes(index: int, codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """The codes of a clip for a codec of one codebook, int64 [num_codes].

    Raises:
        ValueError: they are not one-dimensional integers in [0, codebook_size).
    """
    codes = np.asarray(codes)
    if codes.ndim != 1 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes {index} are {codes.dtype} {codes.shape}, expected integers [num_codes]")
    if len(codes) and (codes.min() < 0 or codes.max() >= codebook_size):
        raise ValueError(f"codes {index} span {codes.min()} to {codes.max()}, expected 0 to {codebook_size - 1}")
    return codes.astype(np.int64)


def check_waveforms(waveforms: list[np.ndarray]) -> None:
    """Raises ValueError for one that is not one-dimensional."""
    for index, waveform in enumerate(waveforms):
        if waveform.ndim != 1:
            raise ValueError(f"waveform {index} has shape {waveform.shape}, expected [samples]")


class Codec(Protocol):
    """Turns clips into codes and codes into clips; a list in, a list of the same order out.

    Implementations may batch as they like, but a clip's result never depends on its neighbours.
    """

    spec: CodecSpec

    def num_codes(self, num_samples: int) -> int:
        """Number of codes that a clip of ``num_samples`` samples (at ``spec.sample_rate``) becomes."""
        ...

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """float32 [samples] each → codes [num_codes] each, dtype ``spec.code_dtype``."""
        ...

    def encoding_facts(self) -> dict[str, Any]:
        """What besides ``spec`` decides the codes, such as ``{"precision": "bf16"}``; part of a store's identity.

        Not of ``spec.fingerprint``, which names the weights: codes of either precision are decoded alike. Empty for a
        codec of one arithmetic.
        """
        return {}

    def agreement(self, waveforms: list[np.ndarray]) -> dict[str, Any]:
        """How far the codes of given clips are those of exact arithmetic, for a store's provenance; {} if they are."""
        return {}

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """codes [num_codes] each → float32 [samples] each at ``spec.sample_rate``.

        Raises:
            ValueError: a code outside its range, or a number of codes that is no whole number of frames.
        """
        ...


class StreamDecoder(Protocol):
    """Decodes one clip while its codes still come. The pieces, joined, are as long as :meth:`Codec.decode` makes it.

    Which samples a piece holds depends on the codes alone, not on how they were divided. One thread at a time.
    """

    def push(self, codes: np.ndarray) -> np.ndarray:
        """The next codes [num_codes >= 0] → the samples that are certain now, float32 [samples >= 0].

        Raises:
            ValueError: as :meth:`Codec.decode`, maybe only later.
        """
        ...

    def finish(self) -> np.ndarray:
        """The rest, float32 [samples >= 0]. Nothing may be pushed afterwards.

        Raises:
            ValueError: the clip did not end with a whole frame.
        """
        ...


@runtime_checkable
class StreamingCodec(Protocol):
    """A codec whose decoder only looks back: it decodes a stream by itself, to the very samples of ``decode``."""

    def open_stream(self) -> StreamDecoder: ...
