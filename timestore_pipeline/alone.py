"""Each dataset alone: an error of one stays with it (short, because all loops over datasets share nothing else).

Whatever goes wrong with one dataset is an error of that dataset, and the others go on (invariant 9). Every loop over
datasets does its part for each of them in :func:`alone`, and catches :class:`TimestoreError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timestore_pipeline.errors import DatasetFailed, TimestoreError
from timestore_pipeline.inert import log_named

log = log_named(__name__)


@contextmanager
def alone(dataset: str = "") -> Iterator[None]:
    """Let nothing but errors that say what is wrong out of the block, in which ``dataset`` is worked on.

    Raises:
        TimestoreError: what was raised, or :class:`DatasetFailed` in the place of anything else but an interrupt.
    """
    try:
        yield
    except TimestoreError:
        raise
    except Exception as error:
        # Nobody expected it, so where it came from is worth more than its message.
        log.debug("%s: %s", dataset, type(error).__name__, exc_info=True)
        raise DatasetFailed(dataset, error) from error
