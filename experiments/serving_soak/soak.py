"""Thousands of requests of every kind at one server, good, bad and broken off: is each answered as it should be, and
is the server afterwards what it was before?

    python experiments/serving_soak/soak.py [--requests 10000] [--clients 16] [--output FILE.json] [--checkpoint DIR]

Without a checkpoint: `model=llasa_nano` with random weights. Exits 1 when anything is not as it should be. About ten
minutes for 10,000 requests on two cores, 1 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.serving_soak.client import Answer, ask, speak
from experiments.serving_soak.server import Server, save_nano, serving

SECONDS = 0.3
"""Of speech in an answer: exactly, as no text is shorter than that."""
PCM_BYTES = int(SECONDS * 8000) * 2
TEXTS = [f"Il numero {n} è dopo il numero {n - 1}." for n in range(1, 21)]
BODY_BYTES = 64 * 1024
"""The server's default, `limits.body_bytes`."""
CHARACTERS = 4096
"""The server's default, `limits.characters`."""
GROWTH = 0.05
SETTLE_SECONDS = 30.0

Check = Callable[[Answer], str | None]
"""What is wrong with an answer; none = nothing."""


@dataclass
class Soak:
    """What happened."""

    sent: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    spoken: int = 0
    left: int = 0
    refused_unread: int = 0
    """Bodies over the limit whose 413 was lost, as TCP loses what stands behind data that nobody reads."""
    waveforms: dict[int, str] = field(default_factory=dict)
    """Text → sum of its samples: the same each time, whoever else speaks."""


def well_spoken(soak: Soak, number: int, answer: Answer) -> str | None:
    """PCM: all of it, and the same as ever for this text and seed."""
    if problem := whole(answer, "audio/pcm"):
        return problem
    if len(answer.body) != PCM_BYTES:
        return f"{len(answer.body)} bytes of PCM instead of {PCM_BYTES}"
    digest = hashlib.sha256(answer.body).hexdigest()
    if soak.waveforms.setdefault(number, digest) != digest:
        return f"text {number} sounds otherwise than before"
    return None


def whole(answer: Answer, media_type: str) -> str | None:
    if answer.status != 200:
        return f"status {answer.status}, {answer.body[:200]!r}"
    if not answer.complete:
        return f"broken off after {len(answer.body)} bytes"
    if answer.headers.get("content-type", "").split(";")[0] != media_type:
        return f"content-type {answer.headers.get('content-type')}"
    return None


def readable(media_type: str, answer: Answer) -> str | None:
    """A file that libsndfile reads, of the right length; MP3 comes in whole frames, with some silence."""
    import soundfile

    if problem := whole(answer, media_type):
        return problem
    samples, rate = soundfile.read(io.BytesIO(answer.body))
    seconds = len(samples) / rate
    return None if SECONDS - 0.01 <= seconds <= SECONDS + 0.25 else f"{seconds:.2f} s of speech"


def eventful(soak: Soak, number: int, answer: Answer) -> str | None:
    """Events whose pieces are the same PCM, then the last one."""
    if problem := whole(answer, "text/event-stream"):
        return problem
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n\n") if line]
    *deltas, done = events
    if done["type"] != "speech.audio.done" or any(event["type"] != "speech.audio.delta" for event in deltas):
        return f"events {Counter(event['type'] for event in events)}"
    answer.body = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    answer.headers["content-type"] = "audio/pcm"
    return well_spoken(soak, number, answer)


def refused(status: int, code: str | None, answer: Answer) -> str | None:
    if answer.status == status and answer.code == code and answer.complete:
        return None
    return f"status {answer.status}, code {answer.code} instead of {status}, {code}: {answer.body[:200]!r}"


def refused_unread(soak: Soak, answer: Answer) -> str | None:
    if answer.status == 0:
        soak.refused_unread += 1
        return None
    return refused(413, "body_too_large", answer)


def left(soak: Soak, answer: Answer) -> str | None:
    soak.left += 1
    return None if answer.left and answer.status in (0, 200) else f"status {answer.status}"


def fine(answer: Answer) -> str | None:
    return None if answer.status == 200 and answer.complete and answer.body else f"status {answer.status}"


