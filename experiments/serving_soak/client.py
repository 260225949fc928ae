"""A small HTTP client that sees what others hide: when each byte came, whether a body ended, and how to leave early.

HTTP/1.1 over asyncio, a connection a request. :func:`ask` never raises for what a server does: it is in the `Answer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

PIECE = 64 * 1024
WAIT_SECONDS = 300.0
"""For anything; then the request counts as broken."""


@dataclass
class Answer:
    """What came back.

    Attributes:
        status: 0 = the connection ended, or nothing came in time, before there was one.
        complete: the body ended as HTTP says it must.
        left: this side closed the connection, as it was told to.
        pieces: seconds since the request began, and bytes of the body so far, whenever some came.
        seconds: from before the connection until the end.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False
    left: bool = False
    pieces: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def first_byte(self) -> float | None:
        return self.pieces[0][0] if self.pieces else None

    @property
    def code(self) -> str | None:
        """Of an error in OpenAI's form; none = it has none."""
        try:
            return json.loads(self.body)["error"]["code"]
        except (ValueError, TypeError, KeyError):
            return None


async def ask(
    port: int,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    headers: dict[str, str] | None = None,
    chunked: bool = False,
    claimed: int | None = None,
    leave_after: int | None = None,
    slow: float = 0.0,
) -> Answer:
    """One request to 127.0.0.1.

    Args:
        chunked: send the body without saying its length.
        claimed: the length that is said; none = the true one.
        leave_after: close the connection once so many bytes of the body came; 0 = once the request is sent.
        slow: seconds to wait before each read of 512 bytes, at most 20 times.
    """
    answer, started = Answer(), time.perf_counter()
    writer = None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            reader, writer = await _connect(port, slow > 0)
            head = {"Host": f"127.0.0.1:{port}", "Connection": "close", **(headers or {})}
            head |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(claimed or len(body))}
            lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
            writer.write("\r\n".join(lines).encode())
            # A server that refuses a body need not read it.
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(body), PIECE):
                    piece = body[start : start + PIECE]
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                    await writer.drain()
                if chunked:
                    writer.write(b"0\r\n\r\n")
                await writer.drain()
            if leave_after == 0:
                answer.left = True
            else:
                await _receive(reader, answer, started, leave_after, slow)
    except (OSError, EOFError, TimeoutError, ValueError):
        pass  # the answer shows how far it got
    finally:
        answer.seconds = time.perf_counter() - started
        if writer is not None:
            writer.transport.abort() if answer.left else writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return answer


async def _connect(port: int, slow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """``slow``: with small buffers on this side, so that the other side feels it."""
    connection = socket.socket()
    connection.setblocking(False)
    if slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    return await asyncio.open_connection(sock=connection, limit=1024 if slow else PIECE)


async def _receive(
    reader: asyncio.StreamReader, answer: Answer, started: float, leave_after: int | None, slow: float
) -> None:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer.status = int(lines[0].split()[1])
    pairs = (line.partition(":") for line in lines[1:] if line)
    answer.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    pauses = 20 if slow else 0
    parts: list[bytes] = []
    length = 0
    chunked = answer.headers.get("transfer-encoding") == "chunked"
    remaining = 0 if chunked else int(answer.headers.get("content-length", "0"))
    try:
        while True:
            if chunked and remaining == 0:
                remaining = int(await reader.readuntil(b"\r\n"), 16)
                last = remaining == 0
            else:
                last = remaining == 0
            if last:
                if chunked:
                    await reader.readuntil(b"\r\n")
                answer.complete = True
                return
            if pauses:
                pauses -= 1
                await asyncio.sleep(slow)
            piece = await reader.read(min(remaining, 512 if pauses else PIECE))
            if not piece:
                return
            parts.append(piece)
            length, remaining = length + len(piece), remaining - len(piece)
            answer.pieces.append((time.perf_counter() - started, length))
            if chunked and remaining == 0:
                await reader.readexactly(2)
            if leave_after is not None and length >= leave_after:
                answer.left = True
                return
    finally:
        answer.body = b"".join(parts)


def speak(port: int, text: str, *, asked: dict[str, Any] | None = None, **how: Any) -> Any:
    """:func:`ask` for speech: pcm from the model ``speech`` unless ``asked`` says otherwise."""
    content = {"model": "speech", "input": text, "response_format": "pcm", **(asked or {})}
    return ask(
        port,
        "POST",
        "/v1/audio/speech",
        json.dumps(content).encode(),
        headers={"Content-Type": "application/json", **how.pop("headers", {})},
        **how,
    )
