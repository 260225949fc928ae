"""The scheduler over the real decoder and a tiny model; decoders that wait or fail on purpose are real ones too."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import pytest

from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.decoding import Decoder
from llasa.generation.engine import Request
from llasa.generation.engine_hf import TransformersEngine
from llasa.serving import scheduler as scheduling
from llasa.serving.scheduler import Scheduler
from llasa.serving.ticket import Busy, Failed, Stopping, TimedOut
from tests.model.tiny import tiny_speech_model

GREEDY = SamplingConfig(temperature=0.0, loop_seconds=0)
SAMPLED = SamplingConfig(temperature=1.0, loop_seconds=0)
PENALISED = SamplingConfig(temperature=0.9, top_k=8, repetition_penalty=1.3, loop_seconds=0)
TEXTS = ["Ciao", "Come stai oggi?", "Io", "La luna è alta nel cielo", "Sì", "Buona notte a tutti"]


@pytest.fixture(scope="module")
def speech():
    speech = tiny_speech_model(spread=0.5)
    speech.model.eval()
    return speech


class Watched(Decoder):
    """Notes how many sequences came in before each step, and which were in it."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.added, self.added_before, self.steps = [], [0], []

    def add(self, index, request, sampling):
        super().add(index, request, sampling)
        self.added.append(request.seed)
        self.added_before[-1] += 1

    def step(self):
        self.steps.append([s.utterance.request.seed for s in self.sequences])
        self.added_before.append(0)
        return super().step()


