"""TensorBoard: event files in RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class TensorBoardRun:
    """Event files of a run; those of an interrupted one stay, and readers skip what it wrote after ``start_step``."""

    name = "TensorBoard"

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # The mark tells readers to forget everything from this step on; a run that begins anew has no past.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else 0)

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def log_media(
        self, audio: Mapping[str, tuple[np.ndarray, int, str]], images: Mapping[str, np.ndarray], step: int
    ) -> None:
        for key, (waveform, sample_rate, caption) in audio.items():
            self._writer.add_audio(key, waveform[None], step, sample_rate)
            self._writer.add_text(f"{key}/text", caption, step)
        for key, picture in images.items():
            self._writer.add_image(key, picture, step, dataformats="HWC")
        self._writer.flush()

    def log_artifact(self, folder: Path, kind: str) -> None:
        """TensorBoard has no place for files."""

    def close(self, failed: bool) -> None:
        self._writer.close()
