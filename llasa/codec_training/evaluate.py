"""What the codec makes of recordings it does not learn from: numbers, and sounds to listen to.

    recording ─► codec with the averaged weights, true rounding ─► mel distance, codes ─► metrics.jsonl
                                                              └─► RUN/samples/step-N/*.wav, *.png, W&B

`mel` is the training's multi-scale loss (decades), `mel_db` the distance that proof-reading a store uses
(:mod:`llasa.corpus.acoustics`): Codec2 has 4 to 5 dB there.

Cost: a forward pass of each recording, `MEASURED_SECONDS` of it at most.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm
from transformers import Xcodec2Model

from llasa.audio import write_wav
from llasa.codec.features import KaldiFilterBank
from llasa.codec_training.forward import reconstruct, semantic_features
from llasa.codec_training.heldout import Measured
from llasa.codec_training.losses import SpectralLosses
from llasa.codec_training.recordings import Recording
from llasa.codec_training.usage import code_metrics
from llasa.corpus.acoustics import log_mel, mel_distances
from llasa.errors import first_line
from llasa.pictures import mel_picture, png_bytes
from llasa.tracking import Tracker

FOLDER = "samples"
ORIGINAL = "original"
MEASURED_SECONDS = 10.0


class Measurement:
    """Args:
    measured: recordings by the name under which they are measured.
    heard: of each, so many are written and logged.
    """

    def __init__(
        self,
        measured: dict[str, Measured],
        heard: int,
        filter_bank: KaldiFilterBank,
        spectral: SpectralLosses,
        run: Path,
        tracker: Tracker,
    ) -> None:
        self.measured, self.heard = measured, heard
        self.rate = next(iter(measured.values())).recordings.sample_rate
        self.filter_bank, self.spectral = filter_bank, spectral
        self.folder, self.tracker = run / FOLDER, tracker

    def __call__(self, model: Xcodec2Model, step: int, device: str) -> dict[str, float]:
        """Measure and log ``model``, which is in eval mode with the weights that count."""
        metrics: dict[str, float] = {"step": step}
        sounds: dict[str, tuple[np.ndarray, str]] = {}
        for name, part in self.measured.items():
            distances, decibels, codes = [], [], []
            for number, row in enumerate(part.rows):
                original = self._waveform(part, row)
                estimate, distance, found = self._through(model, original, device)
                distances.append(distance)
                decibels.append(mel_distance_db(estimate, original, self.rate))
                codes.append(found)
                if number < self.heard:
                    sounds[f"{name}/{number + 1:02d}"] = (estimate, row.id)
            metrics |= {f"{name}/mel": round(float(np.mean(distances)), 5)}
            metrics |= {f"{name}/mel_db": round(float(np.mean(decibels)), 4)}
            metrics |= {f"{name}/{key}": value for key, value in code_metrics(np.concatenate(codes)).items()}
        self.tracker.log(metrics)
        if not (self.folder / ORIGINAL).exists():
            originals = {
                f"{name}/{number + 1:02d}": (self._waveform(part, row), row.id)
                for name, part in self.measured.items()
                for number, row in enumerate(part.rows[: self.heard])
            }
            self._record(originals, ORIGINAL, step)
        self._record(sounds, f"step-{step:06d}", step)
        return metrics

    def _waveform(self, part: Measured, row: Recording) -> np.ndarray:
        return part.recordings.waveform(row, 0, round(MEASURED_SECONDS * self.rate))

    @torch.inference_mode()
    def _through(self, model: Xcodec2Model, original: np.ndarray, device: str) -> tuple[np.ndarray, float, np.ndarray]:
        """float32 [samples] → what the codec makes of it, the mel loss, its codes."""
        waveforms = torch.from_numpy(original)[None].to(device)
        result = reconstruct(model, waveforms, semantic_features(model, self.filter_bank, waveforms))
        distance = float(self.spectral(result.waveforms, waveforms)["mel"])
        return result.waveforms[0].cpu().numpy(), distance, result.codes[0].cpu().numpy()

    def _record(self, sounds: dict[str, tuple[np.ndarray, str]], folder: str, step: int) -> None:
        """Files, whatever the logger is, and what the tracker gets. A full disk costs these files alone."""
        if not sounds:
            return
        rate = self.rate
        pictures = {name: mel_picture(waveform, rate) for name, (waveform, _) in sounds.items()}
        try:
            for name, (waveform, row_id) in sounds.items():
                label = re.sub(r"[^\w-]+", "_", row_id)[-60:]
                path = self.folder / folder / f"{name.replace('/', '-')}-{label}.wav"
                write_wav(path, waveform, rate)
                path.with_suffix(".png").write_bytes(png_bytes(pictures[name]))
        except (OSError, soundfile.SoundFileError) as error:
            tqdm.write(f"warning: the samples of step {step} cannot be written ({first_line(error)})", file=sys.stderr)
        prefix = FOLDER if folder != ORIGINAL else f"{FOLDER}/{ORIGINAL}"
        self.tracker.log_media(
            step,
            audio={f"{prefix}/{name}": (waveform, rate, row_id) for name, (waveform, row_id) in sounds.items()},
            images={f"{prefix}/{name}/mel": picture for name, picture in pictures.items()},
        )


def mel_distance_db(estimate: np.ndarray, original: np.ndarray, sample_rate: int) -> float:
    """dB between two waveforms float32 [samples] of one length, each relative to its own loudness."""
    return float(mel_distances(log_mel(estimate, sample_rate), log_mel(original, sample_rate), range(1))[0])