def kinds(soak: Soak, port: int, chance: random.Random) -> dict[str, tuple[int, Callable[[], tuple[Any, Check]]]]:
    """Name → how often, and a maker of one request (a coroutine) with what has to come of it."""

    def said(**asked: Any) -> tuple[int, str, dict[str, Any]]:
        number = chance.randrange(len(TEXTS))
        return number, TEXTS[number], {"seed": number, **asked}

    def pcm() -> tuple[Any, Check]:
        number, text, asked = said()
        return speak(port, text, asked=asked), partial(well_spoken, soak, number)

    def events() -> tuple[Any, Check]:
        number, text, asked = said(stream_format="sse")
        return speak(port, text, asked=asked), partial(eventful, soak, number)

    def file_of(format: str, media_type: str) -> tuple[Any, Check]:
        _, text, asked = said(response_format=format)
        return speak(port, text, asked=asked), partial(readable, media_type)

    def slow() -> tuple[Any, Check]:
        # As large an answer as so little speech can be.
        _, text, asked = said(response_format="wav", sample_rate=48_000, stream_format="sse")
        asked |= {"speed": 0.25} if find_spec("av") else {}
        return speak(port, text, asked=asked, slow=0.05), partial(whole, media_type="text/event-stream")

    def leaving(after: int) -> tuple[Any, Check]:
        _, text, asked = said()
        return speak(port, text, asked=asked, leave_after=after), partial(left, soak)

    def body(content: bytes, status: int, code: str | None, **how: Any) -> tuple[Any, Check]:
        json_type = {"Content-Type": "application/json"}
        request = ask(port, "POST", "/v1/audio/speech", content, headers=json_type, **how)
        return request, partial(refused, status, code)

    def wrong(status: int, code: str | None, **asked: Any) -> tuple[Any, Check]:
        return speak(port, TEXTS[0], asked=asked), partial(refused, status, code)

    def half() -> tuple[Any, Check]:
        request = ask(port, "POST", "/v1/audio/speech", b'{"model"', claimed=500, leave_after=0)
        return request, partial(left, soak)

    def oversized(chunked: bool) -> tuple[Any, Check]:
        request, _ = body(b'{"input": "' + b"a" * 3 * BODY_BYTES, 413, None, chunked=chunked)
        return request, partial(refused_unread, soak)

    return {
        "pcm": (16, pcm),
        "sse": (8, events),
        "wav": (4, partial(file_of, "wav", "audio/wav")),
        "mp3": (4, partial(file_of, "mp3", "audio/mpeg")),
        "flac": (2, partial(file_of, "flac", "audio/flac")),
        "opus": (2, partial(file_of, "opus", "audio/ogg")),
        "slow reader": (4, slow),
        "leaves after the first byte": (8, partial(leaving, 1)),
        "leaves at once": (6, partial(leaving, 0)),
        "leaves in its request": (4, half),
        "no JSON": (5, partial(body, b'{"model": "speech", "input"', 400, "invalid_json")),
        "no text but bytes": (2, partial(body, b"\xff\xfe\x00\x01", 400, "invalid_json")),
        "no object": (2, partial(body, b"[1, 2]", 400, "invalid_body")),
        "wrong type": (4, partial(wrong, 400, "invalid_value", input=[1])),
        "out of range": (2, partial(wrong, 400, "invalid_value", temperature=-1)),
        "unknown field": (3, partial(wrong, 400, "unknown_parameter", temperatur=1)),
        "aac": (1, partial(wrong, 400, "invalid_value", response_format="aac")),
        "empty": (2, partial(wrong, 400, "invalid_value", input="  ")),
        "nothing to say": (1, partial(wrong, 400, "invalid_value", input="?!")),
        "too long": (4, partial(wrong, 400, "string_above_max_length", input="a " * CHARACTERS)),
        "unknown voice": (3, partial(wrong, 400, "invalid_value", voice="nobody")),
        "voice outside the folder": (1, partial(wrong, 400, "invalid_value", voice="../../etc/passwd")),
        "unknown language": (2, partial(wrong, 400, "invalid_value", language="xx")),
        "unknown model": (2, partial(wrong, 404, "model_not_found", model="gpt")),
        "oversized": (3, partial(oversized, False)),
        "oversized, of unknown length": (2, partial(oversized, True)),
        "unknown path": (1, lambda: (ask(port, "GET", "/v2"), partial(refused, 404, "not_found"))),
        "wrong method": (
            1,
            lambda: (ask(port, "GET", "/v1/audio/speech"), partial(refused, 405, "method_not_allowed")),
        ),
        "models": (1, lambda: (ask(port, "GET", "/v1/models"), fine)),
        "voices": (1, lambda: (ask(port, "GET", "/v1/voices"), fine)),
        "metrics": (1, lambda: (ask(port, "GET", "/metrics"), fine)),
        "page": (1, lambda: (ask(port, "GET", "/"), fine)),
    }


