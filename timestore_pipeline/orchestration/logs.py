"""Logs and failures of runs and ticks (short, because it is the only way to write any).

What comes from outside is text in them. The UI makes links of addresses in a message, and whoever follows a daemon in a
terminal gets every character of it.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import dagster as dg

from timestore_pipeline.inert import unlinked


class _HasLog(Protocol):
    @property
    def log(self) -> logging.Logger: ...


class InertLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that makes inert what a message is filled with."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log ``msg``, filled with ``args``."""
        if self.isEnabledFor(level):
            text = str(msg) % args if args else str(msg)
            self.logger.log(level, "%s", unlinked(text), **kwargs)


def failure(reason: str) -> dg.Failure:
    """Return the failure of a step that trying again does not help."""
    return dg.Failure(unlinked(reason), allow_retries=False)


def log_of(context: _HasLog) -> InertLog:
    """Return the log of a run, a tick or an IO manager's context."""
    return InertLog(context.log, {})
