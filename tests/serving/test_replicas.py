"""Servers that die: two replicas behind HAProxy with deploy/haproxy.cfg, and two workers behind one port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from experiments.serving_soak.client import Answer, ask, speak
from experiments.serving_soak.server import Server, free_port, serving
from tests.serving.http_server import save_speaker

HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
TEXT = "precipitevolissimevolmente " * 3
"""Is spoken in two seconds, which is the limit, and no less."""
OVERRIDES = ["device=cpu", "language=it", "engine.batch_size=4", "limits.audio_seconds=2", "shutdown_seconds=1"]
NUM_BYTES = 2 * 2 * 8000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_speaker(tmp_path_factory.mktemp("replicas") / "tiny")


@dataclass
class Clients:
    """Some who ask for speech again and again.

    Attributes:
        answers: when each request began, when it ended, and what came.
    """

    port: int
    answers: list[tuple[float, float, Answer]] = field(default_factory=list)

    @contextlib.contextmanager
    def asking(self, count: int) -> Iterator[None]:
        """The error of a client, if one fails by itself, comes out in the end."""
        stop = threading.Event()

        async def client(number: int) -> None:
            while not stop.is_set():
                began = time.monotonic()
                answer = await speak(self.port, TEXT, asked={"seed": number})
                self.answers.append((began, time.monotonic(), answer))
                await asyncio.sleep(0.2)

        async def clients() -> None:
            await asyncio.gather(*map(client, range(count)))

        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(asyncio.run, clients())
            try:
                yield
            finally:
                stop.set()
                running.result()

    def whole(self, since: float = 0.0) -> int:
        """Good answers to requests that began after ``since``."""
        return sum(began > since and is_whole(answer) for began, _, answer in self.answers)

    def broken(self) -> list[tuple[float, Answer]]:
        return [(began, answer) for began, _, answer in self.answers if not is_whole(answer)]


def is_whole(answer: Answer) -> bool:
    return answer.status == 200 and answer.complete and len(answer.body) == NUM_BYTES


def until(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@contextlib.contextmanager
def balancer(folder: Path, ports: list[int]) -> Iterator[Server]:
    """HAProxy with the file in deploy/, of which only the ports are changed."""
    text, front = CONFIG.read_text(), free_port()
    for shipped, ours in zip((8000, 8001, 8002), (front, *ports), strict=True):
        assert text.count(f"127.0.0.1:{shipped}") == 1
        text = text.replace(f"127.0.0.1:{shipped}", f"127.0.0.1:{ours}")
    (folder / "haproxy.cfg").write_text(text)
    process = subprocess.Popen([HAPROXY, "-db", "-f", folder / "haproxy.cfg"])
    try:
        yield Server(process, front)
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (apt install haproxy)")
def test_a_killed_replica_costs_only_what_it_was_speaking(checkpoint, tmp_path):
    """Fails without `retry-on` and `option redispatch`: requests then meet the dead replica."""
    with contextlib.ExitStack() as stack:
        servers = [serving(checkpoint, OVERRIDES) for _ in range(2)]
        with ThreadPoolExecutor(2) as threads:
            one, two = threads.map(stack.enter_context, servers)
        front = stack.enter_context(balancer(tmp_path, [one.port, two.port]))
        until(lambda: front.get("/ready")[0] == 200, "the balancer finds no replica")
        assert front.get("/metrics")[0] == 404

        clients = Clients(front.port)
        with clients.asking(4):
            until(lambda: clients.whole() >= 4, "nobody is answered")
            assert one.number("llasa_steps_total") > 0
            assert two.number("llasa_steps_total") > 0
            assert clients.broken() == []

            until(lambda: one.number("llasa_running") > 0, "the first replica is idle", 20)
            os.kill(one.process.pid, signal.SIGKILL)
            killed = time.monotonic()
            until(lambda: clients.whole(killed) >= 8, "the second replica does not answer")
            broken = clients.broken()
            assert broken, "nothing was under way"
            assert all(answer.body for _, answer in broken), "a request that had no answer yet was lost"
            assert not any(answer.complete and answer.status == 200 for _, answer in broken)

        again = stack.enter_context(serving(checkpoint, OVERRIDES, port=one.port))
        steps = two.number("llasa_steps_total")
        with clients.asking(4):
            until(lambda: again.number("llasa_steps_total") > 0, "the first replica gets nothing any more")
            until(lambda: two.number("llasa_steps_total") > steps, "the second replica gets nothing any more")
        assert len(clients.broken()) == len(broken)

        # A stream goes through as it is spoken; where all is seen at once, this side was asleep.
        answers = [asyncio.run(speak(front.port, TEXT)) for _ in range(5)]
        assert all(is_whole(answer) for answer in answers)
        assert min(answer.first_byte / answer.seconds for answer in answers) < 0.6


@pytest.mark.slow  # three more processes that load torch
def test_a_killed_worker_is_replaced(checkpoint):
    """Fails with one worker: the port is then dead until somebody starts it again."""
    with serving(checkpoint, [*OVERRIDES, "workers=2"]) as server:
        until(lambda: len(server.workers()) == 2, "there are not two workers")
        victim, other = server.workers()
        clients = Clients(server.port)
        with clients.asking(2):
            until(lambda: clients.whole() >= 2, "nobody is answered")
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            until(lambda: clients.whole(killed) >= 4, "the port does not answer any more")
        until(lambda: len(set(server.workers()) - {victim}) == 2, "the worker is not replaced")
        assert other in server.workers()
        assert all(began <= killed for began, _ in clients.broken())
        assert asyncio.run(ask(server.port, "GET", "/ready")).status == 200
