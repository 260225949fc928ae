"""Speech in more or less time at the same pitch, while it is still being spoken.

    float32 pieces ─ffmpeg's atempo─► float32 pieces

WSOLA by PyAV: pieces of a twentieth of a second are laid together where they fit best. Of a tone it keeps pitch and
loudness at every speed. Signalsmith's library (python-stretch 0.3) starts anew with each piece that it is given, so in
a stream the tone breaks where pieces meet. Cost: a five hundredth of the audio's length on a CPU core.
"""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec

import numpy as np

from llasa.errors import UserError

MIN_SPEED, MAX_SPEED = 0.25, 4.0


def available_speeds() -> tuple[float, float] | None:
    """Least and greatest speed; none = PyAV is not installed, and speech has the speed the model gives it."""
    return (MIN_SPEED, MAX_SPEED) if find_spec("av") is not None else None


class Tempo:
    """The result has ``round(samples / speed)`` samples, and comes a twentieth of a second of speech late.

    Raises:
        UserError: PyAV is not installed.
    """

    def __init__(self, sample_rate: int, speed: float) -> None:
        if available_speeds() is None:
            raise UserError("this server cannot change the speed", remedy="leave speed out, or install av on it")
        from av.filter import Graph

        assert MIN_SPEED <= speed <= MAX_SPEED, speed
        self._sample_rate, self._speed = sample_rate, speed
        self._num_in, self._num_out = 0, 0
        self._graph = Graph()
        source = self._graph.add_abuffer(
            sample_rate=sample_rate, format="flt", layout="mono", time_base=Fraction(1, sample_rate)
        )
        # One filter goes from 0.5 on; beyond 2 it would leave samples out instead of blending them.
        steps = [0.5, speed / 0.5] if speed < 0.5 else [2.0, speed / 2.0] if speed > 2 else [speed]
        tempos = [self._graph.add("atempo", f"{step:.9f}") for step in steps]
        self._graph.link_nodes(source, *tempos, self._graph.add("abuffersink")).configure()

    def push(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples >= 0] → the samples that are ready."""
        self._num_in += len(waveform)
        ready = self._through(waveform)
        self._num_out += len(ready)
        return ready

    def finish(self) -> np.ndarray:
        """The rest."""
        length = round(self._num_in / self._speed)
        # The filter drops half a window at the end; behind enough silence that is no speech.
        rest = [self._through(np.zeros(self._sample_rate // 2, dtype=np.float32))]
        self._graph.push(None)
        rest.append(self._pull())
        return np.concatenate(rest)[: max(0, length - self._num_out)]

    def _through(self, waveform: np.ndarray) -> np.ndarray:
        from av import AudioFrame

        if not len(waveform):
            return np.zeros(0, dtype=np.float32)
        frame = AudioFrame.from_ndarray(
            np.ascontiguousarray(waveform[None], dtype=np.float32), format="flt", layout="mono"
        )
        frame.sample_rate = self._sample_rate
        self._graph.push(frame)
        return self._pull()

    def _pull(self) -> np.ndarray:
        from av.error import BlockingIOError, EOFError

        pieces = [np.zeros(0, dtype=np.float32)]
        while True:  # until the filter has no more: it holds a finite number of samples
            try:
                pieces.append(np.asarray(self._graph.pull().to_ndarray(), dtype=np.float32).reshape(-1))
            except (BlockingIOError, EOFError):
                return np.concatenate(pieces)
