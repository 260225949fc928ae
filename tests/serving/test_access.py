"""Keys, rates, origins and lengths, each at the border of what is allowed."""

import asyncio
import hashlib

import pytest
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from llasa.errors import UserError
from llasa.serving import access
from llasa.serving.access import Gate, RateLimiter, address_of, bounded, check_length, load_keys, matching_key
from llasa.serving.problems import Problem

KEY, OTHER = "k" * 24, "o" * 24


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_file_of_keys(tmp_path):
    """A comment, an empty line, a key twice, a byte-order mark and Windows' ends of lines."""
    (tmp_path / "keys").write_bytes(f"\ufeff# ours\r\n{KEY}\r\n\r\n  {OTHER}  \r\n{KEY}\r\n".encode())
    keys = load_keys(str(tmp_path / "keys"))
    assert keys == [hashlib.sha256(key.encode()).digest() for key in (KEY, OTHER)]
    assert matching_key(OTHER, keys) == keys[1]
    for wrong in ("", KEY[:-1], KEY + "k", KEY.upper(), "è" * 24, "\udcff"):
        assert matching_key(wrong, keys) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no key; write one a line"),
        (b"# nothing\n", "has no key; write one a line"),
        (b"short\n", "line 1 of api_keys=.* is no key; use 16 or more"),
        (KEY.encode() + b"\nwith a space in the middle\n", "line 2 of api_keys=.* is no key"),
        (b"\xff\xfe\x00", "it is no text"),
    ],
)
def test_files_without_keys_are_refused(tmp_path, content, message):
    """Fails when an empty file opens the server to everybody. The message has no key in it."""
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        load_keys(str(tmp_path / "keys"))
    assert "with a space" not in str(refused.value)
    with pytest.raises(UserError, match="No such file"):
        load_keys(str(tmp_path / "none"))


def test_a_bucket_empties_and_fills_evenly():
    """Fails when a refused request takes from the bucket too: who asks often would never get in again."""
    limiter = RateLimiter(6, clock := Clock())
    assert [limiter.wait("a") for _ in range(6)] == [0.0] * 6
    assert limiter.wait("a") == pytest.approx(10)
    assert limiter.wait("b") == 0.0, "another client has a bucket of its own"
    clock.now += 4
    assert limiter.wait("a") == pytest.approx(6)
    clock.now += 6.001
    assert limiter.wait("a") == 0.0
    assert limiter.wait("a") > 9.9
    clock.now += 3600
    assert [limiter.wait("a") for _ in range(7)][5:] == [0.0, pytest.approx(10)], "no more than a full bucket"


def test_clients_are_forgotten():
    """Fails when a client's bucket stays after a minute: a server would remember every address it ever saw."""
    limiter = RateLimiter(6, clock := Clock())
    for client in range(1000):
        limiter.wait(f"client {client}")
    clock.now += 61
    limiter.wait("new")
    assert len(limiter) == 1


def test_no_more_clients_are_remembered_than_fit(monkeypatch):
    monkeypatch.setattr(access, "MAX_CLIENTS", 10)
    limiter = RateLimiter(1, Clock())
    for client in range(100):
        limiter.wait(f"client {client}")
        assert len(limiter) <= 10
    assert limiter.wait("client 99") > 0, "the last ones are still known"
    assert len(RateLimiter(0)) == RateLimiter(0).wait("a") == 0


def test_addresses():
    assert address_of({"client": ("192.0.2.7", 1)}) == "192.0.2.7"
    assert address_of({"client": ("2001:db8::1:2:3:4", 1)}) == address_of({"client": ("2001:db8::9", 1)})
    assert address_of({"client": ("::ffff:192.0.2.7", 1)}) == "192.0.2.7"
    assert address_of({"client": None}) == address_of({}) == "unknown"
    assert address_of({"client": ("x" * 1000, 1)}) == "x" * 100


