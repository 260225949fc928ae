"""The soak's own eyes: a client that sees broken answers, and checks that say so."""

import asyncio
import json

import pytest
import soundfile

from experiments.serving_soak.client import Answer, ask
from experiments.serving_soak.server import save_nano
from experiments.serving_soak.soak import PCM_BYTES, Soak, eventful, left, readable, refused, run, well_spoken

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\n"


def answered(raw: bytes, **how: object) -> Answer:
    """What the client makes of these bytes of a server, which then closes the connection."""

    async def exchange() -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            return await ask(server.sockets[0].getsockname()[1], "GET", "/", **how)

    return asyncio.run(exchange())


@pytest.mark.parametrize(
    ("raw", "status", "body", "complete"),
    [
        (HEAD + b"Content-Length: 4\r\n\r\nabcd", 200, b"abcd", True),
        (HEAD + b"Content-Length: 4\r\n\r\nabc", 200, b"abc", False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 200, b"abcde", True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 200, b"abc", False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab", 200, b"ab", False),
        (HEAD[:10], 0, b"", False),
        (b"", 0, b"", False),
    ],
)
def test_client_sees_whether_a_body_ended(raw, status, body, complete):
    """Fails when the end of the connection is taken for the end of the body."""
    answer = answered(raw)
    assert (answer.status, answer.body, answer.complete) == (status, body, complete)


def test_client_leaves_when_told():
    answer = answered(HEAD + b"Content-Length: 9\r\n\r\nabcdefghi", leave_after=1)
    assert answer.left
    assert not answer.complete
    assert answered(b"", leave_after=0).left


def pcm(content: bytes, **fields: object) -> Answer:
    return Answer(
        **{"status": 200, "headers": {"content-type": "audio/pcm"}, "body": content, "complete": True, **fields}
    )


def test_checks_find_what_is_wrong():
    """Fails when a check lets through what it is there for."""
    soak, good = Soak(), bytes(PCM_BYTES)
    assert well_spoken(soak, 0, pcm(good)) is None
    assert "otherwise" in well_spoken(soak, 0, pcm(b"\1" + good[1:]))
    assert "bytes of PCM" in well_spoken(soak, 1, pcm(good[2:]))
    assert "broken off" in well_spoken(soak, 1, pcm(good, complete=False))
    assert "status 429" in well_spoken(soak, 1, pcm(good, status=429))
    with pytest.raises(soundfile.LibsndfileError):  # the soak counts it as wrong
        readable("audio/pcm", pcm(good))
    body = json.dumps({"error": {"code": "busy"}}).encode()
    assert refused(429, "busy", Answer(429, body=body, complete=True)) is None
    assert refused(400, "busy", Answer(429, body=body, complete=True)) is not None
    assert refused(429, None, Answer(429, body=body, complete=True)) is not None
    event = b'data: {"type": "speech.audio.delta", "audio": ""}\n\n'
    assert "events" in eventful(soak, 0, pcm(event, headers={"content-type": "text/event-stream"}))
    assert left(soak, Answer(500, left=True)) is not None


@pytest.mark.slow  # a server of its own
def test_a_short_soak_passes(tmp_path):
    result = run(save_nano(tmp_path / "nano"), tmp_path, requests=400, clients=8)
    assert result["wrong"] == {}, result["examples"]
    assert len(result["sent"]) >= 25
    assert {key for key, value in result["verdict"].items() if not value} <= {"no more threads"}  # pools still fill
