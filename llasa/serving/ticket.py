"""What a client's coroutine holds while the scheduler's thread speaks for it, and the errors it may meet.

    scheduler's thread ─call_soon_threadsafe, once a step─► Ticket ─async for─► CodesPart, CodesPart, …

A reader that is slow holds up nobody: its codes wait here, at most ``max_codes`` of a request, two bytes each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum

from llasa.config import SamplingConfig
from llasa.generation.engine import CodesPart, Request


class Busy(Exception):
    """The queue is full. ``retry_after``: seconds until those who wait now will have a place, by what recent requests
    took."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"all places are taken, the next is free in about {retry_after:.0f} s")
        self.retry_after = retry_after


class Stopping(Exception):
    """The server is told to stop."""


class Failed(Exception):
    """The engine or the codec broke under this request; the server's log tells why, the client is told nothing."""


class TimedOut(Exception):
    """The request's deadline passed."""


class State(Enum):
    """Where a ticket is; changed under the scheduler's lock alone."""

    WAITING = "waiting"
    RUNNING = "running"
    KEPT = "kept"
    """Spoken, and its place waits for what follows."""
    ENDED = "ended"


class Ticket:
    """A request under way: an asynchronous iterator of its parts, the last of which has a ``finish_reason``.

    For coroutines of the event loop that submitted it.

    Raises:
        TimedOut, Failed, Stopping, UserError: from the iterator, after the parts that came before.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        sampling: SamplingConfig,
        deadline: float,
        keep_place: bool,
        cancel: Callable[[Ticket], None],
    ) -> None:
        self.index, self.request, self.sampling, self.deadline = index, request, sampling, deadline
        self.keep_place = keep_place
        self.state = State.WAITING
        self.began: float | None = None
        """When its place in the batch became its own, or that of the ticket it follows."""
        self.loop = asyncio.get_running_loop()
        self._cancel = cancel
        self._parts: deque[CodesPart] = deque()
        self._over: Exception | bool = False
        """Why no part comes any more: an error, or True."""
        self._changed = asyncio.Event()

    def cancel(self) -> None:
        """Give the place back before the next step; nothing comes any more. At any moment, also after the end."""
        self._cancel(self)
        self._parts.clear()
        self._finish(True)

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> CodesPart:
        while not self._parts:
            if isinstance(self._over, Exception):
                raise self._over
            if self._over:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._parts.popleft()

    def receive(self, outcome: CodesPart | Exception) -> None:
        """In the event loop: the scheduler's next word to this ticket."""
        if self._over:  # cancelled, and this was on its way
            return
        if isinstance(outcome, Exception):
            self._finish(outcome)
            return
        self._parts.append(outcome)
        if outcome.finish_reason is not None:
            self._over = True
        self._changed.set()

    def _finish(self, over: Exception | bool) -> None:
        self._over = self._over or over
        self._changed.set()
