"""Bodies on their way in: read within a time and a size, and unpacked within another size."""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from timestore_pipeline.http.problems import Problem, later, rejected, too_large

_GZIP = 31
"""What zlib calls the format gzip."""

_UNPACKED_AT_ONCE = 1 << 20
_MOST_DRAINED_BYTES = 8 << 20
_DRAIN_SECONDS = 2.0


class Room:
    """How many bytes of bodies are held, over all requests."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def take(self, size: int) -> None:
        """Count bytes as held.

        Raises:
            Problem: there would be too many (503); nothing was counted.
        """
        if self._held and self._held + size > self._limit:
            raise later(503, "busy", "the server holds as many bytes of other requests as it may; try again", 1)
        self._held += size

    def give_back(self, size: int) -> None:
        """Count bytes as held no more."""
        self._held -= size


async def read_body(request: Request, room: Room, max_bytes: int, seconds: float) -> bytes:
    """Return a request's body, whose bytes the caller gives back to ``room``.

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
                room.take(len(chunk))
                content += chunk
    except TimeoutError:
        room.give_back(len(content))
        raise Problem(
            408, "too-slow", f"the body was not there within {seconds:g} s", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        room.give_back(len(content))
        raise Problem(400, "disconnected", "the client hung up before its body was there") from None
    except BaseException:
        room.give_back(len(content))
        raise
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


def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a body without its Content-Encoding.

    Raises:
        Problem: the encoding is not known (415), the body damaged (422) or too large when unpacked (413).
    """
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            return _gunzip(body, max_bytes)
    detail = "the Content-Encoding is not known; send gzip or none"
    raise Problem(415, "unknown-encoding", detail, {"Accept-Encoding": "gzip"})


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    content = bytearray()
    rest = body
    try:
        while rest:
            member = zlib.decompressobj(_GZIP)
            while not member.eof:
                wanted = min(_UNPACKED_AT_ONCE, max_bytes + 1 - len(content))
                piece = member.decompress(rest, wanted)
                content += piece
                if len(content) > max_bytes:
                    raise too_large(f"unpacked, the body has more than {max_bytes:,} bytes; send fewer rows")
                rest = member.unconsumed_tail
                if not member.eof and not rest and len(piece) < wanted:
                    raise rejected("the body is no whole gzip: its end is missing")
            rest = member.unused_data
    except zlib.error as error:
        raise rejected(f"the body is no gzip: {error}") from error
    if not body:
        raise rejected("the body is no whole gzip: it is empty")
    return bytes(content)
