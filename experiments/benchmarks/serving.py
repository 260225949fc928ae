"""How `python serve.py` answers many clients at once; prints one JSON.

    python experiments/benchmarks/serving.py [--output FILE.json] [--only NAME …] [--quick] [--checkpoint DIR]

A real server in a process of its own on this machine, and clients in this one, over HTTP. On a CPU the nano model
(`model=llasa_nano`) with random weights and Codec2; on a GPU, where there is one, Llama 3.2 1B of the published shape
and vocabulary with random weights in bf16, and XCodec2 of full size. Every answer is 4 s of PCM: the text is too long
for less, and the server's limit is not more. On two cores the clients take their time from the server, and are counted
with it. About ten minutes on two cores, five on a GPU.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks.harness import command_line, run
from experiments.serving_soak.client import Answer, speak
from experiments.serving_soak.server import Server, save_nano, serving

TEXT = "precipitevolissimevolmente " * 5
"""130 letters, which no Italian speaks in less than 5 s, and the server in one go."""
BUFFER = 0.25
"""Seconds that a player waits after the first sound of a stream."""

PREDICTED = {
    "first_byte": "p50 of 1 client 0.1 s (0.03 of the speech), 8: 0.2 s, 32: 0.7 s; 64: 14 s, as batches take turns",
    "streams": "6 kept in real time, as the decoding loop alone keeps 8",
    "throughput": "0.7 of the decoding loop's: 1.2, 4.5 and 9 s of speech a second with places for 1, 8 and 32",
    "recovery": "no request fails but those of the killed worker; a new one answers after 10 s, its start",
    "overload": "half are answered 429; nobody waits longer than twice the median; Jain's index over 0.9",
}


@dataclass
class Setting:
    """What is asked of whom.

    Attributes:
        seconds: of speech in each answer.
        few: shorter runs, whose figures mean nothing.
    """

    checkpoint: Path
    overrides: list[str]
    seconds: float
    sample_rate: int
    few: bool

    @property
    def num_bytes(self) -> int:
        return round(self.seconds * self.sample_rate) * 2

    def serving(self, *overrides: str) -> Any:
        """A server with these settings; see :func:`experiments.serving_soak.server.serving`."""
        own = ["language=it", "sampling.loop_seconds=0", f"limits.audio_seconds={self.seconds}", *self.overrides]
        return serving(self.checkpoint, [*own, *overrides])


def build_setting(folder: Path, checkpoint: Path | None, few: bool) -> Setting:
    import torch

    seconds = 0.5 if few else 4.0
    if not torch.cuda.is_available():
        return Setting(checkpoint or save_nano(folder / "nano"), ["device=cpu"], seconds, 8000, few)
    from experiments.benchmarks.preprocess import codec
    from experiments.benchmarks.train_gpu import write_model
    from llasa.model.checkpoint import CheckpointCard
    from llasa.tokens.prompt import PromptRules

    spec = codec("full", folder).spec
    model = write_model(folder / "1b", "1b")
    CheckpointCard(PromptRules(), spec, ("it",)).save(model)
    overrides = ["device=cuda", "codec=xcodec2", f"codec.checkpoint={folder / 'xcodec2-full'}"]
    torch.cuda.empty_cache()
    return Setting(model, overrides, seconds, spec.sample_rate, few)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.quantile(values, q / 100)), 3) for q in (50, 95, 99)}


def require_whole(setting: Setting, answers: Sequence[Answer]) -> None:
    """A figure of answers that are not what was asked for would say nothing."""
    for answer in answers:
        assert answer.status == 200, (answer.status, answer.body[:300])
        assert answer.complete, f"broken off after {len(answer.body)} bytes"
        assert len(answer.body) == setting.num_bytes, (len(answer.body), setting.num_bytes)


async def closed_loop(server: Server, clients: int, each: int) -> list[Answer]:
    """So many clients, each of which asks again when it has its answer."""

    async def client(number: int) -> list[Answer]:
        return [await speak(server.port, TEXT, asked={"seed": number * each + i}) for i in range(each)]

    return [answer for answers in await asyncio.gather(*map(client, range(clients))) for answer in answers]


def first_byte(setting: Setting) -> dict[str, Any]:
    """From the start of a request to its first sound, with places for 32 and a queue of 64."""
    found: dict[str, Any] = {"speech_seconds": setting.seconds}
    with setting.serving("engine.batch_size=32", "limits.queue=64") as server:
        asyncio.run(closed_loop(server, 1, 1))
        for clients, each in ((1, 10), (8, 5), (32, 3), (64, 2)):
            started = time.perf_counter()
            answers = asyncio.run(closed_loop(server, clients, 1 if setting.few else each))
            took = time.perf_counter() - started
            require_whole(setting, answers)
            firsts = [answer.first_byte for answer in answers if answer.first_byte is not None]
            found[f"{clients}_clients"] = {
                "requests": len(answers),
                "seconds": quantiles(firsts),
                "share_of_speech": quantiles([first / setting.seconds for first in firsts]),
                "whole_answer_seconds": quantiles([answer.seconds for answer in answers]),
                "audio_seconds_per_second": round(len(answers) * setting.seconds / took, 2),
            }
    return found


def streams(setting: Setting) -> dict[str, Any]:
    """How many clients hear their speech without a break: 99 % of it is there when it is to be heard.

    Streams that begin together, each played from ``BUFFER`` after its own first sound.
    """
    found: dict[str, Any] = {"buffer_seconds": BUFFER}
    kept = 0
    with setting.serving("engine.batch_size=128", "limits.queue=64") as server:
        asyncio.run(closed_loop(server, 1, 1))
        for count in (1, 2) if setting.few else (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
            answers = asyncio.run(closed_loop(server, count, 1))
            require_whole(setting, answers)
            late = float(np.mean([late_share(setting, answer) for answer in answers]))
            times = [setting.seconds / answer.seconds for answer in answers]
            found[str(count)] = {"late": round(late, 4), "times_real_time": round(float(np.mean(times)), 2)}
            if late > 0.01:
                break
            kept = count
    found["kept_in_real_time"] = kept
    return found


def late_share(setting: Setting, answer: Answer) -> float:
    """Of a stream's sound, the share that came after it was to be heard."""
    times, sizes = (np.array(column, dtype=float) for column in zip(*answer.pieces, strict=True))
    begins = np.concatenate([[0.0], sizes[:-1]]) / 2 / setting.sample_rate  # of each piece, in the speech
    lengths = np.diff(sizes, prepend=0.0)
    return float(lengths[times > times[0] + BUFFER + begins].sum() / lengths.sum())


