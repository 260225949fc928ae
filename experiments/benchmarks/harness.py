"""What the benchmarks share: clips of made-up length, sides in turn, peak memory, the command that writes one JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MEAN_SECONDS, SIGMA = 10.0, 0.5


def clip_seconds(count: int, seed: int = 0) -> np.ndarray:
    """Seconds of ``count`` clips: log-normal, mean 10, within the default filters."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(np.log(MEAN_SECONDS) - SIGMA**2 / 2, SIGMA, count), 0.5, 29.0)


def alternate(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median of what each side returns, run in turn so that a slow minute of the machine meets all of them."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, function in sides.items():
            values[name].append(function())
    return {name: statistics.median(measured) for name, measured in values.items()}


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def peak_memory(process: int | str = "self") -> int:
    """Bytes that a process has held at most. Linux; `ru_maxrss` of a child would begin with that of its parent."""
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_a_process(
    function: Callable[..., dict[str, Any]], *arguments: Any, threads: int | None = None
) -> dict[str, Any]:
    """What a function of a benchmark's file returns in a process of its own, whose peak memory is then the call's.

    Its file names it in ``called`` of :func:`run`.
    """
    file = sys.modules[function.__module__].__file__
    command = [sys.executable, str(file), "--call", function.__name__, json.dumps(arguments)]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def lines_of(run: Path) -> list[dict[str, Any]]:
    """What a training run wrote to its metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_tokens(root: Path, spec: Any, text: Callable[[float], str], seconds: np.ndarray) -> Path:
    """A token store of random codes, of one frame's kind, with a text for each clip's seconds."""
    from llasa.corpus.store import plan_shards, write_manifest, write_plan, write_shard
    from llasa.types import EncodedUtterance

    rng = np.random.default_rng(0)
    rows = [
        EncodedUtterance(
            id=str(index),
            text=text(length),
            text_given="",
            speaker="a",
            language="it",
            seconds=float(length),
            codes=rng.integers(0, spec.codebook_size, int(50 * length)).astype(np.uint16),
        )
        for index, length in enumerate(seconds)
    ]
    plan = {"codec": spec.to_dict(), "source": {"name": "benchmark"}}
    write_plan(root, plan)
    shards = plan_shards({"train": len(rows)}, 1000)
    for shard in shards:
        write_shard(root, shard, spec, rows[shard.start : shard.stop], [])
    write_manifest(root, shards, plan, {})
    return root


def machine() -> dict[str, Any]:
    import torch

    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def command_line(doc: str | None, parts: Sequence[Callable[[Any], dict[str, Any]]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the JSON here too, after each part")
    parser.add_argument("--only", nargs="+", choices=[part.__name__ for part in parts])
    parser.add_argument("--minutes", type=float, help="begin no part after so many")
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    return parser


def run(
    arguments: argparse.Namespace,
    parts: Sequence[Callable[[Any], dict[str, Any]]],
    build: Callable[[Path], Any] | None = None,
    called: Sequence[Callable[..., dict[str, Any]]] = (),
    **facts: Any,
) -> None:
    """Measure part after part into one JSON, which with `--only` keeps the others' figures.

    Args:
        build: makes what all parts measure, in a temporary folder; without it each part gets a folder of its own.
        called: functions for :func:`in_a_process`.
        facts: further fields of the JSON.
    """
    from llasa.provenance import git_commit

    if arguments.call:
        name, values = arguments.call
        function = next(function for function in called if function.__name__ == name)
        print(json.dumps(function(*json.loads(values))))
        return
    output = arguments.output
    results = json.loads(output.read_text()) if arguments.only and output and output.is_file() else {}
    results |= {"commit": git_commit(), "machine": machine(), **facts}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llasa-benchmark-") as name:
        folder = Path(name)
        os.environ["LLASA_CACHE"] = str(folder / "cache")
        setting = build(folder) if build is not None else None
        for part in parts:
            if arguments.only and part.__name__ not in arguments.only:
                continue
            if arguments.minutes is not None and time.monotonic() - began > 60 * arguments.minutes:
                print(f"{part.__name__}: no time left", file=sys.stderr)
                continue
            print(f"{part.__name__} …", file=sys.stderr, flush=True)
            workspace = folder / part.__name__
            workspace.mkdir(exist_ok=True)
            results[part.__name__] = part(workspace if build is None else setting)
            if output:
                output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
