"""Text of others, made inert (short, because whoever shows text uses these functions, and no others).

Names, reasons and values of cells are shown, and do nothing. There is one function for each place where text could act.
"""

from __future__ import annotations

import re

_SCHEME = re.compile(r"\b(https?)://", re.IGNORECASE)


def visible(text: str) -> str:
    """Return ``text`` as one line: all that could move a cursor, break the line or reorder it is spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def visible_lines(text: str) -> str:
    """Return ``text`` as :func:`visible` does, line by line."""
    return text if text.isprintable() else "\n".join(map(visible, text.split("\n")))


def json_escaped(document: str) -> str:
    """Return a JSON document of the same meaning in which all that a terminal could act on is escaped.

    Breaks of lines stay: within a text JSON has none.
    """
    if document.isprintable():
        return document
    return "".join(char if char.isprintable() or char == "\n" else _json_escape(char) for char in document)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def as_code(text: str) -> str:
    """Return Markdown that shows ``text`` as it is, in one line: within code nothing is markup, an entity or a link.

    Escapes would not do: renderers look for addresses in the text that is left when these are resolved.
    """
    shown = visible(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    # One space on either side is taken away by who reads it; without, a backtick at the end would be part of the fence.
    return f"{fence} {shown} {fence}" if shown.strip() else "` `"


def unlinked(text: str) -> str:
    """Return ``text`` so that whoever looks for addresses in plain text, to make links of them, finds none.

    Example:
        >>> unlinked("see http://example.org")
        'see http[:]//example.org'
    """
    return _SCHEME.sub(r"\1[:]//", visible_lines(text))
