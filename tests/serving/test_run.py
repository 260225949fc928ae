"""`serve.py` as a process: it says where it is, lets speech end when it is told to stop, and explains what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest
from uvicorn.config import STARTUP_FAILURE

from llasa.codec.codec2 import Codec2
from llasa.config import SamplingConfig, ServeConfig
from llasa.errors import UserError
from llasa.model.checkpoint import save_checkpoint
from llasa.serving.run import CONFIG_VARIABLE, app_of_worker, listening, serve, shown_host
from tests.model.tiny import build_tiny

ROOT = Path(__file__).parents[2]
ENGINE = {"_target_": "llasa.generation.engine_hf.TransformersEngine", "batch_size": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "spoken" / "checkpoint"
    speech = build_tiny(Codec2().spec, spread=0.5)
    save_checkpoint(folder, speech.model, speech.tokenizer, speech.card)
    return folder


@contextmanager
def process(*overrides: str):
    command = [sys.executable, ROOT / "serve.py", "device=cpu", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as running:
        try:
            yield running
        finally:
            running.kill()


def address(running: subprocess.Popen) -> str:
    line = running.stdout.readline()
    found = re.match(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + running.stderr.read()
    return found[0]


def test_it_says_where_it_is_and_lets_speech_end(checkpoint):
    """Fails when the line comes before the port takes connections, or SIGTERM cuts a stream or is not heeded."""
    speech = {"model": "spoken", "voice": "default", "response_format": "pcm", "seed": 1}
    with process(f"checkpoint={checkpoint}", "port=0", "sampling.text_bounds=false", "sampling.loop_seconds=0") as one:
        url = address(one)
        assert httpx.get(f"{url}/ready").status_code == 200
        spoken: list[bytes] = []
        begun = threading.Event()

        def listen() -> None:
            body = speech | {"input": "Buongiorno a tutti", "temperature": 1.0}
            with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as response:
                for piece in response.iter_raw():
                    spoken.append(piece)
                    begun.set()
            spoken.append(b"end")

        client = threading.Thread(target=listen)
        client.start()
        assert begun.wait(60)
        one.send_signal(signal.SIGTERM)
        client.join(60)
        assert spoken[-1] == b"end", "the stream was broken off"
        assert one.wait(60) == -signal.SIGTERM
        assert one.stderr.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/ready")


def test_a_worker_that_cannot_load_says_so_and_is_not_started_again(checkpoint, tmp_path, monkeypatch, capsys):
    """Fails when the supervisor gets another status than the one that it knows."""
    config = ServeConfig(
        checkpoint=str(checkpoint), engine=ENGINE, sampling=SamplingConfig(), api_keys=f"{tmp_path}/none", device="cpu"
    )
    monkeypatch.setenv(CONFIG_VARIABLE, json.dumps(asdict(config)))
    with pytest.raises(SystemExit) as ended:
        app_of_worker()
    assert ended.value.code == STARTUP_FAILURE
    assert capsys.readouterr().err.startswith("error: cannot read api_keys=")
    monkeypatch.setenv(CONFIG_VARIABLE, json.dumps(asdict(replace(config, api_keys=None))))
    assert app_of_worker().title == "Speech"


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_loaded_is_one_line(tmp_path, workers):
    with listening("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with process(f"checkpoint={tmp_path}/nowhere", f"port={port}", f"workers={workers}") as one:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 2
        assert errors.startswith("error: ")
        assert "nowhere" in errors
        assert errors.count("\n") == 1


def test_a_port_that_is_taken_is_a_mistake_before_anything_is_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = ServeConfig(checkpoint="nowhere", port=port, engine=ENGINE, sampling=SamplingConfig())
        with pytest.raises(UserError, match=rf"^cannot listen on 127\.0\.0\.1:{port} .*choose another port="):
            serve(config)
        config.host = "nowhere.invalid"
        with pytest.raises(UserError, match=r"^cannot listen on nowhere\.invalid"):
            serve(config)


def test_hosts_are_shown_as_a_browser_takes_them():
    assert shown_host("0.0.0.0") == "127.0.0.1"
    assert shown_host("::1") == "[::1]"
    assert shown_host("example.org") == "example.org"