class Gated(Watched):
    """Takes a step only when it is let."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.permits = threading.Semaphore(0)

    def step(self):
        assert self.permits.acquire(timeout=20), "nobody let it go on"
        return super().step()

    def let(self, steps=10_000):
        self.permits.release(steps)


class Opener:
    """Opens batches for a scheduler, and remembers them."""

    def __init__(self, kind, speech, slots):
        self.make = partial(kind, speech, slots=slots, capacity=256)
        self.opened = []

    def __call__(self):
        self.opened.append(self.make())
        return self.opened[-1]

    @property
    def batch(self):
        return self.opened[-1]


@asynccontextmanager
async def running(speech, kind=Watched, slots=2, queue=64):
    opener = Opener(kind, speech, slots)
    scheduler = Scheduler(opener, batch_size=slots, queue=queue)
    scheduler.start()
    try:
        yield scheduler, opener
    finally:
        for batch in opener.opened:
            if isinstance(batch, Gated):
                batch.let()
        await scheduler.close(0)
        assert not scheduler._thread.is_alive()


def request(speech, seed=0, text="Ciao", codes=12, **settings):
    """``seed`` is also what the watched decoders call it by. ``min_codes`` holds the untrained model to its length."""
    return Request(speech.prompt.prompt(text), codes, **{"min_codes": codes, "seed": seed, **settings})


def later(seconds=60.0):
    return time.monotonic() + seconds


async def read(ticket):
    """Codes and why they ended."""
    codes, reason = [], None
    async for part in ticket:
        codes += part.codes.tolist()
        reason = part.finish_reason or reason
    return codes, reason


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came about")


def test_requests_that_come_together_are_spoken_as_if_alone(speech):
    """Fails when parts go to another ticket, or one's settings to another's sequence."""
    requests = [
        request(speech, seed, TEXTS[seed % len(TEXTS)], codes=8 + 2 * (seed % 5), min_codes=0) for seed in range(15)
    ]
    settings = [(GREEDY, SAMPLED, PENALISED)[seed % 3] for seed in range(15)]
    engine = TransformersEngine(batch_size=1)
    alone = [engine.generate(speech, [one], how)[0] for one, how in zip(requests, settings, strict=True)]
    assert len({tuple(result.codes) for result in alone}) > 8

    async def run():
        async with running(speech, slots=4) as (scheduler, opener):
            tickets = [scheduler.submit(one, how, later()) for one, how in zip(requests, settings, strict=True)]
            results = await asyncio.gather(*map(read, tickets))
            assert scheduler.num_codes == sum(len(codes) for codes, _ in results)
            assert scheduler.num_running == scheduler.num_waiting == 0
            assert max(map(len, opener.batch.steps)) == 4
        return results

    assert asyncio.run(run()) == [(result.codes.tolist(), result.finish_reason) for result in alone]


def test_first_come_first_served_and_one_new_sequence_a_step(speech):
    """Fails when all free places are filled at once, which would hold up those under way, or out of order."""

    async def run():
        async with running(speech, slots=3) as (scheduler, opener):
            tickets = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in range(8)]
            await asyncio.gather(*map(read, tickets))
            return opener.batch

    batch = asyncio.run(run())
    assert batch.added == list(range(8))
    assert max(batch.added_before) == 1


def test_parts_come_in_one_call_a_step(speech):
    """Fails when each part wakes the event loop."""

    async def run():
        async with running(speech, slots=8) as (scheduler, _):
            loop, calls = asyncio.get_running_loop(), []
            inherited = loop.call_soon_threadsafe
            loop.call_soon_threadsafe = lambda *arguments, **settings: (
                calls.append(0) or inherited(*arguments, **settings)
            )
            tickets = [scheduler.submit(request(speech, seed, codes=40), GREEDY, later()) for seed in range(8)]
            results = await asyncio.gather(*map(read, tickets))
            assert sum(len(codes) for codes, _ in results) == 320
            assert len(calls) <= scheduler.num_steps < 160

    asyncio.run(run())


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_cancelled_request_frees_its_place_before_the_next_step(speech, victim):
    """0 runs, 1 and 2 wait. Fails when a place is held until the request would have ended, or another is cancelled."""

    async def run():
        async with running(speech, Gated, slots=1) as (scheduler, opener):
            tickets = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in range(3)]
            opener.batch.let(4)
            await until(lambda: len(opener.batch.steps) == 4)
            assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
            tickets[victim].cancel()
            assert scheduler.num_running + scheduler.num_waiting == 2
            opener.batch.let()
            assert await read(tickets[victim]) == ([], None)
            others = [ticket for ticket in tickets if ticket is not tickets[victim]]
            assert [len(codes) for codes, _ in await asyncio.gather(*map(read, others))] == [12, 12]
            tickets[victim].cancel()
            return [step[0] for step in opener.batch.steps]

    steps = Counter(asyncio.run(run()))
    # Of the running one 4 steps, and maybe one that had begun when it was cancelled.
    assert steps.pop(victim, 0) in ((4, 5) if victim == 0 else (0,))
    assert steps == Counter(dict.fromkeys({0, 1, 2} - {victim}, 13))


def test_whoever_waits_for_a_part_is_woken_by_its_cancellation(speech):
    async def run():
        async with running(speech, Gated) as (scheduler, _):
            ticket = scheduler.submit(request(speech), GREEDY, later())
            reader = asyncio.ensure_future(read(ticket))
            await asyncio.sleep(0.02)
            ticket.cancel()
            assert await asyncio.wait_for(reader, 5) == ([], None)

    asyncio.run(run())


def test_a_full_queue_says_when_to_come_back(speech):
    """Fails when the bound is not kept, or the estimate is no estimate."""

    async def run():
        async with running(speech, Gated, slots=2, queue=3) as (scheduler, opener):
            tickets = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in range(5)]
            await until(lambda: scheduler.num_running == 1)
            with pytest.raises(Busy) as first:
                scheduler.submit(request(speech), GREEDY, later())
            opener.batch.let(1)
            await until(lambda: scheduler.num_running == 2)
            assert first.value.retry_after == scheduling.UNKNOWN_SECONDS * 5 / 2
            await asyncio.sleep(1.0)
            opener.batch.let()
            await asyncio.gather(*map(read, tickets))
            seconds = list(scheduler._seconds)
            assert len(seconds) == 5
            assert 1.0 <= max(seconds) < 5
            opener.batch.permits = threading.Semaphore(0)
            tickets = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in range(5)]
            await until(lambda: scheduler.num_waiting == 4)
            with pytest.raises(Busy) as second:
                scheduler.submit(request(speech), GREEDY, later())
            assert second.value.retry_after == pytest.approx(max(1.0, np.mean(seconds) * 5 / 2))
            tickets[-1].cancel()
            scheduler.submit(request(speech), GREEDY, later()).cancel()

    asyncio.run(run())


def test_without_a_queue_every_place_can_be_had(speech):
    async def run():
        async with running(speech, Gated, slots=2, queue=0) as (scheduler, opener):
            tickets = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in range(2)]
            with pytest.raises(Busy):
                scheduler.submit(request(speech), GREEDY, later())
            opener.batch.let()
            await asyncio.gather(*map(read, tickets))
            await read(scheduler.submit(request(speech), GREEDY, later()))

    asyncio.run(run())


def test_a_deadline_ends_who_runs_and_who_waits(speech):
    """Fails when only one of the two is looked at, or a place is not given back."""

    async def run():
        async with running(speech, Gated, slots=1) as (scheduler, opener):
            late = scheduler.submit(request(speech, 0), GREEDY, later(0.4))
            waits = scheduler.submit(request(speech, 1), GREEDY, later(0.3))
            in_time = scheduler.submit(request(speech, 2), GREEDY, later())
            opener.batch.let(4)
            await asyncio.sleep(0.45)
            opener.batch.let()
            for ticket in (late, waits):
                with pytest.raises(TimedOut):
                    await read(ticket)
            assert len((await read(in_time))[0]) == 12
            assert 1 not in opener.batch.added

    asyncio.run(run())


class Fragile(Watched):
    """Fails at the third step of each of the first ``left`` batches."""

    left = 1

    def step(self):
        if len(self.steps) == 2 and type(self).left:
            type(self).left -= 1
            raise RuntimeError("out of memory")
        return super().step()


def test_a_failing_engine_costs_its_requests_and_no_more(speech, caplog):
    """Fails when the batch is not opened anew, or those who wait are ended too."""
    Fragile.left = 1
    alone = TransformersEngine(batch_size=1).generate(speech, [request(speech, 3)], GREEDY)[0].codes.tolist()

    async def run():
        async with running(speech, Fragile, slots=2) as (scheduler, opener):
            tickets = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in range(4)]
            results = await asyncio.gather(*map(read, tickets), return_exceptions=True)
            assert isinstance(results[0], Failed)
            assert isinstance(results[1], Failed | tuple), "by then it had a place, or waited still"
            assert [type(result) for result in results[2:]] == [tuple, tuple]
            assert results[3][0] == alone
            assert len(opener.opened) == 2
            assert scheduler.alive
            assert "out of memory" in caplog.text
            assert "memory" not in str(results[0]), "no internals"

    asyncio.run(run())


def test_an_engine_that_fails_again_and_again_is_told(speech):
    """Fails when failures are not counted, are forgotten after a step that went well, or count for ever."""
    Fragile.left = scheduling.MOST_FAILURES + 1

    async def run():
        async with running(speech, Fragile, slots=1) as (scheduler, _):
            alive = []
            while Fragile.left:
                with pytest.raises(Failed):
                    await read(scheduler.submit(request(speech), GREEDY, later()))
                alive.append(scheduler.alive)
            assert alive == [True] * (scheduling.MOST_FAILURES - 1) + [False] * 2
            await read(scheduler.submit(request(speech), GREEDY, later()))
            assert scheduler.alive

    asyncio.run(run())


def test_a_batch_that_cannot_be_opened_is_told_at_the_start(speech):
    def refuse():
        raise UserError("no memory for it")

    async def run():
        scheduler = Scheduler(refuse, batch_size=1, queue=1)
        with pytest.raises(UserError, match="no memory"):
            scheduler.start()
        assert not scheduler.alive
        with pytest.raises(Stopping):
            scheduler.submit(request(speech), GREEDY, later())
        await scheduler.close(1)

    asyncio.run(run())


class Picky(Watched):
    def add(self, index, request, sampling):
        if request.seed == 7:
            raise UserError("it can never fit")
        super().add(index, request, sampling)


def test_a_request_that_can_never_fit_reaches_only_itself(speech):
    """Fails when the mistake of one is taken for a failure of all."""

    async def run():
        async with running(speech, Picky, slots=2) as (scheduler, opener):
            tickets = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in (1, 7, 2)]
            results = await asyncio.gather(*map(read, tickets), return_exceptions=True)
            assert [type(result) for result in results] == [tuple, UserError, tuple]
            assert len(opener.opened) == 1

    asyncio.run(run())


def test_close_lets_those_under_way_end(speech):
    """Fails when close ends at once, or takes new requests; a second one is harmless."""

    async def run():
        async with running(speech, slots=1) as (scheduler, _):
            tickets = [scheduler.submit(request(speech, seed, codes=40), GREEDY, later()) for seed in range(3)]
            closing = asyncio.ensure_future(scheduler.close(30))
            await asyncio.sleep(0)
            with pytest.raises(Stopping):
                scheduler.submit(request(speech), GREEDY, later())
            assert [len(codes) for codes, _ in await asyncio.gather(*map(read, tickets))] == [40] * 3
            await closing
            assert not scheduler._thread.is_alive()
            await scheduler.close(30)

    asyncio.run(run())


def test_close_ends_what_takes_longer_than_its_grace(speech):
    """One runs, one waits, one keeps a place: none is left without a word."""

    async def run():
        async with running(speech, Gated, slots=2) as (scheduler, opener):
            kept = scheduler.submit(request(speech, 9, codes=2), GREEDY, later(), keep_place=True)
            opener.batch.let(3)
            await read(kept)
            tickets = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in range(2)]
            await until(lambda: scheduler.num_running == 2)
            closing = asyncio.ensure_future(scheduler.close(0.1))
            await asyncio.sleep(0.2)
            opener.batch.let()
            await closing
            for ticket in tickets:
                with pytest.raises(Stopping):
                    await read(ticket)
            with pytest.raises(Stopping):
                scheduler.follow(kept, request(speech))
            assert not scheduler._thread.is_alive()
            assert scheduler.num_running == scheduler.num_waiting == 0

    asyncio.run(run())


def test_a_reader_that_does_not_read_holds_up_nobody(speech):
    async def run():
        async with running(speech, slots=1) as (scheduler, _):
            slow = scheduler.submit(request(speech, 0, codes=60), GREEDY, later())
            quick = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in range(1, 4)]
            assert [len(codes) for codes, _ in await asyncio.gather(*map(read, quick))] == [12] * 3
            assert len((await read(slow))[0]) == 60, "and misses nothing"

    asyncio.run(run())


def test_what_follows_has_its_place_already(speech):
    """Fails when the place is given to one of those who wait, or the queue refuses it."""

    async def run():
        async with running(speech, slots=1, queue=2) as (scheduler, opener):
            first = scheduler.submit(request(speech, 0), GREEDY, later(), keep_place=True)
            others = [scheduler.submit(request(speech, seed), GREEDY, later()) for seed in (1, 2)]
            await read(first)
            await asyncio.sleep(0.05)
            assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
            with pytest.raises(Busy):
                scheduler.submit(request(speech), GREEDY, later())
            second = scheduler.follow(first, request(speech, 10), keep_place=True)
            await read(second)
            third = scheduler.follow(second, request(speech, 11))
            results = await asyncio.gather(*map(read, [third, *others]))
            assert [len(codes) for codes, _ in results] == [12] * 3
            assert opener.batch.added == [0, 10, 11, 1, 2]

    asyncio.run(run())


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_kept_place_is_given_back(speech, how):
    """Fails when a place that nobody fills is lost, or its deadline is only looked at in steps, of which there are
    none."""

    async def run():
        async with running(speech, slots=1) as (scheduler, _):
            first = scheduler.submit(request(speech, 0), GREEDY, later(0.8), keep_place=True)
            other = scheduler.submit(request(speech, 1), GREEDY, later())
            await read(first)
            if how == "cancelled":
                first.cancel()
            assert len((await asyncio.wait_for(read(other), 10))[0]) == 12
            with pytest.raises(TimedOut):
                scheduler.follow(first, request(speech))
            assert scheduler.num_running == 0

    asyncio.run(run())


def test_without_work_no_time_is_used(speech):
    """Fails when the thread looks again and again."""

    async def run():
        async with running(speech, slots=2) as (scheduler, _):
            await read(scheduler.submit(request(speech), GREEDY, later(), keep_place=True))
            await asyncio.sleep(0.05)
            waits, inherited = [], scheduler._changed.wait
            scheduler._changed.wait = lambda seconds: waits.append(seconds) or inherited(seconds)
            before = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - before < 0.1
            assert len(waits) <= 1

    asyncio.run(run())


def test_a_closed_event_loop_leaves_nothing_in_the_batch(speech):
    """Fails when the thread dies of a loop that is gone."""
    opener = Opener(Gated, speech, 2)
    scheduler = Scheduler(opener, batch_size=2, queue=2)
    scheduler.start()

    async def leave():
        scheduler.submit(request(speech, codes=60), GREEDY, later())

    async def run():
        await until(lambda: scheduler.num_running == 0)
        assert len((await read(scheduler.submit(request(speech, 1), GREEDY, later())))[0]) == 12
        await scheduler.close(5)

    asyncio.run(leave())
    opener.batch.let()
    asyncio.run(run())


def test_two_hundred_requests_that_come_go_and_time_out_leave_nothing_behind(speech):
    """Whatever is not cancelled or late has the codes that it has alone."""
    chance = random.Random(0)
    engine = TransformersEngine(batch_size=8)
    requests = [
        request(speech, seed, TEXTS[seed % 6], codes=2 * chance.randint(1, 15), min_codes=0) for seed in range(200)
    ]
    alone = engine.generate(speech, requests, SAMPLED)
    fates: Counter[str] = Counter()

    async def client(scheduler, number):
        await asyncio.sleep(chance.random() * 0.8)
        fate = chance.choices(["waits", "leaves", "late", "at once"], [6, 2, 1, 1])[0]
        try:
            ticket = scheduler.submit(
                requests[number], SAMPLED, later(0.05 * chance.random() if fate == "late" else 60)
            )
        except Busy:
            fates["busy"] += 1
            return
        if fate == "at once":
            ticket.cancel()
        try:
            reading = asyncio.ensure_future(read(ticket))
            if fate == "leaves":
                await asyncio.wait([reading], timeout=0.1 * chance.random())
                ticket.cancel()
            codes, reason = await asyncio.wait_for(reading, 60)
        except TimedOut:
            fates["timed out"] += 1
            return
        if reason is None:
            fates["cancelled"] += 1
        else:
            fates["spoken"] += 1
            assert (codes, reason) == (alone[number].codes.tolist(), alone[number].finish_reason)

    async def run():
        async with running(speech, slots=6, queue=30) as (scheduler, opener):
            await asyncio.gather(*(client(scheduler, number) for number in range(200)))
            await until(lambda: len(opener.batch) == 0)
            assert scheduler.num_running == scheduler.num_waiting == 0
            assert not scheduler._everyone()
            assert len(opener.opened) == 1
            assert scheduler.alive
        assert len([thread for thread in threading.enumerate() if thread.name == "scheduler"]) == 0

    asyncio.run(run())
    assert sum(fates.values()) == 200
    assert all(fates[fate] >= 3 for fate in ("spoken", "cancelled", "timed out")), fates
