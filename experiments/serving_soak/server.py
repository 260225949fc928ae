"""`python serve.py` as a process of its own, and what Linux says of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300.0
# An experiment that is told to stop takes its server with it.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
STOP_SECONDS = 30.0


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen
    port: int

    def workers(self) -> list[int]:
        """Processes that answer: this one, or its children that listen too."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        spawned = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return spawned or [self.process.pid]

    def get(self, path: str) -> tuple[int, str]:
        """Status and text; 0 = nobody answered."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def number(self, name: str) -> float:
        """A metric without labels."""
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert found, name
        return float(found[1])

    def footprint(self) -> dict[str, float]:
        """Resident memory in MB, threads and open files of the process that answers. Of the files the fewest within two
        seconds: connections that the last clients left are still being closed."""
        [pid] = self.workers()
        status = Path(f"/proc/{pid}/status").read_text()
        facts = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
        files = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(20):
            time.sleep(0.1)
            files = min(files, len(os.listdir(f"/proc/{pid}/fd")))
        return {"rss_mb": round(int(facts["VmRSS"]) / 1024, 1), "threads": int(facts["Threads"]), "files": files}


def save_nano(folder: Path) -> Path:
    """A checkpoint of `model=llasa_nano` with random weights, over Codec2, Italian."""
    from llasa.codec.codec2 import Codec2
    from llasa.entry import compose_config
    from llasa.model.checkpoint import CheckpointCard, save_checkpoint
    from llasa.model.llama import build_for_training
    from llasa.tokens.prompt import PromptRules

    config = compose_config("train", ["model=llasa_nano", "lang=it", "device=cpu"])
    spec = Codec2().spec
    speech = build_for_training(config.model, config.kernels, spec, "cpu", "fp32")
    save_checkpoint(folder, speech.model, speech.tokenizer, CheckpointCard(PromptRules(), spec, ("it",)))
    return folder


@contextlib.contextmanager
def serving(
    checkpoint: Path, overrides: Sequence[str] = (), *, port: int | None = None, log: Path | None = None
) -> Iterator[Server]:
    """A server that is ready, by default with one thread for the model; it is told to stop in the end, and killed if it
    does not.

    Args:
        port: none = any free one.
        log: gets what it said, in the end.

    Raises:
        RuntimeError: it ended, or is not ready in five minutes; with the end of what it said.
    """
    port = port or free_port()
    command = [
        sys.executable,
        "serve.py",
        f"checkpoint={checkpoint}",
        f"port={port}",
        "model_names=[speech]",
        *overrides,
    ]
    # On few cores a second thread costs more than it brings: the clients, and whatever else runs, get in its way.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)
        server = Server(process, port)
        try:
            until = time.monotonic() + START_SECONDS
            while server.get("/ready")[0] != 200:
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    raise RuntimeError(f"the server does not start: {said.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if log is not None:
                said.seek(0)
                log.write_bytes(said.read())
