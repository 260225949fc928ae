"""Around every answer: an id, the security of its headers, what becomes of a bug, and its count.

The outermost ASGI middleware but for Starlette's own. A bug before the first byte of an answer is told as a 500 with
the id; after it, the connection is broken off without the end of the body, which is how a client notices.
"""

from __future__ import annotations

import logging
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llasa.serving.metrics import Metrics
from llasa.serving.problems import internal_error

_log = logging.getLogger(__name__)
SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Envelope:
    """See this module. ``scope["state"]["request_id"]`` is the id that the answer bears as X-Request-ID."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, status = uuid.uuid4().hex, 0
        # Routes need not know of HEAD: uvicorn leaves the body out by itself.
        inner = dict(scope, method="GET" if scope["method"] == "HEAD" else scope["method"])
        inner["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(inner, receive, send_named)
        except Exception:  # a bug, whatever it is: logged here, and the client gets no internals
            _log.exception("request %s failed", request_id)
            if status == 0:
                await internal_error(request_id).response()(inner, receive, send_named)
        finally:
            route = getattr(inner.get("route"), "path", None)
            self._metrics.answered(route, scope["method"], status or 499)  # 499: the client left first, as nginx says
