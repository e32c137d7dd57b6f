"""Bodies on their way in: read within a time and a size, and unpacked within another size."""

from __future__ import annotations

import asyncio
import io
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Self

from starlette.requests import ClientDisconnect, Request

from timestore_pipeline.http.problems import Problem, later, rejected, too_large
from timestore_pipeline.rows.bounds import unpacked
from timestore_pipeline.rows.reasons import TooLarge, UnreadableFile

_MOST_DRAINED_BYTES = 8 << 20
_DRAIN_SECONDS = 2.0


class Room:
    """How many bytes are held of all requests: bodies as they came, what was unpacked of them, and their rows.

    Half of it is the most for one client, as long as that is more than one request.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held = 0
        self._held_by: Counter[str | None] = Counter()

    def holding(self, client: str | None) -> Holding:
        """Return what one request of a client holds: nothing yet. Without tokens there is one client, None."""
        return Holding(self, client)

    def take(self, holding: Holding, size: int) -> None:
        """Count more bytes as held.

        Raises:
            Problem: there would be too many (503); these are not counted.
        """
        client = holding.client
        with self._lock:
            share = self._limit if client is None else self._limit // 2
            for held, most in ((self._held, self._limit), (self._held_by[client], share)):
                # A request that is alone may be as large as its own bounds allow.
                if held > holding.bytes and held + size > most:
                    raise later(503, "busy", "as many bytes of other requests are held as may be; try again", 1)
            self._held += size
            self._held_by[client] += size
            holding.bytes += size

    def give_back(self, holding: Holding, size: int) -> None:
        """Count bytes as held no more."""
        with self._lock:
            self._held -= size
            self._held_by[holding.client] -= size
            if not self._held_by[holding.client]:
                del self._held_by[holding.client]
            holding.bytes -= size


class Holding:
    """The bytes that one request holds, until the end of the ``with`` block."""

    def __init__(self, room: Room, client: str | None) -> None:
        self._room = room
        self.client = client
        self.bytes = 0

    def take(self, size: int) -> None:
        """Count more bytes as held.

        Raises:
            Problem: there would be too many (503); these are not counted.
        """
        self._room.take(self, size)

    def give_back(self, size: int) -> None:
        """Count bytes as held no more."""
        self._room.give_back(self, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.give_back(self, self.bytes)


async def read_body(request: Request, holding: Holding, max_bytes: int, seconds: float) -> bytes:
    """Return a request's body, whose bytes are counted as held.

    Raises:
        Problem: it is too large (413), comes too slowly (408), or there is no room for it (503).
    """
    _check_length(request, max_bytes)
    content = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(content) + len(chunk) > max_bytes:
                    raise _too_many_bytes(max_bytes)
                holding.take(len(chunk))
                content += chunk
    except TimeoutError:
        raise Problem(
            408, "too-slow", f"the body was not there within {seconds:g} s", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Problem(400, "disconnected", "the client hung up before its body was there") from None
    return bytes(content)


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_many_bytes(max_bytes)


def _too_many_bytes(max_bytes: int) -> Problem:
    return too_large(f"the body has more than {max_bytes:,} bytes; send fewer rows in each request")


async def drain(request: Request) -> bool:
    """Read what a client still sends, so that it can hear the answer; False where that is too much or too slow."""
    left = _MOST_DRAINED_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    return False
    except (TimeoutError, ClientDisconnect, RuntimeError):  # Starlette's own, where it was read in part
        return False
    return True


def pieces_of(body: bytes, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """Yield a body without its Content-Encoding, piece by piece.

    Raises:
        Problem: the encoding is not known (415), the body damaged (422) or too large when unpacked (413).
    """
    match encoding.strip().lower():
        case "" | "identity":
            yield body
        case "gzip" | "x-gzip":
            yield from _unpacked(body, max_bytes)
        case _:
            detail = "the Content-Encoding is not known; send gzip or none"
            raise Problem(415, "unknown-encoding", detail, {"Accept-Encoding": "gzip"})


def _unpacked(body: bytes, max_bytes: int) -> Iterator[bytes]:
    size = 0
    try:
        for piece in unpacked(io.BytesIO(body).read):
            size += len(piece)
            if size > max_bytes:
                raise too_large(f"unpacked, the body has more than {max_bytes:,} bytes; send fewer rows")
            yield piece
    except TooLarge as error:
        raise too_large(f"the body: {error}") from error
    except UnreadableFile as error:
        raise rejected(f"the body: {error}") from error
