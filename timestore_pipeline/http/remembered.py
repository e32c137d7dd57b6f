"""An answer that is looked up once for all who ask at the same time, or a moment later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """What ``look`` returns or raises, which holds for ``seconds``."""

    def __init__(self, look: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._task: asyncio.Task[T] | None = None
        self._until = 0.0

    async def now(self) -> T:
        """Return what holds now, however many ask; one of them who goes away takes it from nobody."""
        if self._task is None or (self._task.done() and time.monotonic() >= self._until):
            self._task = asyncio.ensure_future(self._looked())
        return await asyncio.shield(self._task)

    async def _looked(self) -> T:
        try:
            return await self._look()
        finally:
            self._until = time.monotonic() + self._seconds
