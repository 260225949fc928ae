"""Waveform in pieces, while the codes still come.

    codes, as they are generated ─push─► windows ─codec.decode─► cross-fade ─► float32 pieces, ready to play

Two ways, by codec; the pieces joined always have exactly the length of ``codec.decode`` of all the codes.

- A codec that only looks back (Codec2) has a stream of its own, which equals the offline waveform bit for bit and
  gives every frame at once.
- Any other is decoded in windows: a chunk, with codes before it (context) and after it (look-ahead). Where two
  windows meet, the one fades into the other.

      window 2   |········context········|===chunk===|·look-ahead·|
      window 3          |········context········|=====chunk=====|·look-ahead·|
      pieces                             |-----2-----|------3------|     the first samples of 3 fade from 2 to 3

**How far windows are from offline** (XCodec2). Its decoder attends to the whole clip, without positions, and its
group norms average over the whole clip, so a waveform that begins before the clip ends cannot be exact: what is
missing is mostly the future, and most at the beginning. Measured on Italian speech with the defaults below and random
weights (64 to the published decoder's 1024 channels, 2 to its 12 layers): of 10 s, a signal 19 to 27 dB above the
difference, 8 to 20 dB in the first 0.4 s, 42 dB and more after 6 s, and 0.5 to 1.1 dB of log-spectral distance; of
28 s, 18 to 22 dB, and 1.1 to 1.6 dB. The tests hold small models to 16 dB and 1.5 dB on 10 s. **The published weights
were not measured.** A clip that ends with the first window (1 s) or before is exact.

How it falls, for 12 layers of 256 channels on 28 s, the other length as by default:

| context, s | whole clip | cost | look-ahead, s | whole clip | first 0.4 s |
|---|---|---|---|---|---|
| 0 | 17.3 dB | 1.2 | 0.04 | 20.1 dB | 8 dB |
| 1 | 19.1 dB | 1.5 | 0.1 | 20.5 dB | 9 dB |
| 4 | 20.9 dB | 2.2 | 0.3 | 21.1 dB | 10 dB |
| 8 | 22.3 dB | 3.0 | 0.6 | 22.3 dB | 15 dB |
| all | 23.8 dB | 4.8 | 1.0 | 22.3 dB | 14 dB |

The first piece asks for 1 s of codes, a tenth of a sentence of 10 s. Chunks double from 0.4 to 4 s, so playing never
waits if codes come twice as fast as they are played; where they come barely in time, let ``chunk_seconds`` equal
``first_seconds``. Cost in frames decoded, offline being 1: 2.3 for 10 s, 3.2 at most. Memory: one window.
"""

from __future__ import annotations

import numpy as np

from llasa.codec.base import Codec, StreamDecoder, StreamingCodec
from llasa.config import require

FIRST_SECONDS = 0.4
CHUNK_SECONDS = 4.0
CONTEXT_SECONDS = 8.0
LOOKAHEAD_SECONDS = 0.6
"""More than the 0.26 s (13 frames) that XCodec2's convolutions and inverse STFT reach to the side, so that the end of
a window is not heard; the rest is for the statistics of the first piece."""
CROSSFADE_SECONDS = 0.04


def open_stream(codec: Codec) -> StreamDecoder:
    """A decoder for the codes of one clip as they come: the codec's own, or else a :class:`WindowedDecoder`."""
    return codec.open_stream() if isinstance(codec, StreamingCodec) else WindowedDecoder(codec)


class WindowedDecoder:
    """Streams any codec that gives a fixed number of samples for each frame; see this module.

    Args:
        first_seconds: of the first piece. It comes when so much and the look-ahead are there.
        chunk_seconds: of a piece at most; each is twice as long as the one before.
        context_seconds: that a window has before its chunk, where the clip has so much.
        lookahead_seconds: that it has after it.
        crossfade_seconds: at the beginning of a chunk, from the window before into this one.

    Raises:
        UserError: a length below 0, or a cross-fade longer than the first chunk or the look-ahead.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        first_seconds: float = FIRST_SECONDS,
        chunk_seconds: float = CHUNK_SECONDS,
        context_seconds: float = CONTEXT_SECONDS,
        lookahead_seconds: float = LOOKAHEAD_SECONDS,
        crossfade_seconds: float = CROSSFADE_SECONDS,
    ) -> None:
        remedy = "use a number of seconds, 0 or more"
        require(0 <= first_seconds < np.inf, "first_seconds", first_seconds, remedy)
        require(0 <= context_seconds < np.inf, "context_seconds", context_seconds, remedy)
        require(0 <= lookahead_seconds < np.inf, "lookahead_seconds", lookahead_seconds, remedy)
        require(first_seconds <= chunk_seconds < np.inf, "chunk_seconds", chunk_seconds, "use first_seconds or more")

        spec = codec.spec
        self._codec, self._frame = codec, spec.codes_per_frame
        rate = spec.tokens_per_second / self._frame  # frames a second
        self._hop = round(spec.sample_rate / rate)  # samples a frame
        self._size, self._chunk = max(1, round(first_seconds * rate)), max(1, round(chunk_seconds * rate))
        self._context, self._lookahead = round(context_seconds * rate), round(lookahead_seconds * rate)
        fade = round(crossfade_seconds * spec.sample_rate)
        require(
            0 <= fade <= min(self._size, self._lookahead) * self._hop,
            "crossfade_seconds",
            crossfade_seconds,
            "use 0 or more, and no more than first_seconds and lookahead_seconds",
        )
        # Of amplitudes, not of power: both windows hold nearly the same samples.
        self._ramp = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / max(1, fade)).astype(np.float32) ** 2
        self._codes = np.zeros(0, dtype=np.int64)  # from the next window's context on
        self._start = 0  # their first frame
        self._done = 0  # the next piece's first frame
        self._held = np.zeros(0, dtype=np.float32)  # from there on, as the last window had it: it fades out
        self._finished = False

    def push(self, codes: np.ndarray) -> np.ndarray:
        assert not self._finished, "the stream is finished"
        self._codes = np.concatenate([self._codes, np.asarray(codes, dtype=np.int64)])
        pieces = [np.zeros(0, dtype=np.float32)]
        while self._start + len(self._codes) // self._frame >= self._done + self._size + self._lookahead:
            pieces.append(self._piece(self._done + self._size))
        return np.concatenate(pieces)

    def finish(self) -> np.ndarray:
        assert not self._finished, "the stream is finished"
        self._finished = True
        return self._piece(None)

    def _piece(self, stop: int | None) -> np.ndarray:
        """float32 samples up to frame ``stop``, or to the end."""
        # Of the look-ahead no more than promised, though more may be there: how codes are divided must not matter.
        end = None if stop is None else (stop + self._lookahead - self._start) * self._frame
        window = self._codec.decode([self._codes[:end]])[0]
        assert len(window) == len(self._codes[:end]) // self._frame * self._hop, "not the same samples for each frame"
        waveform = window[(self._done - self._start) * self._hop :].copy()
        fade = len(self._held)
        waveform[:fade] = self._held + self._ramp[:fade] * (waveform[:fade] - self._held)
        if stop is None:
            return waveform
        length = (stop - self._done) * self._hop
        self._held = waveform[length : length + len(self._ramp)]
        self._done, self._size = stop, min(2 * self._size, self._chunk)
        start = max(0, stop - self._context)
        self._codes, self._start = self._codes[(start - self._start) * self._frame :], start
        return waveform[:length]
