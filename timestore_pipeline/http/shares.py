"""How requests share a server: so many at a time, in turns at what is scarce, with one answer for all who ask."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from timestore_pipeline.http.problems import later

T = TypeVar("T")


class Slots:
    """Requests that go on at the same time, of all clients and of each token."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._taken = 0
        self._taken_by: Counter[str] = Counter()

    def slot(self) -> Slot:
        """Return a slot for a request of a client that is not known yet.

        Raises:
            Problem: all are taken (503).
        """
        if self._taken >= self._most:
            raise later(503, "busy", "too many requests at the same time; try again", 1)
        self._taken += 1
        return Slot(self)

    def name(self, client: str) -> None:
        """Count one for a client.

        Raises:
            Problem: it has as many as it may (503).
        """
        if self._taken_by[client] >= self._most_of_one:
            raise later(503, "busy", f"{self._most_of_one} requests of this token go on, and no more may; try again", 1)
        self._taken_by[client] += 1

    def give_back(self, client: str | None) -> None:
        """Count one no more."""
        self._taken -= 1
        if client is not None:
            self._taken_by[client] -= 1
            if not self._taken_by[client]:
                del self._taken_by[client]


class Slot:
    """The slot of one request."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._client: str | None = None

    def of(self, client: str) -> None:
        """Say whose request it is.

        Raises:
            Problem: the client has as many slots as it may (503).
        """
        if self._client is None:
            self._slots.name(client)
            self._client = client

    def give_back(self) -> None:
        """The request is done."""
        self._slots.give_back(self._client)


class Turns:
    """Lets requests of one client through to what is scarce only so many at a time, in the order in which they came.

    Where there are no tokens there is one client, which has it all.
    """

    def __init__(self, most_of_one: int) -> None:
        self._most_of_one = most_of_one
        self._waiting: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, client: str | None) -> AsyncIterator[None]:
        """Wait for a turn, which lasts as long as the block."""
        if client is None:
            yield
            return
        semaphore, waiting = self._waiting.get(client, (asyncio.Semaphore(self._most_of_one), 0))
        self._waiting[client] = (semaphore, waiting + 1)
        try:
            async with semaphore:
                yield
        finally:
            waiting = self._waiting[client][1] - 1
            if waiting:
                self._waiting[client] = (semaphore, waiting)
            else:
                del self._waiting[client]


class Remembered(Generic[T]):
    """One answer for all who ask within ``seconds``: what ``find`` returns or raises."""

    def __init__(self, find: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._find = find
        self._seconds = seconds
        self._task: asyncio.Task[T] | None = None
        self._until = 0.0

    async def now(self) -> T:
        """Return what holds now, however many ask; one of them who goes away takes it from nobody."""
        if self._task is None or (self._task.done() and time.monotonic() >= self._until):
            self._task = asyncio.ensure_future(self._found())
        return await asyncio.shield(self._task)

    async def _found(self) -> T:
        try:
            return await self._find()
        finally:
            self._until = time.monotonic() + self._seconds
