"""The job behind `serve.py`: a checkpoint behind a port, until it is told to stop.

workers=1   uvicorn in this process, with the service that was loaded before the port opens
workers=N   uvicorn's supervisor here, which has the port and N processes that load and answer for themselves;
            one that dies is replaced

SIGINT and SIGTERM let requests under way end (`shutdown_seconds`); a second SIGINT does not wait.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any

from llasa.config import SamplingConfig, ServeConfig, ServiceLimitsConfig
from llasa.errors import UserError
from llasa.model.llama import load_contract

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from llasa.serving.service import SpeechService

CONFIG_VARIABLE = "LLASA_SERVE_CONFIG"
"""Of the workers' environment: the config, as JSON."""
KEEP_ALIVE_SECONDS = 15
UNRESPONSIVE_SECONDS = 30
"""After which a worker that does not answer its supervisor is replaced."""
MAX_CONNECTIONS = 1024
"""Of a worker; further ones are answered 503 by uvicorn."""


def serve(config: ServeConfig) -> None:
    """Answer requests until the process is told to stop.

    Raises:
        UserError: a package is not installed, the port is taken, or what
            :meth:`llasa.serving.service.SpeechService.from_config` and :func:`llasa.serving.api.create_app` raise.
    """
    try:
        import uvicorn

        from llasa.serving.api import create_app
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}", remedy="pip install -r requirements/serve.txt") from None
    from llasa.serving.service import SpeechService

    with listening(config.host, config.port) as listener:
        if config.host not in ("127.0.0.1", "::1", "localhost") and config.api_keys is None:
            print(f"warning: whoever reaches {config.host} may speak; api_keys=FILE asks for a key", file=sys.stderr)
        settings: dict[str, Any] = {
            "log_level": "warning",
            "access_log": False,
            "server_header": False,
            "timeout_keep_alive": KEEP_ALIVE_SECONDS,
            "timeout_graceful_shutdown": int(config.shutdown_seconds) + 1,
            "limit_concurrency": MAX_CONNECTIONS,
        }
        address = f"http://{shown_host(config.host)}:{listener.getsockname()[1]}"
        if config.workers == 1:
            service = SpeechService.from_config(config)
            server = server_of(service, uvicorn.Config(create_app(service, config), **settings), address)
            server.run(sockets=[listener])
        else:
            print(f"{address}  ({config.workers} workers, which load now; Ctrl-C ends them)", flush=True)
            serve_with_workers(config, settings, listener)


def serve_with_workers(config: ServeConfig, settings: dict[str, Any], listener: socket.socket) -> None:
    """Ends with status 2 where a worker's model cannot be loaded.

    Raises:
        UserError: it is no checkpoint that speaks.
    """
    import uvicorn
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    load_contract(config.checkpoint)  # the likeliest mistake; a worker's would be noticed late
    os.environ[CONFIG_VARIABLE] = json.dumps(asdict(config))
    supervisor = Multiprocess(
        uvicorn.Config(
            f"{__name__}:{app_of_worker.__name__}",
            factory=True,
            workers=config.workers,
            timeout_worker_healthcheck=UNRESPONSIVE_SECONDS,
            **settings,
        ),
        sockets=[listener],
    )
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(2)  # the worker has said why


def server_of(service: SpeechService, config: uvicorn.Config, address: str) -> uvicorn.Server:
    """A server that says where it is once it takes connections, and is not ready any more once it is told to stop."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"{address}  (Ctrl-C ends it)", flush=True)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # In a handler of signals: a lock that this very thread holds would never be free.
            threading.Thread(target=service.stop, daemon=True).start()
            super().handle_exit(sig, frame)

    return Server(config)


def app_of_worker() -> FastAPI:
    """The app of a process that uvicorn's supervisor started.

    A mistake of the user ends the process with the status by which the supervisor knows that another would fail too.
    """
    from uvicorn.config import STARTUP_FAILURE

    from llasa.serving.api import create_app
    from llasa.serving.service import SpeechService

    plain = json.loads(os.environ[CONFIG_VARIABLE])
    limits, sampling = ServiceLimitsConfig(**plain.pop("limits")), SamplingConfig(**plain.pop("sampling"))
    try:
        config = ServeConfig(limits=limits, sampling=sampling, **plain)
        return create_app(SpeechService.from_config(config), config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(STARTUP_FAILURE)


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address, which takes connections once a server has it.

    Raises:
        UserError: the address is not this machine's, or taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        remedy = "choose another port=, or 0 for any free one, and for host= an address of this machine"
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror})", remedy=remedy) from None
    listener.set_inheritable(True)
    return listener


def shown_host(host: str) -> str:
    """As a browser on this machine takes it."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
