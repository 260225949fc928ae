"""The value types that pass between rooms, in the order of the flow.

Utterance ─codec─► EncodedUtterance ─prompt─► Example ─packing─► PackedBatch ─model─► … ─► Speech
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class Utterance:
    """A recorded sentence, ready for the codec.

    ``waveform`` is float32, mono, shape [samples], in [-1, 1], at ``sample_rate`` Hz. ``text`` is the
    spoken form that the model reads, ``text_given`` the transcript as the corpus had it.
    """

    id: str
    text: str
    text_given: str
    waveform: np.ndarray
    sample_rate: int
    speaker: str
    language: str

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.sample_rate


@dataclass(slots=True)
class EncodedUtterance:
    """An utterance as codec codes: one row of a token store.

    ``codes`` has shape [num_codes]; uint16 where the codebook fits, else uint32.
    """

    id: str
    text: str
    text_given: str
    speaker: str
    language: str
    seconds: float
    codes: np.ndarray


@dataclass(slots=True)
class Example:
    """One training sequence. Both arrays are int64, shape [length]; labels are -100 where not supervised."""

    input_ids: np.ndarray
    labels: np.ndarray


class PackedBatch(TypedDict):
    """Rows of packed examples, each tensor int64 of shape [rows, max_length].

    ``position_ids`` restart at 0 at every example; that alone separates the examples.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor


@dataclass(slots=True)
class Speech:
    """A synthesised utterance.

    ``waveform`` float32 [samples] at ``sample_rate`` Hz, ``codes`` [num_codes] that it was decoded from,
    ``finish_reason`` "stop" (the model ended the sentence), "length" (a limit did) or "loop" (it only repeated itself),
    ``seconds`` of audio.
    """

    waveform: np.ndarray
    sample_rate: int
    codes: np.ndarray
    finish_reason: str
    seconds: float
