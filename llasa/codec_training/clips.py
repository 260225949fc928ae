"""Clips of a fixed length out of recordings, each a function of (seed, step, its number in the step) alone.

So a resumed run, and several processes that share a step, need no state and replay nothing. A moment of speech is
drawn, not a recording: long recordings come as often as they are long. A recording that is shorter than a clip lies
somewhere in it, between zeros.

Cost: about 0.1 ms a clip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from llasa.codec_training.recordings import Recording, Recordings
from llasa.config import RecordingsConfig
from llasa.errors import UserError

TRIES = 20
"""Draws before a clip is taken although it is silent."""
PEAK = 0.99
"""That no clip is made louder than."""


class Clips:
    """Args:
    rows: the recordings to draw from.
    clip_samples: length of a clip.

    Raises:
        UserError: every recording is shorter than a clip.
    """

    def __init__(
        self, recordings: Recordings, rows: Sequence[Recording], config: RecordingsConfig, clip_samples: int, seed: int
    ) -> None:
        self.recordings, self.rows, self.clip_samples, self.seed = recordings, rows, clip_samples, seed
        self.gain_db = config.gain_db
        self.min_power = 0.0 if config.min_level is None else 10 ** (config.min_level / 10)
        lengths = np.array([row.length for row in rows])
        longest = lengths.max(initial=0)
        if longest < clip_samples:
            rate = recordings.sample_rate
            raise UserError(
                f"recordings.clip_seconds={clip_samples / rate:g} is more than the longest of the {len(rows):,} "
                f"recordings has, {longest / rate:.2f} s",
                remedy="use shorter clips",
            )
        self._ends = np.cumsum(lengths)
        self.seconds = float(self._ends[-1] / recordings.sample_rate)

    def short_share(self) -> float:
        """Share of the sound that lies in recordings shorter than a clip."""
        lengths = np.diff(self._ends, prepend=0)
        return float(lengths[lengths < self.clip_samples].sum() / self._ends[-1])

    def clip(self, step: int, index: int) -> np.ndarray:
        """Clip ``index`` of step ``step``: float32 [clip_samples]."""
        random = np.random.default_rng([self.seed, step, index])
        clip = np.zeros(self.clip_samples, dtype=np.float32)
        for _ in range(TRIES):
            moment = random.integers(self._ends[-1])
            row = self.rows[int(np.searchsorted(self._ends, moment, side="right"))]
            room = row.length - self.clip_samples
            clip[:] = 0
            if room >= 0:
                clip[:] = self.recordings.waveform(row, int(random.integers(room + 1)), self.clip_samples)
            else:
                before = int(random.integers(1 - room))
                clip[before : before + row.length] = self.recordings.waveform(row)
            if np.dot(clip, clip) >= self.min_power * self.clip_samples:
                break
        gain = 10 ** (random.uniform(self.gain_db[0], self.gain_db[1]) / 20)
        loudest = max(1.0, PEAK / max(float(np.abs(clip).max()), 1e-9))
        return clip * np.float32(min(gain, loudest))

    def batch(self, step: int, indices: Sequence[int]) -> np.ndarray:
        """float32 [len(indices), clip_samples]."""
        return np.stack([self.clip(step, index) for index in indices])


def note_short_recordings(clips: Clips) -> None:
    if (share := clips.short_share()) > 0.5:
        print(
            f"note: {share:.0%} of the sound lies in recordings shorter than recordings.clip_seconds, and is filled up "
            "with zeros",
            file=sys.stderr,
        )
