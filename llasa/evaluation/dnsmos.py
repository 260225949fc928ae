"""How an utterance would be rated by listeners, as DNSMOS predicts it: 1 (bad) to 5 (excellent).

speechmos carries the models (Reddy et al. 2022, "DNSMOS P.835"): speech quality ``sig``, absence of noise ``bak``,
overall ``ovrl``; and ``p808``, the older single score (Reddy et al. 2021). They were trained on noise suppression, so
they hear noise and artefacts, and know nothing of words, accent or voice. The level counts: a quiet clip has another
``sig`` and ``bak``. Silence gets middling scores.

The models look at windows of 9.01 s, one a second; a shorter clip is doubled until it fills one, then rated in all
that fit. Cost on one core: 0.4 s a window, so 0.4 to 3 s for a clip below 9 s (2.7 s for one of 4.4 s, 0.4 s for
one of 5 s). Resampled to 16 kHz: what was recorded at 8 kHz is rated lower for the missing band.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llasa.audio import resample
from llasa.evaluation import optional_packages

SAMPLE_RATE = 16_000
"""The models'."""

WINDOW_SECONDS = 9.01
"""The models' too."""


class Dnsmos:
    """Scores clip by clip; the same clip has the same scores. Nothing is downloaded.

    Args:
        threads: None takes as many as torch does.

    Raises:
        UserError: speechmos, or onnxruntime or librosa which it uses, is not installed.
    """

    def __init__(self, threads: int | None = None) -> None:
        with optional_packages("DNSMOS"):
            import librosa.feature  # noqa: F401  # lazily loaded by speechmos: a broken install should show here
            import onnxruntime
            from speechmos import dnsmos
        import torch

        folder = Path(dnsmos.__file__).parent / "dnsmos_models"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; it warns of what the models' exporter left in
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # would burn cores between two clips
        primary, p808 = str(folder / "sig_bak_ovr.onnx"), str(folder / "model_v8.onnx")
        self._model = dnsmos.DNSMOS(primary, p808)
        # It takes no options, and would use every core.
        self._model.onnx_sess = onnxruntime.InferenceSession(primary, options)
        self._model.p808_onnx_sess = onnxruntime.InferenceSession(p808, options)

    def score(self, waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
        """float32 [samples] → ``ovrl``, ``sig``, ``bak`` and ``p808``; clipped to full scale, as in a WAV file."""
        samples = np.clip(resample(waveform, sample_rate, SAMPLE_RATE), -1.0, 1.0)
        if len(samples) == 0:  # nothing, doubled, would never fill a window
            samples = np.zeros(round(WINDOW_SECONDS * SAMPLE_RATE), dtype=np.float32)
        scores = self._model(samples, SAMPLE_RATE, is_personalized_MOS=False)
        return {name: float(scores[f"{name}_mos"]) for name in ("ovrl", "sig", "bak", "p808")}
