"""What a run says while it goes on: `metrics.jsonl` always, Weights & Biases or TensorBoard as configured.

    Tracker.log, .log_media, .log_artifact ─► metrics_file.py   RUN/metrics.jsonl
                                           ─► wandb_run.py      RUN/wandb, RUN/wandb_id
                                           ─► tensorboard.py    RUN/tensorboard

Light to import: a service's package is imported when a run asks for it.
"""

from llasa.tracking.metrics_file import METRICS, last_value, read_metrics
from llasa.tracking.tracker import Tracker

__all__ = ["METRICS", "Tracker", "last_value", "read_metrics"]