SPEAKING = ("pcm", "sse", "wav", "mp3", "flac", "opus", "slow reader")


async def soaked(soak: Soak, port: int, count: int, clients: int, chance: random.Random) -> None:
    """``count`` requests, of which so many are under way at a time."""
    makers = kinds(soak, port, chance)
    names = chance.choices(list(makers), [share for share, _ in makers.values()], k=count)
    waiting = iter(names)

    async def client() -> None:
        for name in waiting:  # shared: each takes the next
            request, check = makers[name][1]()
            try:
                problem = check(await request)
            except Exception as error:  # an answer that cannot be read at all is wrong too
                problem = f"{type(error).__name__}: {error}"
            soak.sent[name] += 1
            soak.spoken += name in SPEAKING and problem is None
            if problem is not None:
                soak.wrong[name] += 1
                if len(soak.examples) < 50:
                    soak.examples.append(f"{name}: {problem}")

    await asyncio.gather(*(client() for _ in range(clients)))


def settled(server: Server) -> bool:
    """Whether nothing is left of any request, within some seconds."""
    until = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < until:
        if all(server.number(f"llasa_{name}") == 0 for name in ("running", "waiting", "streams")):
            return True
        time.sleep(0.2)
    return False


def ended(server: Server) -> dict[str, int]:
    """Orders by how they ended, as the server counts them."""
    lines = [line for line in server.get("/metrics")[1].splitlines() if line.startswith("llasa_speech_ended_total{")]
    return {line.split('"')[1]: int(float(line.rsplit(" ", 1)[1])) for line in lines}


def run(checkpoint: Path, folder: Path, requests: int, clients: int, seed: int = 0) -> dict[str, Any]:
    """The whole soak → what stands in the JSON; ``verdict`` is empty when all is well."""
    overrides = [
        "device=cpu",
        "language=it",
        "engine.batch_size=8",
        "sampling.loop_seconds=0",
        f"limits.audio_seconds={SECONDS}",
        f"limits.queue={4 * clients}",
        f"voices_folder={folder / 'voices'}",
    ]
    soak, chance, marks = Soak(), random.Random(seed), []
    part = max(1, requests // 10)
    log = folder / "server.log"
    with serving(checkpoint, overrides, log=log) as server:
        started = time.monotonic()
        for done in range(0, requests, part):
            asyncio.run(soaked(soak, server.port, min(part, requests - done), clients, chance))
            quiet = settled(server)
            marks.append({"requests": sum(soak.sent.values()), "quiet": quiet, **server.footprint()})
            wrong = f", {sum(soak.wrong.values())} wrong" if soak.wrong else ""
            print(f"{marks[-1]}{wrong}", file=sys.stderr, flush=True)
        seconds = time.monotonic() - started
        ready, ways = server.get("/ready")[0] == 200, ended(server)
    first, last = marks[0], marks[-1]
    growth = last["rss_mb"] / first["rss_mb"] - 1
    heard = ways.get("stop", 0) + ways.get("length", 0) + ways.get("loop", 0)
    verdict = {
        "every answer as expected": not soak.wrong,
        "ready at the end": ready,
        "nothing under way at any mark": all(mark["quiet"] for mark in marks),
        f"memory grew by less than {GROWTH:.0%}": growth < GROWTH,
        "no more threads": last["threads"] <= first["threads"],
        "no more open files": last["files"] <= first["files"],
        "the server counts what was heard": soak.spoken <= heard <= soak.spoken + soak.left,
        "the server saw nothing fail": not any(ways.get(name, 0) for name in ("failed", "timed_out", "busy")),
        "no bug was logged": b"Traceback" not in log.read_bytes(),
    }
    return {
        "requests": sum(soak.sent.values()),
        "clients": clients,
        "seconds": round(seconds, 1),
        "sent": dict(soak.sent),
        "wrong": dict(soak.wrong),
        "examples": soak.examples,
        "refused_unread": soak.refused_unread,
        "ended": ways,
        "memory_growth": round(growth, 4),
        "marks": marks,
        "verdict": verdict,
        "passed": all(verdict.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llasa-soak-") as folder:
        checkpoint = arguments.checkpoint or save_nano(Path(folder) / "nano")
        result = run(checkpoint, Path(folder), arguments.requests, arguments.clients)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
