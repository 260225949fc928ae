"""A real server on a free port of this machine, in a thread, with the tiny model behind it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import uvicorn

from llasa.codec.codec2 import Codec2
from llasa.config import ServeConfig
from llasa.entry import compose_config
from llasa.generation.engine_hf import TransformersEngine
from llasa.model.checkpoint import CheckpointCard, save_checkpoint
from llasa.serving.api import create_app
from llasa.serving.service import SpeechService
from llasa.tokens.prompt import PromptRules
from tests.model.tiny import build_tiny


def save_speaker(folder: Path) -> Path:
    """A checkpoint of the tiny model over Codec2, which says something else to each prompt."""
    spec = Codec2().spec
    speech = build_tiny(spec, spread=0.2)
    save_checkpoint(folder, speech.model, speech.tokenizer, CheckpointCard(PromptRules(), spec, ("it", "en"), 1500))
    return folder


def serve_config(checkpoint: Path, *overrides: str) -> ServeConfig:
    """Speech of half a second at most, unless told otherwise."""
    return compose_config(
        "serve",
        [
            f"checkpoint={checkpoint}",
            "device=cpu",
            "model_names=[llasa,other]",
            "engine.batch_size=4",
            "sampling.max_seconds=0.5",
            "shutdown_seconds=0.2",
            f"voices_folder={checkpoint.parent / 'voices'}",
            *overrides,
        ],
    )


def tiny_service(config: ServeConfig) -> SpeechService:
    return SpeechService.from_config(config)


@contextlib.contextmanager
def serving(config: ServeConfig, service: SpeechService | None = None) -> Iterator[SimpleNamespace]:
    """``url``, ``service`` and ``port`` of a server that answers; it ends when this is left."""
    service = service or tiny_service(config)
    server = uvicorn.Server(
        uvicorn.Config(create_app(service, config), port=0, log_level="critical", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", service=service, port=port, server=server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"


def wait_until(condition, seconds: float = 20.0) -> None:
    """Fails if the condition does not become true in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


class FragileEngine(TransformersEngine):
    """The real engine, whose steps fail while ``broken`` is set: `engine._target_=` of a config names it."""

    broken = threading.Event()

    def open(self, speech, *, capacity):
        batch = super().open(speech, capacity=capacity)
        step = batch.step

        def fragile_step():
            if self.broken.is_set():
                raise RuntimeError("a kernel failed at /secret/place")
            return step()

        batch.step = fragile_step
        return batch
