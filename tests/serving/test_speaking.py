"""Clients that leave, do not read or come too many, and speech that fails: over real sockets."""

import asyncio
import json
import socket
import struct
import threading
import time

import httpx
import numpy as np
import pytest

from llasa.serving.encoding import SpeechEncoder
from llasa.serving.metrics import Metrics
from llasa.serving.service import SpeechOrder
from llasa.serving.speaking import SpeechResponse
from tests.serving.http_server import (
    FragileEngine,
    save_speaker,
    serve_config,
    serving,
    tiny_service,
    wait_until,
)

LONG = ["sampling.max_seconds=60", "sampling.text_bounds=false", "sampling.loop_seconds=0"]
"""Until the model has no more room: 7 s of speech."""
BODY = {"model": "llasa", "input": "Ciao, come stai?", "voice": "default", "response_format": "wav", "seed": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_speaker(tmp_path_factory.mktemp("speaking") / "checkpoint")


@pytest.fixture
def slow_server(checkpoint):
    """Two places in all: one in the batch, one in the queue."""
    config = serve_config(checkpoint, *LONG, "engine.batch_size=1", "limits.queue=1")
    with serving(config) as running:
        yield running


def asked(server) -> socket.socket:
    """A client that has asked for speech and reads nothing yet."""
    body = json.dumps(BODY).encode()
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    client.sendall(
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )
    return client


def leave(client: socket.socket) -> None:
    """As a process that was killed: the connection is reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("how", ["resets", "closes"])
def test_who_leaves_while_speech_is_sent_frees_the_place(slow_server, how):
    """Fails when nothing listens for the client's end: the speech would be spoken to nobody."""
    client = asked(slow_server)
    assert client.recv(10) == b"HTTP/1.1 2"
    assert slow_server.service.num_running == 1
    leave(client) if how == "resets" else client.close()
    wait_until(lambda: slow_server.service.num_running == slow_server.service.num_streams == 0)
    wait_until(lambda: slow_server.service.ended["cancelled"] == 1)


def test_who_leaves_the_queue_frees_it(slow_server):
    """Fails when leaving is noticed only once something is sent."""
    service = slow_server.service
    first = asked(slow_server)
    wait_until(lambda: service.num_running == 1)
    second = asked(slow_server)
    wait_until(lambda: service.num_waiting == 1)
    leave(second)
    wait_until(lambda: service.num_waiting == 0)
    assert service.num_running == 1
    assert service.ended == {"cancelled": 1}, "and the first one speaks on"
    leave(first)


def test_a_full_queue_says_when_to_come_back(slow_server):
    """Fails when Busy is a 500."""
    clients = [asked(slow_server)]
    wait_until(lambda: slow_server.service.num_running == 1)
    clients.append(asked(slow_server))
    wait_until(lambda: slow_server.service.num_waiting == 1)
    refused = httpx.post(f"{slow_server.url}/v1/audio/speech", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
    assert int(refused.headers["retry-after"]) >= 1
    for client in clients:
        leave(client)


def read_all(client: socket.socket) -> bytes:
    content = b""
    while more := client.recv(65_536):
        content += more
    return content


def test_speech_that_takes_too_long_is_broken_off(checkpoint):
    """What came is good and has no end. Fails when the body is ended as if it were whole."""
    with serving(serve_config(checkpoint, *LONG, "limits.request_seconds=0.6")) as server:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            httpx.post(f"{server.url}/v1/audio/speech", json=BODY, timeout=20)
        client = asked(server)
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"RIFF" in answer
        assert not answer.endswith(b"0\r\n\r\n")
        events = httpx.post(f"{server.url}/v1/audio/speech", json={**BODY, "stream_format": "sse"}, timeout=20).text
        last = json.loads(events.strip().split("\n\n")[-1].removeprefix("data: "))
        assert (last["type"], last["error"]["code"]) == ("error", "timed_out")
        assert server.service.ended["timed_out"] == 3


def test_what_times_out_before_the_first_byte_has_a_status(checkpoint):
    """As one that waits in the queue for longer than it may. Fails when the header goes out with the request."""
    config = serve_config(checkpoint, *LONG, "engine.batch_size=1", "limits.request_seconds=0.6")
    with serving(config) as server:
        first = asked(server)
        wait_until(lambda: server.service.num_running == 1)
        late = httpx.post(f"{server.url}/v1/audio/speech", json={**BODY, "response_format": "flac"}, timeout=20)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "timed_out")
        assert "retry-after" in late.headers
        leave(first)


def test_a_broken_engine_is_told_without_its_reasons(checkpoint):
    """Fails when the error's words get to the client, or the server does not recover."""
    config = serve_config(
        checkpoint, *LONG, "engine._target_=tests.serving.http_server.FragileEngine", "limits.request_seconds=20"
    )
    with serving(config) as server:
        try:
            client = asked(server)
            assert client.recv(10) == b"HTTP/1.1 2"
            FragileEngine.broken.set()
            assert not read_all(client).endswith(b"0\r\n\r\n")
            answer = httpx.post(f"{server.url}/v1/audio/speech", json=BODY, timeout=20)
        finally:
            FragileEngine.broken.clear()
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
        client = asked(server)
        assert client.recv(12) == b"HTTP/1.1 200"
        leave(client)


def test_a_bug_is_told_by_its_id(checkpoint, caplog):
    """Fails when the envelope lets an exception through to uvicorn, whose answer has no id and is no JSON."""
    config = serve_config(checkpoint)
    service = tiny_service(config)
    service._voices = None  # listing the voices is now a bug
    with serving(config, service) as server:
        answer = httpx.get(f"{server.url}/v1/voices")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "NoneType" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text
    assert "NoneType" in caplog.text


def test_a_server_that_stops_says_so(checkpoint):
    config = serve_config(checkpoint)
    with serving(config) as server:
        assert httpx.get(f"{server.url}/ready").status_code == 200
        server.service.stop()
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "unavailable")
        assert httpx.get(f"{server.url}/health").status_code == 200
        refused = httpx.post(f"{server.url}/v1/audio/speech", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")


def test_who_takes_nothing_is_let_go(checkpoint, caplog):
    """Fails when a piece may take for ever: the stream would be kept for a client that only holds the line."""
    config = serve_config(checkpoint, *LONG)
    service = tiny_service(config)
    taken = []

    async def run():
        service.start()

        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            taken.append(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()  # as uvicorn's does while the client's window is full

        response = SpeechResponse(
            service,
            SpeechOrder("Ciao", None, None, None, config.sampling, 0),
            SpeechEncoder("wav", 8000, output_rate=8000),
            format="wav",
            sample_rate=8000,
            events=False,
            send_seconds=0.2,
            metrics=Metrics(service),
        )
        scope = {"type": "http", "headers": [], "state": {"request_id": "an-id"}}
        async with asyncio.timeout(5):
            await response(scope, receive, send)
        assert service.num_streams == 0
        await service.close()

    asyncio.run(run())
    assert [message["type"] for message in taken] == ["http.response.start", "http.response.body"]
    assert "request an-id: the client took nothing for 0.2 s" in caplog.text


def test_many_at_once_are_all_served_or_told_to_return(checkpoint):
    """Three times as many as there is room for. Fails when one of them hangs or gets a 5xx."""
    config = serve_config(checkpoint, "engine.batch_size=2", "limits.queue=2", "sampling.max_seconds=0.3")
    with serving(config) as server:
        answers: list[httpx.Response] = []

        def ask(seed: int) -> None:
            body = {**BODY, "seed": seed, "response_format": "pcm"}
            answers.append(httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=30))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        statuses = sorted(answer.status_code for answer in answers)
        assert len(statuses) == 12
        assert set(statuses) == {200, 429}
        spoken = [answer.content for answer in answers if answer.status_code == 200]
        assert {len(content) for content in spoken} == {2 * 2400}
        assert len(set(spoken)) == len(spoken), "each its own seed"


def test_sound_comes_before_the_end(slow_server):
    """Fails when the body is collected: the first bytes would come with the last."""
    began, times, sizes = time.monotonic(), [], []
    with httpx.stream("POST", f"{slow_server.url}/v1/audio/speech", json=BODY, timeout=30) as response:
        for piece in response.iter_raw():
            times.append(time.monotonic() - began)
            sizes.append(len(piece))
    assert sum(sizes) > 44 + 2 * 8000
    assert times[0] < times[-1] / 3
    assert np.cumsum(sizes)[len(sizes) // 2] < 0.9 * sum(sizes)
