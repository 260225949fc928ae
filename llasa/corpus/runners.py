"""Runners: who makes which shard. Every one of them calls :func:`llasa.corpus.encode.make_shards`.

``local`` works in this process, or in several on this machine, one for each GPU. ``ray`` gives shards to the tasks of
a Ray cluster. SLURM needs no runner: an array of jobs, each with a range of ``shards`` (see the README). Processes
share nothing but the store's folder, so any of them may die or be joined by others at any time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llasa.build import build
from llasa.codec.base import Codec
from llasa.config import REPOSITORY, PreprocessConfig
from llasa.corpus.encode import make_shards
from llasa.corpus.sources import Source
from llasa.corpus.store import Shard, shard_is_whole
from llasa.device import visible_cuda_devices
from llasa.errors import UserError, first_line
from llasa.paths import location
from llasa.provenance import differing_keys

DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass
class Job:
    """Shards to make. ``plan`` is the store's, as JSON values."""

    config: PreprocessConfig
    plan: dict[str, Any]
    shards: Sequence[Shard]

    @property
    def root(self) -> Path:
        return location(self.config.store)

    def make(self, source: Source, codec: Codec, on_rows: Callable[[int], object]) -> None:
        config = self.config
        processes = num_decode_processes(config)
        make_shards(self.root, self.shards, source, codec, config.filters, config.decode_threads, processes, on_rows)

    def progress(self) -> tqdm:
        by_rows = self.plan["unit"] == "row"
        total = sum(shard.stop - shard.start for shard in self.shards) if by_rows else None
        return tqdm(total=total, unit=" rows", desc="encoding", disable=None, smoothing=0.05)


def run_local(job: Job, source: Source, codec: Codec) -> None:
    """Make the shards on this machine: in this process, or in ``runner.workers`` processes."""
    # Settled here: a worker sees its own GPU alone, and would take all cores for it.
    job = replace(job, config=replace(job.config, decode_processes=num_decode_processes(job.config)))
    workers = min(num_local_workers(job.config), len(job.shards))
    with job.progress() as progress:
        if workers <= 1:
            job.make(source, codec, progress.update)
        else:
            run_processes(job, workers, progress.update)


def num_local_workers(config: PreprocessConfig) -> int:
    """``runner.workers``, by default one for each GPU that is to be seen, or one."""
    if config.runner.workers is not None:
        return config.runner.workers
    return max(1, len(visible_cuda_devices())) if config.codec.get("device", "cpu") != "cpu" else 1


def num_decode_processes(config: PreprocessConfig) -> int:
    """``decode_processes``, by default up to eight for each GPU, and none beside a codec on the CPU."""
    if config.decode_processes is not None:
        return config.decode_processes
    if config.codec.get("device", "cpu") == "cpu" or not visible_cuda_devices():
        return 0
    return max(1, min(8, (os.cpu_count() or 2) // num_local_workers(config) - 1))


def run_processes(job: Job, workers: int, on_rows: Callable[[int], object]) -> None:
    """A process for each GPU, or so many on the CPU; they take shards by their claims, not from us.

    Raises:
        UserError: a worker's own, or all that were left died.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, Any] = {}
    dead: list[str] = []
    try:
        for index in range(workers):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(job, sending), name=f"worker {index}")
            with _environment_of_worker(index, workers):
                process.start()
            sending.close()
            processes[receiving] = process
        while processes:
            for connection in wait(list(processes)):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    process = processes.pop(connection)
                    process.join()
                    if process.exitcode:
                        dead.append(f"{process.name} ended with status {process.exitcode}")
                    continue
                if isinstance(message, int):
                    on_rows(message)
                elif isinstance(message, UserError):
                    raise message
                else:
                    raise RuntimeError(f"in {processes[connection].name}:\n{message}")
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
    if dead and not all(shard_is_whole(job.root / shard.file) for shard in job.shards):
        raise UserError(
            f"the store is not complete: {', '.join(dead)}",
            remedy="-9 is most often the end of the memory, use fewer runner.workers; the same command goes on",
        )
    if dead:
        print(f"{', '.join(dead)}; the others made its shards")


@contextlib.contextmanager
def _environment_of_worker(index: int, workers: int) -> Iterator[None]:
    """What a process has to know before it imports torch: its GPU, and its share of the cores."""
    devices = visible_cuda_devices()
    changes = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))}
    if devices:
        changes[DEVICES] = devices[index % len(devices)]
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _worker(job: Job, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    try:
        make_in_new_process(job, connection.send)
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
    except UserError as error:
        connection.send(error)
    except BaseException:
        connection.send(traceback.format_exc())


def make_in_new_process(job: Job, on_rows: Callable[[int], object]) -> None:
    """Build the source and the codec of the job anew, see that they are the plan's, and make the shards."""
    source, codec = _workshop(json.dumps([job.config.dataset, job.config.codec]))
    found = {"source": source.describe(), "codec": codec.spec.to_dict()}
    expected = {name: job.plan[name] for name in found}
    differing = differing_keys(json.loads(json.dumps(expected)), json.loads(json.dumps(found)))
    if differing:
        raise UserError(
            f"a worker sees another corpus or codec than the one it works for: {', '.join(differing)}",
            remedy="the same files must lie at the same paths on every machine",
        )
    job.make(source, codec, on_rows)


@functools.lru_cache(maxsize=1)
def _workshop(nodes: str) -> tuple[Source, Codec]:
    dataset, codec = json.loads(nodes)
    return build(dataset), build(codec)


def run_ray(job: Job, source: Source, codec: Codec) -> None:
    """Make the shards as tasks of a Ray cluster, ``runner.address``, or of one on this machine.

    A task makes a few shards and claims a GPU where the cluster has some. A task whose worker is lost is started again.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"runner=ray: {error}", remedy="pip install -r requirements/ray.txt") from None

    runner = job.config.runner
    started = not ray.is_initialized()
    if started:
        try:
            # The code must lie at the same place on every machine, as for SLURM; so must its environment.
            ray.init(
                address=runner.address,
                runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
                log_to_driver=False,
                include_dashboard=False,
                logging_level="ERROR",
            )
        except ConnectionError as error:
            raise UserError(
                f"runner.address={runner.address}: {first_line(error).partition('. ')[0]}",
                remedy="start a cluster with `ray start --head`, or use runner.address=null",
            ) from None
    try:
        resources = ray.cluster_resources()
        gpus = 1 if resources.get("GPU") and job.config.codec.get("device", "cpu") != "cpu" else 0
        slots = int(resources["GPU"] if gpus else resources.get("CPU", 1))
        slots = min(slots, runner.workers or slots)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=runner.retries)(_ray_task)
        per_task = max(1, min(8, len(job.shards) // (4 * slots)))
        waiting = [job.shards[start : start + per_task] for start in range(0, len(job.shards), per_task)]
        running: dict[Any, int] = {}
        with job.progress() as progress:
            while waiting or running:
                while waiting and len(running) < slots:
                    shards = waiting.pop(0)
                    running[task.remote(Job(job.config, job.plan, shards))] = len(shards)
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    running.pop(reference)
                    progress.update(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
    finally:
        if started:
            ray.shutdown()


def _ray_task(job: Job) -> int:
    """Number of source rows done."""
    done: list[int] = []
    make_in_new_process(job, done.append)
    return sum(done)


RUNNERS: dict[str, Callable[[Job, Source, Codec], None]] = {"local": run_local, "ray": run_ray}
