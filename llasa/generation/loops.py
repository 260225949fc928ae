"""Speech that only repeats itself: a model that does not find END says one syllable, or one silence, for ever.

    codes of an utterance, frame by frame ─LoopDetector─► where the repetition begins, or nothing

A loop of period ``p`` is there when the codes of ``loop_seconds`` equal those ``p`` frames before them, of the last
``loop_seconds / AGREEMENT``: sampling puts a wrong code into a loop now and then. Every period is looked for, from one
frame (a held vowel, a silence) to a half of ``loop_seconds``; a phrase longer than that is left to the bounds of
:mod:`llasa.generation.limits`. A pause that a speaker makes is a repetition too, in a codec with one code for silence,
so ``loop_seconds`` is longer than pauses are. What recorded speech does: experiments/speech_bounds.

Cost: about 20 µs a frame; memory some kilobytes for each utterance under way.
"""

from __future__ import annotations

import math

import numpy as np

AGREEMENT = 0.9
"""The share of codes that must be those of one period before."""


class LoopDetector:
    """Watches one utterance.

    Args:
        frame: codes of a frame.
        frames_per_second: of the codec.
        loop_seconds: a repetition is a loop when it has gone on for so long; 0 = never.
    """

    def __init__(self, frame: int, frames_per_second: float, loop_seconds: float) -> None:
        frames = round(loop_seconds * frames_per_second)
        self.frame, self.num_frames = frame, 0
        self._enough = frames * frame
        self._periods = max(1, frames // 2) if frames else 0
        # By period, 1 first: the frames before the next one, and how many codes equalled theirs in the last frames.
        self._before = np.full((self._periods, frame), -1, dtype=np.int64)  # -1 equals no code
        self._equal = np.zeros((math.ceil(frames / AGREEMENT), self._periods), dtype=np.int64)
        self._sums = np.zeros(self._periods, dtype=np.int64)

    def push(self, codes: np.ndarray) -> int | None:
        """Take the next codes [whole frames]; return the index, in the utterance, of the first code that repeats.

        ``codes[:index]`` of the utterance then holds the loop once, its first turn. None while there is no loop.
        Nothing may be pushed after a loop was found.
        """
        assert len(codes) % self.frame == 0, len(codes)
        if not self._periods:
            return None
        for frame in np.asarray(codes, dtype=np.int64).reshape(-1, self.frame):
            place = self.num_frames % len(self._equal)
            equal = np.count_nonzero(self._before == frame, axis=1)
            self._sums += equal - self._equal[place]
            self._equal[place] = equal
            self._before[1:] = self._before[:-1]
            self._before[0] = frame
            self.num_frames += 1
            period = int(self._sums.argmax())  # the shortest of those that agree most
            if self._sums[period] >= self._enough:
                return self._beginning(period)
        return None

    def _beginning(self, period: int) -> int:
        """Where what agrees begins: at the frame from which, less a half of every frame, most codes are equal."""
        latest_first = np.roll(self._equal[:, period], -self.num_frames)[::-1]
        length = int(np.argmax(np.cumsum(latest_first - self.frame / 2))) + 1
        return (self.num_frames - length) * self.frame


def find_loop(codes: np.ndarray, frame: int, frames_per_second: float, loop_seconds: float) -> int | None:
    """The index of the first code [num_codes] that repeats in a loop, see :meth:`LoopDetector.push`."""
    return LoopDetector(frame, frames_per_second, loop_seconds).push(codes[: len(codes) // frame * frame])
