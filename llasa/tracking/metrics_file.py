"""`metrics.jsonl`: one JSON object a line, each with a `step`, on disk before the next step.

Several lines may have the same step (training, held-out speech, samples), each with keys of its own.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from llasa.provenance import write_atomically

METRICS = "metrics.jsonl"


class MetricsFile:
    """Appends lines. A full disk costs lines at most, never the run: what could not be written is tried again.

    Args:
        start_step: lines of later steps, which an interrupted run left, are dropped; 0 = begin anew.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        _keep_steps(path, start_step)
        # Unbuffered: what a buffer does after a failed write is not ours to know.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for the whole run
        self._waiting = b""
        self._warned = False

    def write(self, row: dict[str, Any]) -> None:
        self._waiting += json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]
        except OSError as error:
            if not self._warned:
                print(f"warning: {self.path} cannot be written, training goes on: {error}", file=sys.stderr)
            self._warned = True

    def close(self) -> None:
        try:
            if self._waiting:
                self._file.write(self._waiting)
            self._file.close()
        except OSError as error:
            print(f"warning: the last lines of {self.path} are lost: {error}", file=sys.stderr)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics in order; none without a file. A line that a crash cut off is left out."""
    path = folder / METRICS
    if not path.is_file():
        return []
    return [row for _, row in _rows(path)]


def last_value(folder: Path, key: str) -> float:
    """The last value of a metric, nan if it was never logged (or was no number then)."""
    values = [row[key] for row in read_metrics(folder) if key in row]
    return float(values[-1]) if values and values[-1] is not None else math.nan


def _keep_steps(path: Path, last: int) -> None:
    """Drop the lines after step ``last`` and one that was cut off by a crash; the others keep their bytes."""
    if path.is_file():
        kept = [line + "\n" for line, row in _rows(path) if last and row["step"] <= last]
        write_atomically(path, "".join(kept).encode())


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    # Not splitlines: it also splits at separators that JSON leaves inside a string.
    for line in path.read_bytes().decode(errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            rows.append((line, row))
    return rows
