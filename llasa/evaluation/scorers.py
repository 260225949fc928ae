"""What :mod:`llasa.evaluation` measures, as scorers of a search: likeness to a voice, and DNSMOS.

A search that was led by one of them is to be reported with another: what was selected for always looks better.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llasa.audio import decode_audio
from llasa.errors import RejectedRow, UserError
from llasa.evaluation.dnsmos import Dnsmos
from llasa.evaluation.similarity import SpeakerEncoder, similarity
from llasa.generation.scoring import Candidate


class SpeakerSimilarity:
    """Cosine of the speaker embeddings of a candidate and a recording; below a second of speech it says little.

    Args:
        model: see :class:`llasa.evaluation.similarity.SpeakerEncoder`.
        recording: a file with the speaker; none = the voice that the search was given, as the codec renders it.

    Raises:
        UserError: a package or the model is missing, or the recording cannot be read.
    """

    name, judges_unfinished = "similarity", True

    def __init__(self, model: str = "resemblyzer", recording: str | None = None, device: str = "auto") -> None:
        self._encoder = SpeakerEncoder(model, device)
        self._fixed: np.ndarray | None = None
        self._voice: tuple[np.ndarray, np.ndarray] | None = None
        if recording is not None:
            try:
                self._fixed = self._encoder.embed(*decode_audio(Path(recording)))
            except RejectedRow as reason:
                raise UserError(
                    f"recording={recording} cannot be used ({reason})", remedy="pass a readable recording"
                ) from None

    def score(self, candidate: Candidate) -> float:
        """Raises ``UserError`` where there is neither a recording nor a voice."""
        return similarity(self._encoder.embed(candidate.waveform, candidate.sample_rate), self._reference(candidate))

    def _reference(self, candidate: Candidate) -> np.ndarray:
        if self._fixed is not None:
            return self._fixed
        if candidate.voice is None:
            raise UserError(
                "the scorer similarity has no voice to compare with",
                remedy="pass voice=FILE.wav, or the scorer's recording=FILE.wav",
            )
        # All candidates of a search share one array: one embedding serves them.
        known = self._voice
        if known is None or known[0] is not candidate.voice:
            known = candidate.voice, self._encoder.embed(candidate.voice, candidate.sample_rate)
            self._voice = known
        return known[1]


class Mos:
    """DNSMOS's prediction of how listeners would rate the sound, 1 to 5. It hears noise, not words.

    Cost: 0.4 to 3 s a candidate on one core.

    Args:
        kind: ovrl, sig, bak or p808.
    """

    name, judges_unfinished = "dnsmos", True

    def __init__(self, kind: str = "ovrl", threads: int | None = None) -> None:
        from llasa.config.validation import require_choice

        require_choice("scorers.dnsmos.kind", kind, ("ovrl", "sig", "bak", "p808"))
        self._kind, self._judge = kind, Dnsmos(threads)

    def score(self, candidate: Candidate) -> float:
        return self._judge.score(candidate.waveform, candidate.sample_rate)[self._kind]
