"""Requests of many clients in one batch, which is decoded step by step in a thread of its own.

    coroutine ─submit─► waiting ─one a step─► Batch.add ┐
    coroutine ◄── Ticket ◄─once a step─ parts ◄─────────┴─ Batch.step, step, step …      (the scheduler's thread)

The thread alone touches the batch; all else happens under one lock that is never held during a step, so a coroutine
never waits for the model. Without work the thread sleeps on a condition variable.

**Order.** First come, first served. At most one new sequence comes in between two steps: its prompt is a pass over the
weights of its own, of about a step's time, so those under way slow down to half their pace at worst, and only while
the batch fills. With sequences of hundreds of steps, one a step never leaves places empty for long.

**Long texts.** A ticket that is submitted with ``keep_place`` keeps its place when it ends, for the request that
:meth:`Scheduler.follow` puts there: speech that began is never held up by those who wait, nor refused.

**When the engine breaks** in a step, its requests get :class:`Failed` and the batch is opened anew. ``alive`` is false
once that happens ``MOST_FAILURES`` times and no request ended well meanwhile, or where a step takes longer than
``LONGEST_STEP``.

Cost beside the engine's: some 10 µs a step and sequence.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine import Batch, CodesPart, Request
from llasa.serving.ticket import Busy, Failed, State, Stopping, Ticket, TimedOut

MOST_FAILURES = 3
LONGEST_STEP = 120.0
"""Seconds; the first step on a GPU may compile kernels."""
REMEMBERED = 32
"""Requests whose times an estimate is made of."""
UNKNOWN_SECONDS = 10.0
"""That a request is thought to take before one has ended."""
JOIN_SECONDS = 30.0

_log = logging.getLogger(__name__)
_Outcome = tuple[Ticket, CodesPart | Exception]


class Scheduler:
    """See this module.

    Args:
        open_batch: an empty batch; called in the scheduler's thread, at the start and after each failure.
        batch_size: places of the batch.
        queue: requests that may wait for a place; further ones are refused.

    Attributes:
        num_steps, num_codes: taken and spoken so far.
    """

    def __init__(self, open_batch: Callable[[], Batch], *, batch_size: int, queue: int) -> None:
        self.batch_size, self.queue = batch_size, queue
        self.num_steps = self.num_codes = 0
        self._open_batch = open_batch
        self._batch: Batch | None = None
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._following: deque[Ticket] = deque()  # each has a place already
        self._kept: dict[int, Ticket] = {}
        self._running: dict[int, Ticket] = {}
        self._cancelled: list[int] = []
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._names = itertools.count()
        self._failures = 0
        self._step_began: float | None = None
        self._stopping = self._ended = False
        self._thread: threading.Thread | None = None

    # --- what coroutines see -----------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        """Sequences that have a place, those included whose next request is being made."""
        return len(self._running) + len(self._kept) + len(self._following)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread lives and the engine works, as far as is known."""
        began = self._step_began
        stuck = began is not None and time.monotonic() - began > LONGEST_STEP
        running = self._thread is not None and self._thread.is_alive()
        return running and not stuck and self._failures < MOST_FAILURES

    def start(self) -> None:
        """Open the batch and take requests.

        Raises:
            Exception: what opening the batch raised.
        """
        assert self._thread is None, "started already"
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="scheduler", daemon=True)
        self._thread.start()
        opened.result()

    def submit(
        self, request: Request, sampling: SamplingConfig, deadline: float, *, keep_place: bool = False
    ) -> Ticket:
        """Take a request, to be called in an event loop.

        Args:
            deadline: by ``time.monotonic()``; then it is ended, waiting or running.
            keep_place: whether another request will :meth:`follow` it.

        Raises:
            Busy, Stopping
        """
        ticket = Ticket(next(self._names), request, sampling, deadline, keep_place, self._cancel)
        with self._changed:
            self.require_room()
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def require_room(self, more: int = 0) -> None:
        """Raises ``Busy`` or ``Stopping`` where a request would not be taken now, if ``more`` came before it."""
        if self._stopping or self._thread is None:
            raise Stopping
        if len(self._waiting) + self.num_running + more >= self.batch_size + self.queue:
            raise Busy(self.seconds_to_wait())

    def follow(self, before: Ticket, request: Request, *, keep_place: bool = False) -> Ticket:
        """The next request in the place of a ticket that has ended, and with its deadline and sampling.

        Raises:
            TimedOut, Stopping: the place is lost.
        """
        ticket = Ticket(next(self._names), request, before.sampling, before.deadline, keep_place, self._cancel)
        with self._changed:
            if self._kept.pop(before.index, None) is None:
                raise Stopping if self._ended else TimedOut
            before.state, ticket.began = State.ENDED, before.began
            self._following.append(ticket)
            self._changed.notify_all()
        return ticket

    async def close(self, grace_seconds: float) -> None:
        """Take no requests any more, let those under way end for so long, end the rest, and the thread."""
        with self._changed:
            self._stopping = True
        if self._thread is None:
            return
        await asyncio.to_thread(self._wait_until_idle, grace_seconds)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)  # a step that hangs is left to the process' end

    def stop(self) -> None:
        """Take no requests any more; what is under way goes on."""
        with self._changed:
            self._stopping = True

    def _wait_until_idle(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not (self._waiting or self.num_running), seconds)

    def seconds_to_wait(self) -> float:
        """Until all who wait now, and one more, have a place."""
        recent = list(self._seconds)
        mean = sum(recent) / len(recent) if recent else UNKNOWN_SECONDS
        return max(1.0, mean * (1 + len(self._waiting)) / self.batch_size)

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            self._forget(ticket)

    # --- under the lock ----------------------------------------------------------------------------------------------

    def _forget(self, ticket: Ticket) -> None:
        """Take a ticket out of wherever it is, which frees its place."""
        if ticket.state is State.ENDED:
            return
        if ticket.state is State.WAITING:
            (self._waiting if ticket.began is None else self._following).remove(ticket)
        elif ticket.state is State.RUNNING:
            del self._running[ticket.index]
            self._cancelled.append(ticket.index)  # the batch forgets it before the next step, if it has not yet
        else:
            del self._kept[ticket.index]
        ticket.state = State.ENDED
        if ticket.began is not None:
            self._seconds.append(time.monotonic() - ticket.began)
        self._changed.notify_all()  # whoever waits for work, or until nothing is under way

    def _everyone(self) -> list[Ticket]:
        return [*self._waiting, *self._following, *self._kept.values(), *self._running.values()]

    def _admit(self) -> Ticket | None:
        """Who gets a place now. Kept places are nobody's: only what is left is for those who wait."""
        if self._following:
            ticket = self._following.popleft()
        elif self._waiting and self.num_running < self.batch_size:
            ticket = self._waiting.popleft()
            ticket.began = time.monotonic()
        else:
            return None
        ticket.state = State.RUNNING
        self._running[ticket.index] = ticket
        return ticket

    def _sleep(self) -> None:
        """Until there is something to do; a kept place, and who waits for one, has a deadline."""
        while not (self._ended or self._running or self._following or self._cancelled):
            if self._waiting and self.num_running < self.batch_size:
                return
            seconds = min((ticket.deadline for ticket in self._everyone()), default=None)
            if seconds is not None and (seconds := seconds - time.monotonic()) <= 0:
                return
            self._changed.wait(seconds)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self, opened: Future[None]) -> None:
        try:
            self._batch = self._open_batch()
        except BaseException as error:
            self._stopping = True
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            while not self._ended:
                self._turn()
        finally:
            self._batch = None
            with self._changed:
                self._stopping, rest = True, self._everyone()
                for ticket in rest:
                    self._forget(ticket)
            self._deliver([(ticket, Stopping() if self._ended else Failed()) for ticket in rest])

    def _turn(self) -> None:
        """Sleep if there is nothing to do; then one new sequence at most, and one step."""
        outcomes: list[_Outcome] = []
        with self._changed:
            self._sleep()
            now = time.monotonic()
            for ticket in self._everyone():
                if ticket.deadline <= now:
                    self._forget(ticket)
                    outcomes.append((ticket, TimedOut()))
            cancelled, self._cancelled = self._cancelled, []
            newcomer = None if self._ended else self._admit()
        try:
            self._step_began = time.monotonic()
            self._step(cancelled, newcomer, outcomes)
        except Exception:  # an engine may fail in any way, and its thread serves those who come later
            _log.exception("the engine failed")
            outcomes += self._fail()
        finally:
            self._step_began = None
        self._deliver(outcomes)

    def _step(self, cancelled: list[int], newcomer: Ticket | None, outcomes: list[_Outcome]) -> None:
        """One step of the batch; appends to ``outcomes``, which count even if the engine fails later on."""
        if self._batch is None:
            self._batch = self._open_batch()
        for index in cancelled:
            self._batch.cancel(index)
        if newcomer is not None:
            try:
                self._batch.add(newcomer.index, newcomer.request, newcomer.sampling)
            except UserError as mistake:
                with self._changed:
                    self._forget(newcomer)
                outcomes.append((newcomer, mistake))
        if not len(self._batch):
            return
        parts = self._batch.step()
        self.num_steps += 1
        with self._changed:
            for part in parts:
                ticket = self._running.get(part.index)
                if ticket is None:  # cancelled during this step
                    continue
                self.num_codes += len(part.codes)
                outcomes.append((ticket, part))
                if part.finish_reason is None:
                    continue
                self._failures = 0
                if ticket.keep_place:
                    del self._running[ticket.index]
                    ticket.state, self._kept[ticket.index] = State.KEPT, ticket
                else:
                    self._forget(ticket)

    def _fail(self) -> list[_Outcome]:
        """Everyone in the batch is told, and the next step opens another."""
        with self._changed:
            failed = list(self._running.values())
            for ticket in failed:
                self._forget(ticket)
            self._cancelled = []
        # An engine may hold requests beyond its batch (vLLM); one that is broken may not be able to let them go.
        batch, self._batch = self._batch, None
        if batch is not None:
            with contextlib.suppress(Exception):
                for ticket in failed:
                    batch.cancel(ticket.index)
        del batch  # before another is opened, for there may be memory for one only
        self._failures += 1
        return [(ticket, Failed()) for ticket in failed]

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        """One call into each event loop, of which there is one but in tests."""
        for loop in {ticket.loop for ticket, _ in outcomes}:
            theirs = [(ticket, outcome) for ticket, outcome in outcomes if ticket.loop is loop]
            try:
                loop.call_soon_threadsafe(_receive, theirs)
            except RuntimeError:  # the loop was closed, and nobody reads its tickets
                with self._changed:
                    for ticket, _ in theirs:
                        self._forget(ticket)


def _receive(outcomes: list[_Outcome]) -> None:
    for ticket, outcome in outcomes:
        ticket.receive(outcome)