def through(gate: Gate, path: str = "/v1/models", method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer, from behind the gate or by it."""
    sent: list = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("192.0.2.7", 1)}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def gate(*, keys=(), per_minute=0, origins=(), clock=None):
    return Gate(
        PlainTextResponse("in"),
        keys=[hashlib.sha256(key.encode()).digest() for key in keys],
        limiter=RateLimiter(per_minute, clock or Clock()),
        origins=list(origins),
        body_bytes={None: 100, "/v1/voices": 1000},
    )


@pytest.mark.parametrize("path", ["/v1/models", "/v1/audio/speech", "/v1/voices", "/v1/nothing", "/metrics"])
def test_a_key_is_wanted(path):
    """Fails when a path is left out, or the scheme is not looked at."""
    door = gate(keys=[KEY, OTHER])
    assert through(door, path, authorization=f"Bearer {KEY}")[0] == 200
    assert through(door, path, authorization=f"bearer  {OTHER} ")[0] == 200
    wrong = ["", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY[1:]}", f"Bearer {KEY}, {KEY}", "Bearer \xff"]
    for header in wrong:
        status, headers = through(door, path, authorization=header)
        assert (status, headers["www-authenticate"]) == (401, "Bearer"), header
    assert through(door, path)[0] == 401


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/health", "/ready", "/docs", "/openapi.json"])
def test_what_is_open_stays_open(path):
    assert through(gate(keys=[KEY], per_minute=1), path)[0] == 200


def test_a_rate_is_of_a_key_and_else_of_an_address():
    """Fails when all keys share a bucket, or wrong keys can be tried without end."""
    door = gate(keys=[KEY, OTHER], per_minute=1)
    assert through(door, authorization=f"Bearer {KEY}")[0] == 200
    status, headers = through(door, authorization=f"Bearer {KEY}")
    assert (status, headers["retry-after"]) == (429, "60")
    assert through(door, authorization=f"Bearer {OTHER}")[0] == 200
    assert through(door, authorization="Bearer guess")[0] == 401
    assert through(door, authorization="Bearer another guess")[0] == 429


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://here:8000", "host": "here:8000"}, 200),
        ({"origin": "https://friend.example", "host": "here:8000"}, 200),
        ({"origin": "https://here", "host": "proxied", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": "https://evil.example", "host": "here:8000"}, 403),
        ({"origin": "https://friend.example.evil", "host": "here:8000"}, 403),
        ({"origin": "http://here:9000", "host": "here:8000"}, 403),
        ({"origin": "https://evil.example", "host": "here:8000", "sec_fetch_site": "cross-site"}, 403),
        ({"origin": "null", "host": "here:8000"}, 403),
    ],
)
def test_pages_of_other_sites_change_nothing(headers, status):
    """Fails when Origin is not compared: a form on any page could upload a voice."""
    door = gate(origins=["https://friend.example"])
    assert through(door, "/v1/voices", "POST", **headers)[0] == status
    assert through(door, "/v1/voices", "GET", **headers)[0] == 200


def test_the_claimed_length():
    for claimed in ("100", "0", "", "-5", "x"):
        check_length(Headers({"content-length": claimed}), 100)
    for claimed in ("101", "9" * 5000):
        with pytest.raises(Problem) as refused:
            check_length(Headers({"content-length": claimed}), 100)
        assert refused.value.status_code == 413
    assert through(gate(), "/v1/voices", "POST", content_length="1000")[0] == 200
    assert through(gate(), "/v1/audio/speech", "POST", content_length="1000")[0] == 413


def test_the_length_that_really_comes():
    """Fails when only one message is looked at."""

    async def read(count: int) -> int:
        async def receive():
            return {"type": "http.request", "body": b"x" * 30, "more_body": True}

        bounded_receive, total = bounded(receive, 100), 0
        for _ in range(count):
            total += len((await bounded_receive())["body"])
        return total

    assert asyncio.run(read(3)) == 90
    with pytest.raises(Problem, match="longer than 100 bytes"):
        asyncio.run(read(4))


def test_a_body_that_comes_drop_by_drop(monkeypatch):
    """Fails when every piece has the time for itself, or the client's leaving, after the body, is timed as well."""
    monkeypatch.setattr(access, "BODY_SECONDS", 0.1)

    async def read(pieces: int, more: bool) -> int:
        async def receive():
            await asyncio.sleep(0.04)
            return {"type": "http.request", "body": b"x", "more_body": more}

        bounded_receive = bounded(receive, 100)
        return sum([len((await bounded_receive())["body"]) for _ in range(pieces)])

    with pytest.raises(Problem, match="did not come in time"):
        asyncio.run(read(4, more=True))
    assert asyncio.run(read(4, more=False)) == 4
