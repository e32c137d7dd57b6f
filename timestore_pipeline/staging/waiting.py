"""A batch that waits in a writer for its answer, and the future that gets it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import pyarrow as pa

from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.staging.frame_rows import Incoming, Sent
from timestore_pipeline.staging.receipts import Receipt
from timestore_pipeline.store import Store


class _Writing(Protocol):
    """The writer that answers."""

    def is_writing_thread(self) -> bool:
        """Whether this is called on the thread that commits."""
        ...

    def check_may_wait(self, future: Future[Receipt] | None = None) -> None:
        """Raise where the thread that commits would wait for an answer of its own."""
        ...

    def end(self, reason: str) -> None:
        """Take nothing more, and commit nothing more."""
        ...


class Promise(Future[Receipt]):
    """A batch's future. Its callbacks run on the writing thread, which they neither kill nor let wait for itself."""

    def __init__(self, writer: _Writing) -> None:
        super().__init__()
        self._writer = writer

    def result(self, timeout: float | None = None) -> Receipt:
        """Return the receipt once the batch has its answer, or raise the error that this is."""
        self._writer.check_may_wait(self)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error that the answer is once it is there; None where it is a receipt."""
        self._writer.check_may_wait(self)
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[Receipt]], object]) -> None:
        """Call ``fn`` once the answer is there; what it raises goes no further than the writer."""
        super().add_done_callback(lambda _: self._call(fn))

    def _call(self, callback: Callable[[Future[Receipt]], object]) -> None:
        try:
            callback(self)
        except Exception:
            raise  # which a future logs
        except BaseException as error:
            if not self._writer.is_writing_thread():
                raise
            self._writer.end(f"was ended by {type(error).__name__} in a callback of one of its futures")


@dataclass(eq=False)
class Waiting:
    """A batch that has no answer yet."""

    store: Store
    dataset: str
    table: pa.Table
    batch_id: str | None
    source: str
    sent: Sent
    future: Future[Receipt]
    deadline: float
    replaces: TimeRange | None = None
    retries: int = 0
    bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.bytes = self.table.nbytes

    @cached_property
    def incoming(self) -> Incoming:
        """The batch with its id, for which its content may have to be hashed.

        Only the writing thread asks: callers that hash at the same time are in each other's way, at the interpreter's
        lock, for longer than it takes to hash their batches one after the other.

        Raises:
            BatchRejected: its id or source is one that no ledger can hold.
        """
        found = Incoming.of(self.dataset, self.table, self.batch_id, self.source, self.sent)
        if self.replaces is None:
            return found
        return found.replacing(self.store, self.dataset, self.replaces, named=self.batch_id is not None)