def throughput(setting: Setting) -> dict[str, Any]:
    """Speech a second by the places of the batch, with twice as many clients as places (40 at most)."""
    found: dict[str, Any] = {}
    for size in (1, 8, 32):
        with setting.serving(f"engine.batch_size={size}", "limits.queue=64") as server:
            asyncio.run(closed_loop(server, 1, 1))
            clients = min(2 * size, 40)
            each = 1 if setting.few else max(2, 24 // size)
            started = time.perf_counter()
            answers = asyncio.run(closed_loop(server, clients, each))
            took = time.perf_counter() - started
            require_whole(setting, answers)
        found[f"batch_{size}"] = {
            "clients": clients,
            "requests": len(answers),
            "audio_seconds_per_second": round(len(answers) * setting.seconds / took, 2),
        }
    rates = {name: numbers["audio_seconds_per_second"] for name, numbers in found.items()}
    found["batch_32_over_1"] = round(rates["batch_32"] / rates["batch_1"], 2)
    return found


def recovery(setting: Setting) -> dict[str, Any]:
    """One of two workers is killed while four clients ask again and again."""
    with setting.serving("workers=2", "engine.batch_size=8") as server:
        until(lambda: len(created(server)) == 2)
        outcomes: list[tuple[float, float, bool]] = []
        stop = threading.Event()

        async def client() -> None:
            while not stop.is_set():
                began = time.monotonic()
                answer = await speak(server.port, TEXT, asked={"seed": 0})
                whole = answer.status == 200 and answer.complete
                outcomes.append((began, time.monotonic(), whole))
                await asyncio.sleep(0 if whole else 0.05)

        async def clients() -> None:
            await asyncio.gather(*(client() for _ in range(4)))

        asking = threading.Thread(target=asyncio.run, args=(clients(),))
        asking.start()
        try:
            until(lambda: len(outcomes) >= 4)
            old, victim = created(server), server.workers()[0]
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            until(lambda: victim not in server.workers() and len(server.workers()) == 2)
            seen = time.monotonic() - killed
            until(lambda: bool(created(server) - old))
            back = time.monotonic() - killed
        finally:
            stop.set()
            asking.join()
    broken = [(began, ended) for began, ended, whole in outcomes if not whole]
    good = sorted(ended for _, ended, whole in outcomes if whole)
    return {
        "requests": len(outcomes),
        "broken_off": sum(began <= killed for began, _ in broken),
        "failed_that_began_after_the_kill": sum(began > killed for began, _ in broken),
        "longest_time_between_answers": round(max(b - a for a, b in itertools.pairwise(good)), 2),
        "replaced_after_seconds": round(seen, 2),
        "new_worker_answers_after_seconds": round(back, 2),
    }


def created(server: Server) -> set[str]:
    """Names of the workers that answer: when each was first asked for its numbers, to the microsecond."""
    name = re.compile(r'^llasa_http_requests_created\{method="GET",route="/metrics".*\} (\S+)$', re.MULTILINE)
    return {found for _ in range(8) for found in name.findall(server.get("/metrics")[1])}


def until(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def overload(setting: Setting) -> dict[str, Any]:
    """Eight clients who together ask three times what the server can do, evenly, whatever it answers."""
    length = 3.0 if setting.few else 30.0
    with setting.serving("engine.batch_size=8", "limits.queue=16") as server:
        asyncio.run(closed_loop(server, 1, 1))
        count = 16
        started = time.perf_counter()
        require_whole(setting, asyncio.run(closed_loop(server, count, 1)))
        capacity = count / (time.perf_counter() - started)  # answers a second
        answers = asyncio.run(open_loop(server, 3 * capacity, length))
        ready = server.get("/ready")[0]
    spoken = [(client, answer) for client, answer in answers if answer.status == 200]
    require_whole(setting, [answer for _, answer in spoken])
    refused = [answer for _, answer in answers if answer.status in (429, 503)]
    firsts = [answer.first_byte or 0.0 for _, answer in spoken]
    shares = np.array([sum(client == who for client, _ in spoken) for who in range(8)], dtype=float)
    return {
        "capacity_answers_per_second": round(capacity, 2),
        "asked_per_second": round(3 * capacity, 2),
        "statuses": dict(sorted(Counter(str(answer.status) for _, answer in answers).items())),
        "other_5xx_or_broken": sum(
            answer.status == 0 or (answer.status >= 500 and answer.status != 503) for _, answer in answers
        ),
        "refusals_without_retry_after": sum("retry-after" not in answer.headers for answer in refused),
        "refusal_seconds": quantiles([answer.seconds for answer in refused]) if refused else {},
        "answers_per_second": round(len(spoken) / (length + max(firsts)), 2),
        "first_byte_seconds": quantiles(firsts) | {"longest": round(max(firsts), 3)},
        "longest_over_median": round(max(firsts) / float(np.median(firsts)), 2),
        "answers_of_each_client": shares.astype(int).tolist(),
        "jains_index": round(float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())), 3),
        "ready_afterwards": ready == 200,
    }


async def open_loop(server: Server, rate: float, seconds: float) -> list[tuple[int, Answer]]:
    """Requests at their times, in turn of eight clients → client and answer."""

    async def asked(number: int) -> tuple[int, Answer]:
        await asyncio.sleep(number / rate)
        return number % 8, await speak(server.port, TEXT, asked={"seed": number})

    return list(await asyncio.gather(*(asked(number) for number in range(max(48, int(rate * seconds))))))


PARTS = (first_byte, streams, throughput, recovery, overload)


def main() -> None:
    parser = command_line(__doc__, PARTS)
    parser.add_argument("--checkpoint", type=Path, help="of the CPU's; none = random weights")
    parser.add_argument("--quick", action="store_true", help="short runs, whose figures mean nothing")
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    run(
        arguments,
        PARTS,
        lambda folder: build_setting(folder, arguments.checkpoint, arguments.quick),
        threads_of_the_server=threads,
        predicted=PREDICTED,
    )


if __name__ == "__main__":
    main()
