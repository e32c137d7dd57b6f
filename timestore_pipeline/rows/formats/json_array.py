"""A JSON array of rows, which comes as a body only. It is written as JSON lines before it is read.

Each row is written as it was, so that no number is rounded on the way.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import IO, ClassVar

from timestore_pipeline.rows.bounds import LONG_ROW, MOST_ROW_BYTES, Bounds
from timestore_pipeline.rows.formats.json_lines import STRICT, JsonLines
from timestore_pipeline.rows.reasons import NoRows, UnreadableFile, UnreadableRow

_READ_AT_ONCE = 1 << 16
# Each value of a row becomes an object, of many times its bytes.
_MOST_VALUES = 500_000
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonArray(JsonLines):
    """One JSON document."""

    name = None
    media_types = ("application/json",)
    body_schema: ClassVar = {"type": "array", "items": {"type": "object"}}
    is_rewritten = True

    def rewrite(self, body: IO[bytes], file: IO[bytes], bounds: Bounds, check: Callable[[int], None]) -> None:
        """Write each row as a line."""
        window = _Buffer(body)
        rows = 0
        try:
            if window.next() != "[":
                raise UnreadableFile(
                    "the body is no JSON array; send [{…}, …], or one object per line as application/x-ndjson"
                )
            window.pass_by()
            while window.next() != "]":
                if rows:
                    if window.next() != ",":
                        raise ValueError("a comma is missing between two rows")
                    window.pass_by()
                    window.next()
                row, text = window.row()
                if not isinstance(row, dict):
                    raise ValueError("it is no JSON object")
                check(rows + 1)
                bounds.check_columns(len(row))
                rows += 1
                # Outside of texts line breaks are only space, and within them JSON has none.
                file.write(text.replace("\n", " ").replace("\r", " ").encode() + b"\n")
            window.pass_by()
            rest = window.next()
        except UnicodeDecodeError as error:
            raise UnreadableFile(f"the body is no UTF-8: {error.reason}, behind row {rows}") from error
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise UnreadableRow(rows + 1, reason) from error
        if rest:
            raise UnreadableFile("the body has something behind its JSON array")
        if not rows:
            raise NoRows("the JSON array has no rows")


class _Buffer:
    """The part of a text that is looked at; it moves on, and grows for a row that does not fit."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._ended = False

    def next(self) -> str:
        """Go to the next character that is no space and return it, nothing at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def pass_by(self) -> None:
        """Go on by a character."""
        self._at += 1

    def row(self) -> tuple[object, str]:
        """Return the value that begins here, and how it was written; go behind it.

        Raises:
            ValueError, RecursionError: there is none, or a too long one.
        """
        while True:
            try:
                value, end = STRICT.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # It may only be that its end is not here yet.
                if len(self._text) - self._at > MOST_ROW_BYTES:
                    raise ValueError(LONG_ROW) from error
                if self._text.count(",", self._at) > _MOST_VALUES:
                    raise ValueError(f"it has more than {_MOST_VALUES:,} values") from error
                if not self._read_on():
                    raise ValueError(error.msg) from error
            else:
                text = self._text[self._at : end]
                self._at = end
                return value, text

    def _read_on(self) -> bool:
        """Read as much again as there is; False where the text has ended."""
        if self._ended:
            return False
        left = self._text[self._at :]
        piece = self._stream.read(max(_READ_AT_ONCE, len(left)))
        self._ended = not piece
        self._text, self._at = left + self._decoder.decode(piece, final=self._ended), 0
        return True
