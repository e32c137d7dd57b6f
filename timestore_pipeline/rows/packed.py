"""What is in gzip, piece by piece: in a time that grows with its bytes, whatever they say."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import IO

from timestore_pipeline.rows.reasons import TooLarge, UnreadableFile

_GZIP = 31
"""What zlib calls the format gzip."""

_READ_AT_ONCE = 1 << 14
_UNPACKED_AT_ONCE = 1 << 18

MOST_MEMBERS = 10_000
"""So many members may follow one another: each costs, and may hold nothing."""


def unpacked(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield what is in gzip, of which ``read`` gives the next bytes, none at the end.

    Raises:
        UnreadableFile: it is damaged, not whole, or has too many members.
    """
    rest, members = read(_READ_AT_ONCE), 0
    if not rest:
        raise UnreadableFile("it is no whole gzip: it is empty")
    try:
        while rest:
            members += 1
            if members > MOST_MEMBERS:
                raise TooLarge(f"it has more than {MOST_MEMBERS:,} gzip members; pack it as one")
            member = zlib.decompressobj(_GZIP)
            while not member.eof:
                piece = member.decompress(rest, _UNPACKED_AT_ONCE)
                if piece:
                    yield piece
                rest = member.unconsumed_tail or (b"" if member.eof else read(_READ_AT_ONCE))
                if not (rest or piece or member.eof):
                    raise UnreadableFile("it is no whole gzip: its end is missing")
            rest = member.unused_data or read(_READ_AT_ONCE)
    except zlib.error as error:
        raise UnreadableFile(f"it is no gzip, or damaged: {error}") from error


def unpacked_start(stream: IO[bytes], size: int) -> bytes:
    """Return the first bytes of what is in a gzip file, ``size`` of them where there are as many.

    Raises:
        UnreadableFile: as :func:`unpacked`, as far as it was looked at.
    """
    start = bytearray()
    for piece in unpacked(stream.read):
        start += piece
        if len(start) >= size:
            break
    return bytes(start[:size])
