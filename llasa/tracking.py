"""Metrics of a run: `metrics.jsonl` always, Weights & Biases or TensorBoard as configured.

A tracker that fails (no network, a full disk at W&B) must not end a training run, so W&B works offline when there
is no key and the JSON lines are on disk before anything else is told.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llasa.config import LoggerConfig

METRICS = "metrics.jsonl"


class Tracker:
    """Writes one JSON object per line, and the same values to the configured service.

    Args:
        folder: the run folder. config: the resolved config, for the service.
        start_step: a resumed run's first step is the one after; later lines of the interrupted run are dropped.
    """

    def __init__(self, folder: Path, logger: LoggerConfig, config: dict[str, Any], *, start_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        _keep_steps(self.path, start_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self._wandb: Any = None
        self._tensorboard: Any = None
        if logger.name == "wandb":
            self._wandb = _start_wandb(folder, logger, config)
        elif logger.name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"))

    def log(self, metrics: dict[str, float | int]) -> None:
        """Record metrics; `step` is among them."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        values = {key: value for key, value in metrics.items() if key != "step"}
        if self._wandb is not None:
            self._wandb.log(values, step=int(metrics["step"]))
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, int(metrics["step"]))

    def close(self, failed: bool = False) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=1 if failed else 0)
        if self._tensorboard is not None:
            self._tensorboard.close()


def _keep_steps(path: Path, last: int) -> None:
    """Drop the lines after step ``last`` and one that was cut off by a crash."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    path.write_text("".join(kept), encoding="utf-8")


def _start_wandb(folder: Path, logger: LoggerConfig, config: dict[str, Any]) -> Any:
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    return wandb.init(
        project=logger.project,
        name=logger.run_name or folder.name,
        group=logger.group,
        dir=str(folder),
        config=config,
        mode=mode,
        settings=wandb.Settings(silent=True),
    )
