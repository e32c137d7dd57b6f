"""Text of others, made inert: whoever shows text uses these functions, and no others.

Names, reasons and values of cells are shown, and do nothing. There is one function for each place where text could act.
"""

from __future__ import annotations

import logging
import re

_SCHEME = re.compile(r"\b(https?)://", re.IGNORECASE)
_FORMATTER = logging.Formatter()


def visible(text: str) -> str:
    """Return ``text`` as one line: all that could move a cursor, break the line or reorder it is spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def visible_lines(text: str) -> str:
    """Return ``text`` as :func:`visible` does, line by line."""
    return text if text.isprintable() else "\n".join(map(visible, text.split("\n")))


def as_entry(text: str) -> str:
    """Return ``text`` visible, and indented but for its first line: no line of it looks like another entry of a log."""
    first, *more = visible_lines(text).split("\n")
    return "\n".join([first, *(line if line.startswith(" ") else f"  {line}" for line in more)])


def log_named(name: str) -> logging.Logger:
    """Return the logger of that name, which makes entries of all that is logged by it, and of tracebacks."""
    log = logging.getLogger(name)
    log.addFilter(_make_entry)
    return log


def _make_entry(record: logging.LogRecord) -> bool:
    record.msg, record.args = as_entry(record.getMessage()), ()
    if record.exc_info:
        _, _, record.exc_text = as_entry(f"\n{_FORMATTER.formatException(record.exc_info)}").partition("\n")
    return True


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
    """Return an entry so that whoever looks for addresses in plain text, to make links of them, finds none.

    Example:
        >>> unlinked("see http://example.org")
        'see http[:]//example.org'
    """
    return _SCHEME.sub(r"\1[:]//", as_entry(text))
