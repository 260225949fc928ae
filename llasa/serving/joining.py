"""Chunks of a long text, joined while they still come: silence at their ends cut, pauses between them.

    pieces of a chunk ─push─► all but its quiet end ─ … ─end─► the end, cut and faded
    pieces of the next ─push─► pause, the chunk without its quiet beginning

What :func:`llasa.generation.longform.shaped` and ``join_speech`` do to whole chunks. The one difference: how loud a
text is spoken is known only so far, so what is silent is measured by the loudest 20 ms until then. Nothing that is
heard is held back longer than ``FADE_SECONDS``. The first chunk begins as it is.
"""

from __future__ import annotations

import numpy as np

from llasa.generation.longform import EDGE_SECONDS, FADE_SECONDS, SILENT_DB, Pauses
from llasa.text.chunks import Break

FRAME_SECONDS = 0.02


class Joiner:
    """Joins chunks at ``rate`` Hz; how they are divided into pieces does not matter."""

    def __init__(self, rate: int, pauses: Pauses | None = None) -> None:
        self._rate, self._pauses = rate, pauses or Pauses()
        self._frame, self._edge = round(FRAME_SECONDS * rate), round(EDGE_SECONDS * rate)
        self._ramp = (np.sin(np.pi / 2 * np.arange(n := round(FADE_SECONDS * rate)) / n) ** 2).astype(np.float32)
        self._loudest = 0.0
        self._begins = False  # a chunk after the first, of which nothing loud has come yet
        self._pause = 0
        self._silence = 0  # at the end of the chunk before
        self._held = np.zeros(0, np.float32)  # of this chunk, not given out yet
        self._loud = 0  # of what is held, up to the end of the last loud frame
        self._seen = 0  # of what is held, in frames that were looked at

    def push(self, piece: np.ndarray) -> np.ndarray:
        """float32 [samples] of the chunk → those that can be heard now."""
        self._held = np.concatenate([self._held, piece])
        while self._seen + self._frame <= len(self._held):
            frame = self._held[self._seen : self._seen + self._frame]
            power = float(np.square(frame).mean())
            self._loudest = max(self._loudest, power)
            if power > self._loudest * 10 ** (-SILENT_DB / 10):
                if self._begins:
                    self._begin(self._seen)
                self._loud = self._seen + self._frame
            self._seen += self._frame
        return np.zeros(0, np.float32) if self._begins else self._give(self._loud - len(self._ramp))

    def end(self) -> np.ndarray:
        """The rest of the chunk. Of silence ``EDGE_SECONDS`` stay."""
        if self._begins:
            self._begin(len(self._held))
        tail = self._held[: self._loud + self._edge] if self._seen else self._held
        self._silence = max(0, len(tail) - self._loud)
        fade = min(len(self._ramp), len(tail))
        tail[len(tail) - fade :] *= self._ramp[:fade][::-1]
        self._held, self._loud, self._seen = np.zeros(0, np.float32), 0, 0
        return tail

    def next_chunk(self, before: Break) -> None:
        """A chunk begins, parted in this way from the one before it."""
        self._begins, self._pause = True, round(self._pauses.seconds(before) * self._rate)

    def _begin(self, loud: int) -> None:
        """Of the quiet beginning, up to ``loud``, ``EDGE_SECONDS`` stay, and count as pause."""
        kept = min(loud, self._edge)
        chunk = self._held[loud - kept :]
        fade = min(len(self._ramp), len(chunk))
        chunk[:fade] *= self._ramp[:fade]
        pause = np.zeros(max(0, self._pause - self._silence - kept), np.float32)
        self._held = np.concatenate([pause, chunk])
        self._seen += len(self._held) - len(chunk) - (loud - kept)
        self._loud, self._begins = len(pause), False

    def _give(self, count: int) -> np.ndarray:
        count = max(0, count)
        given, self._held = self._held[:count], self._held[count:].copy()
        self._loud, self._seen = self._loud - count, self._seen - count
        return given
