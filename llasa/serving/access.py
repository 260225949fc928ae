"""Who may ask, how often, and with how long a body. Checked before a body is read.

    request ─► origin ─► API key ─► rate ─► length of the body ─► the routes

- **Keys.** `api_keys=FILE` has a key a line; /v1 and /metrics then want `Authorization: Bearer KEY`. The page, its
  files, /health, /ready and /docs stay open: they say nothing that /v1 would not, and a balancer or a browser has no
  key. Kept and compared are SHA-256 sums of keys, in constant time; no key is logged.
- **Origins.** A browser also sends what a page of somebody else has asked for. Where it tells of such a page (Origin)
  that is neither this server's own nor in `origins`, nothing is done for it but reading.
- **Rate.** Of a client, which is its key, or its address where there are no keys (an IPv6 address by its /64, of
  which one customer has them all); with wrong keys its address too. Each client has a bucket of
  `limits.requests_per_minute` that fills in a minute. Each worker counts for itself.
- **Bodies.** Counted while they are read, whatever Content-Length says, or if it says nothing; read for a minute at
  most. (Headers that come drop by drop are uvicorn's, which waits for them without end but has at most 64 KB of them
  and `limit_concurrency` connections: a proxy in front has a time-out for that.)

Cost: two hashes a request; memory: some 200 bytes for each of the last 10,000 clients.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llasa.errors import UserError
from llasa.serving.problems import Problem

MIN_KEY_LENGTH = 16
"""Characters: a shorter one can be guessed."""
MAX_CLIENTS = 10_000
READING = ("GET", "HEAD", "OPTIONS")
BODY_SECONDS = 60.0
"""That a body may take to come."""
CLOSE = {"Connection": "close"}
"""The rest of a body is not read, so its connection cannot be used again."""


def load_keys(file: str) -> list[bytes]:
    """SHA-256 sums of the keys in a file: one a line; empty lines and those that begin with # are none.

    Raises:
        UserError: it cannot be read, has no key, or a key that is too short or cannot stand in a header.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"cannot read api_keys={file}: {reason}", remedy="pass a text file with a key a line") from None
    keys = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"}
    for number, key in keys.items():
        if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"line {number} of api_keys={file} is no key",
                remedy=f"use {MIN_KEY_LENGTH} or more ASCII characters without spaces, such as `openssl rand -hex 24`",
            )
    if not keys:
        raise UserError(f"api_keys={file} has no key", remedy="write one a line, such as `openssl rand -hex 24`")
    return [digest(key) for key in dict.fromkeys(keys.values())]


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def matching_key(given: str, keys: list[bytes]) -> bytes | None:
    """The sum of the key that was given, if it is one of them. Takes the same time whichever it is, or none."""
    sum_given, found = digest(given), None
    for key in keys:
        if hmac.compare_digest(sum_given, key):
            found = key
    return found


class RateLimiter:
    """A bucket of ``per_minute`` requests for each client, which fills evenly in a minute.

    Args:
        per_minute: 0 = any number.
        clock: seconds that never go back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, at this time
        """By last use. A bucket that was not used for a minute is full, which is as good as none."""

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._buckets)

    def wait(self, client: str) -> float:
        """Take a request from the client's bucket → 0, or the seconds until there will be one."""
        if not self._per_minute:
            return 0.0
        now, a_second = self._clock(), self._per_minute / 60
        left, since = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - since) * a_second)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        while len(self._buckets) > MAX_CLIENTS or next(iter(self._buckets.values()))[1] < now - 60:
            self._buckets.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / a_second


class Gate:
    """ASGI middleware: lets in who may, see this module.

    Args:
        keys: of :func:`load_keys`; [] = none is needed.
        origins: of pages elsewhere that may call.
        body_bytes: path → bytes that a body may have; None is every other path.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: list[bytes],
        limiter: RateLimiter,
        origins: list[str],
        body_bytes: dict[str | None, int],
    ) -> None:
        self._app, self._keys, self._limiter = app, keys, limiter
        self._origins, self._body_bytes = origins, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the server's start and end
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_origin(scope, headers)
            self._check_client(scope, headers)
            limit = self._body_bytes.get(scope["path"], self._body_bytes[None])
            check_length(headers, limit)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, bounded(receive, limit), send)

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or scope["method"] in READING or origin in self._origins:
            return
        # The browser's own word holds also behind a proxy that changes Host, but it is given over HTTPS and to
        # localhost only.
        own = headers.get("sec-fetch-site") == "same-origin" or urlsplit(origin).netloc == headers.get("host")
        if not own:
            raise Problem(403, "pages of another site may not use this server", code="foreign_origin")

    def _check_client(self, scope: Scope, headers: Headers) -> None:
        if not needs_key(scope["path"]):
            return
        client, refusal = address_of(scope), None
        if self._keys:
            kind, _, given = headers.get("authorization", "").partition(" ")
            key = matching_key(given.strip(), self._keys) if kind.lower() == "bearer" else None
            if key is not None:
                client = f"key {key.hex()}"
            else:
                refusal = Problem(
                    401,
                    "the API key is missing or wrong; send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        seconds = self._limiter.wait(client)
        if seconds > 0:
            raise Problem(429, "too many requests; try again later", code="rate_limit_exceeded", retry_after=seconds)
        if refusal is not None:
            raise refusal


def needs_key(path: str) -> bool:
    return path.startswith("/v1/") or path == "/metrics"


def address_of(scope: Scope) -> str:
    """Of the client as far as a rate is concerned. Behind a proxy, uvicorn takes it from X-Forwarded-For."""
    host = (scope.get("client") or ("unknown",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:100]
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


def check_length(headers: Headers, limit: int) -> None:
    """Refuse a body by what its header says, before a byte of it is read."""
    claimed = headers.get("content-length", "")
    if claimed.isdigit() and int(claimed[:20]) > limit:
        raise too_large(limit)


def bounded(receive: Receive, limit: int) -> Receive:
    """``receive`` until more than ``limit`` bytes of a body have come, or they have taken ``BODY_SECONDS``."""
    total, whole, until = 0, False, 0.0

    async def receive_bounded() -> Message:
        nonlocal total, whole, until
        if whole:  # what comes now is the client's leaving
            return await receive()
        until = until or asyncio.get_running_loop().time() + BODY_SECONDS
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise Problem(408, "the body did not come in time", code="body_timeout", headers=CLOSE) from None
        whole = not message.get("more_body", False)
        total += len(message.get("body", b""))
        if total > limit:
            raise too_large(limit)
        return message

    return receive_bounded


def too_large(limit: int) -> Problem:
    return Problem(413, f"the body is longer than {limit:,} bytes", code="body_too_large", headers=CLOSE)
