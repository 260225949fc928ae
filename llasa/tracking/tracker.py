"""One place to report to, whatever listens.

The JSON lines are on disk before a service is told anything, and a service that fails while training (the network
dies, a disk is full) is switched off with a warning: it never ends a run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasa.config import LoggerConfig
from llasa.tracking.metrics_file import METRICS, MetricsFile, read_metrics
from llasa.tracking.tensorboard import TensorBoardRun
from llasa.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    import numpy as np


class Tracker:
    """Writes one JSON object per line, and the same values to the configured service.

    Args:
        folder: the run folder; what :func:`llasa.provenance.write_run_record` left there goes to W&B too.
        config: the resolved config, for the service.
        start_step: a resumed run's first step is the one after; later lines of the interrupted run are dropped,
            and W&B goes on with the same run.
    """

    def __init__(self, folder: Path, logger: LoggerConfig, config: dict[str, Any], *, start_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        self._artifacts = logger.artifacts
        self._file = MetricsFile(self.path, start_step)
        self._service: WandbRun | TensorBoardRun | None = None
        try:
            if logger.name == "wandb":
                self._service = WandbRun(folder, logger, config, read_metrics(folder), resumed=start_step > 0)
            elif logger.name == "tensorboard":
                self._service = TensorBoardRun(folder, start_step)
        except Exception as error:  # as in _tell; a name that W&B refuses must not cost the run either
            print(f"warning: logger={logger.name} cannot be used and is switched off: {error}", file=sys.stderr)

    def log(self, metrics: Mapping[str, float | int | None]) -> None:
        """Record metrics; `step` is among them. What is not finite becomes null (JSON has no NaN), and no service
        hears of it."""
        row = {key: _finite(value) for key, value in metrics.items()}
        self._file.write(row)
        step = row["step"]
        assert step is not None, "a step that is no number"
        values = {key: value for key, value in row.items() if key != "step" and value is not None}
        self._tell(lambda service: service.log(values, int(step)))

    def log_media(
        self,
        step: int,
        audio: Mapping[str, tuple[np.ndarray, int, str]] | None = None,
        images: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Sound and pictures, for services only.

        Args:
            audio: by key: waveform float32 [samples], sample rate, caption.
            images: by key: uint8 [height, width, 3].
        """
        if audio or images:
            # A sound that a service refuses says nothing of its numbers: it stays on.
            self._tell(lambda service: service.log_media(audio or {}, images or {}, step), keep=True)

    def log_artifact(self, folder: Path, kind: str) -> None:
        """Upload a folder to W&B if `logger.artifacts` asks for it. It must stay as it is until then.

        Args:
            kind: of W&B's types of artifacts, such as `model`.
        """
        if self._artifacts and folder.is_dir():
            self._tell(lambda service: service.log_artifact(folder, kind), keep=True)

    def close(self, failed: bool = False) -> None:
        """Write what is left. Bounded in time: see :data:`llasa.tracking.wandb_run.FINISH_SECONDS`."""
        self._file.close()
        self._tell(lambda service: service.close(failed))

    def _tell(self, call: Callable[[Any], None], keep: bool = False) -> None:
        if self._service is None:
            return
        try:
            call(self._service)
        except Exception as error:  # a service has many ways to fail, and none may end the training
            off = "" if keep else " and is switched off"
            print(f"warning: {self._service.name} failed{off}: {error}", file=sys.stderr)
            if not keep:
                self._service = None


def _finite(value: Any) -> float | int | None:
    """A number of Python's, from one of NumPy or torch too, which JSON refuses."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(value)
