"""The writer: many small batches from many callers, committed in groups, each acknowledged by itself.

One thread per writer takes whatever waits, stages it as one segment and one ledger transaction, and answers each
batch's future once that is durable (invariant 1). While it works, the next group gathers.
"""

from __future__ import annotations

import atexit
import os
import random
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Self

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import TimestoreError, WriterClosed, WriterFull, WriterWaitsForItself
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.counters import DROPPED_BATCHES, RETRIED_BATCHES
from timestore_pipeline.model.windows import Moment
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.staging.direct import publish_if_direct, warn_of_direct_write
from timestore_pipeline.staging.frame_rows import NOT_SENT, Sent, range_of, stage_together
from timestore_pipeline.staging.frames import Frame, as_table
from timestore_pipeline.staging.load import Answer, Outlook
from timestore_pipeline.staging.receipts import Receipt
from timestore_pipeline.staging.retry import REFUSALS, count_refusals, pause_before
from timestore_pipeline.staging.waiting import Promise, Waiting
from timestore_pipeline.store import Store

log = log_named(__name__)

MAX_WAITING_BYTES = 64 << 20
"""Bytes of unanswered batches that a writer holds, unless told otherwise."""

_MOST_BATCHES_PER_GROUP = 1_000
_MOST_BYTES_PER_GROUP = 64 << 20

# Callers that wait for their answer come back a moment after they got it. Waiting for them, for no longer than a commit
# takes, spares them a second commit: else two halves take turns, each with commits of its own. A caller that is alone
# is never waited for, and those that do not come back are waited for ever less.
_LONGEST_GATHERING_SECONDS = 0.02
_LEAST_TRUST = 1 / 64


class Writer:
    """Commits batches of one dataset in groups. Thread-safe; use it as a context manager, or :meth:`close` it.

    Callbacks of its futures run on the thread that commits: what they take, all other batches wait for. They may
    :meth:`submit`, and must not wait for another answer of the same writer. One that raises ``SystemExit``, or whatever
    else is no ``Exception``, ends the writer: what is not committed yet is answered with WriterClosed.

    Example:
        >>> with timestore.writer("weather") as writer:
        ...     futures = [writer.submit(table) for table in tables]
        ...     receipts = [future.result() for future in futures]
    """

    def __init__(
        self,
        store: Store,
        dataset: str,
        *,
        wait_seconds: float = 0.0,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        source: str = "writer()",
    ) -> None:
        """Start a writer.

        Args:
            store: the installation; it must stay open for longer than the writer.
            dataset: a declared dataset.
            wait_seconds: how long each batch is tried again, at growing intervals, while there is no room for it.
            max_waiting_bytes: bytes of unanswered batches to hold; a caller with more waits in :meth:`submit`.
            source: where the data comes from, for lineage.

        Raises:
            UnknownDataset: the dataset is not declared.
        """
        self._store = store
        self._spec: DatasetSpec = store.datasets[dataset]
        self._wait_seconds = wait_seconds
        self._max_waiting_bytes = max_waiting_bytes
        self._source = source
        self._process = os.getpid()
        self._outlook: Outlook | None = None
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        # The writing thread waits apart from the callers: it is not woken up by every batch of a group.
        self._arrived = threading.Condition(lock)
        self._queue: deque[Waiting] = deque()
        self._unanswered = 0
        self._waiting_bytes = 0
        self._awaited = 1
        self._trust = 1.0
        self._turned_away = 0
        self._last_seconds = 0.0
        self._closed = ""
        self._ended = False
        self._in_hand: list[Waiting] = []
        warn_of_direct_write(store, dataset)
        # A daemon, so that a program which forgets to close the writer can end; atexit writes what it left.
        self._thread = threading.Thread(target=self._run, name=f"writer-of-{dataset}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def dataset(self) -> str:
        """The dataset that it writes to."""
        return self._spec.name

    def submit(
        self,
        data: Frame,
        batch_id: str | None = None,
        source: str | None = None,
        timeout: float | None = None,
        *,
        sent: Sent = NOT_SENT,
        replace: tuple[Moment, Moment] | None = None,
    ) -> Future[Receipt]:
        """Hand over one batch; its future gets the receipt once it is acknowledged, or an error as of ``stage()``.

        The future can be awaited: ``await asyncio.wrap_future(writer.submit(table, timeout=0))``. ``data`` must not be
        changed before it is done.

        Args:
            data: as for ``stage()``.
            batch_id: as for ``stage()``.
            source: where this batch comes from, if not from where the others do.
            timeout: how many seconds to wait while the writer is full; None waits for as long as it takes.
            sent: who sent it, where there are several: each has ids and a share of the queue of its own; and the BLAKE3
                hash, in hex, of the bytes that ``data`` was read from, where these and not its values say whether a
                batch is the same. Then give a ``batch_id`` too.
            replace: as for ``Timestore.stage()``; such a batch has a commit of its own.

        Raises:
            NoFrame, BatchRejected: ``data`` cannot be read.
            BadRange: ``replace`` has no time in it.
            WriterFull: too many bytes wait, and none were answered in time; in a callback, at once.
            WriterClosed: the writer is closed.
        """
        source = source or self._source
        table = as_table(self.dataset, data, source, Bounds.of(self._store.settings))
        deadline = time.monotonic() + self._wait_seconds
        future, replaces = Promise(self), range_of(self.dataset, replace)
        waiting = Waiting(self._store, self.dataset, table, batch_id, source, sent, future, deadline, replaces)
        if self.is_writing_thread():
            timeout = 0.0  # room is made by this very thread
        with self._changed:
            self._check_open()
            if not self._changed.wait_for(lambda: bool(self._closed) or self._has_room(waiting.bytes), timeout):
                self._turned_away += 1
                raise self._full()
            self._check_open()
            self._queue.append(waiting)
            self._unanswered += 1
            self._waiting_bytes += waiting.bytes
            if len(self._queue) in (1, self._awaited):
                self._arrived.notify()
        return waiting.future

    def write(self, data: Frame, batch_id: str | None = None, source: str | None = None) -> Receipt:
        """Hand over one batch and wait for its answer: as ``stage()``, but callers share segments and commits.

        Raises:
            TimestoreError: whatever ``stage()`` raises, WriterClosed, or in a callback WriterWaitsForItself.
        """
        self.check_may_wait()
        return self.submit(data, batch_id, source).result()

    def flush(self) -> None:
        """Wait until everything that was submitted has its answer.

        Raises:
            WriterWaitsForItself: a callback of one of its futures calls this.
        """
        self.check_may_wait()
        with self._changed:
            self._changed.wait_for(lambda: not self._unanswered or not self._thread.is_alive())

    def close(self) -> None:
        """Take nothing more, and return once everything that was submitted has its answer: in a callback, at once."""
        atexit.unregister(self.close)
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closed = self._closed or "is closed"
            self._changed.notify_all()
            self._arrived.notify_all()
        if not self.is_writing_thread():
            self._thread.join()

    def end(self, reason: str) -> None:
        """Take nothing more, and commit nothing more than what is being committed: an answer for all the others."""
        with self._changed:
            self._closed = reason
            self._ended = True
            self._changed.notify_all()
            self._arrived.notify_all()

    def is_writing_thread(self) -> bool:
        """Whether this is called on the thread that commits, as callbacks are."""
        return threading.current_thread() is self._thread

    def check_may_wait(self, future: Future[Receipt] | None = None) -> None:
        """Raise :class:`WriterWaitsForItself` where the thread that commits would wait for an answer of its own."""
        if self.is_writing_thread() and not (future is not None and future.done()):
            raise WriterWaitsForItself(self.dataset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _full(self) -> WriterFull:
        return WriterFull(self.dataset, self._waiting_bytes, self._max_waiting_bytes)

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise WriterClosed(self.dataset, "was opened by another process")
        if self._closed:
            raise WriterClosed(self.dataset, self._closed)

    def _has_room(self, size: int) -> bool:
        # A batch that is larger than the limit goes alone.
        return not self._waiting_bytes or self._waiting_bytes + size <= self._max_waiting_bytes

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            log.exception("dataset %r: the writer has ended", self.dataset)
            self.end(f"was ended by {type(error).__name__}: {error}")
        finally:
            self._answer_the_rest()

    def _answer_the_rest(self) -> None:
        """Let nobody wait for an answer that does not come."""
        with self._changed:
            left = [waiting for waiting in (*self._in_hand, *self._queue) if not waiting.future.done()]
            self._queue.clear()
        for waiting in left:
            if waiting.future.running() or waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(WriterClosed(self.dataset, self._closed))
        with self._changed:
            self._unanswered = self._waiting_bytes = 0
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._ended and (taken := self._gather()):
            self._in_hand = taken
            started = time.monotonic()
            refused = self._commit(self._identified(taken))
            self._last_seconds = time.monotonic() - started
            self._count_turned_away()
            if refused:
                self._put_back(refused)
            self._in_hand = []
            if refused and not self._ended:
                pause = pause_before(max(waiting.retries for waiting in refused) - 1, random.random())
                left = min(waiting.deadline for waiting in refused) - time.monotonic()
                time.sleep(max(0.0, min(pause, left)))
        self._count_turned_away()

    def _gather(self) -> list[Waiting]:
        """Take the batches to commit next; none where the writer is closed and done."""
        with self._changed:
            self._arrived.wait_for(lambda: bool(self._queue or self._closed))
            patience = self._trust * min(_LONGEST_GATHERING_SECONDS, self._last_seconds)
            came = self._arrived.wait_for(lambda: bool(self._closed) or len(self._queue) >= self._awaited, patience)
            self._trust = min(1.0, self._trust * 2) if came else max(_LEAST_TRUST, self._trust / 2)
            taken: list[Waiting] = []
            size = 0
            while self._queue and len(taken) < _MOST_BATCHES_PER_GROUP and (not taken or size < _MOST_BYTES_PER_GROUP):
                if taken and self._queue[0].replaces is not None:
                    break  # what it is called depends on what was acknowledged before it
                waiting = self._queue.popleft()
                taken.append(waiting)
                if waiting.replaces is not None:
                    break
                size += waiting.bytes
            return taken

    def _identified(self, taken: list[Waiting]) -> list[Waiting]:
        """Return the batches that have an id, once the others have been answered or dropped."""
        group: list[Waiting] = []
        done: list[Waiting] = []
        for waiting in taken:
            if not (waiting.future.running() or waiting.future.set_running_or_notify_cancel()):
                done.append(waiting)
                continue
            try:
                _ = waiting.incoming
            except BaseException as error:  # as in _commit: whatever it is
                waiting.future.set_exception(error)
                done.append(waiting)
            else:
                group.append(waiting)
        self._forget(done)
        return group

    def _put_back(self, batches: list[Waiting]) -> None:
        with self._changed:
            self._queue.extendleft(reversed(batches))

    def _commit(self, group: list[Waiting]) -> list[Waiting]:
        """Stage a group and answer its batches; return those that are to be tried again."""
        if not group:
            return []
        try:
            outlook, self._outlook = self._outlook, None
            loaded = stage_together(self._store, self._spec, [waiting.incoming for waiting in group], outlook)
            self._outlook, answers = loaded.outlook, loaded.in_order
            again = self._refused_for_now(group, answers)
        except BaseException as error:  # whatever it is, callers wait for their answer
            log.exception("dataset %r: %s batches could not be written", self.dataset, len(group))
            for waiting in group:
                waiting.future.set_exception(error)
            self._forget(group)
            return []
        try:
            publish_if_direct(self._store, self.dataset)
        except BaseException:  # whatever it is, the batches are acknowledged
            log.exception("dataset %r: not published, its rows stay staged until the next flush", self.dataset)
        with self._changed:
            # Before any of them can be back: who waits already, and who is about to come back.
            self._awaited = len(self._queue) + len(group)
        answered = []
        for waiting, answer in zip(group, answers, strict=True):
            if waiting in again:
                continue
            answered.append(waiting)
            if isinstance(answer, TimestoreError):
                waiting.future.set_exception(answer)
            else:
                waiting.future.set_result(answer)
        self._forget(answered)
        return again

    def _refused_for_now(self, group: list[Waiting], answers: list[Answer]) -> list[Waiting]:
        """Count the batches that were refused for want of room, and return those that have time left."""
        now = time.monotonic()
        again: list[Waiting] = []
        counts: dict[tuple[type[TimestoreError], str], tuple[TimestoreError, int]] = {}
        for waiting, answer in zip(group, answers, strict=True):
            if not isinstance(answer, tuple(REFUSALS)):
                continue
            metric = DROPPED_BATCHES if now >= waiting.deadline else RETRIED_BATCHES
            if metric == RETRIED_BATCHES:
                waiting.retries += 1
                again.append(waiting)
            counts[type(answer), metric] = (answer, counts.get((type(answer), metric), (answer, 0))[1] + 1)
        for (_, metric), (error, batches) in counts.items():
            count_refusals(self._store, self.dataset, error, metric, batches)
        return again

    def _count_turned_away(self) -> None:
        """Count the batches for which the writer was full: here, because callers that may not wait were turned away."""
        with self._changed:
            batches, self._turned_away = self._turned_away, 0
        if batches:
            count_refusals(self._store, self.dataset, self._full(), DROPPED_BATCHES, batches)

    def _forget(self, answered: list[Waiting]) -> None:
        if not answered:
            return
        with self._changed:
            self._unanswered -= len(answered)
            self._waiting_bytes -= sum(waiting.bytes for waiting in answered)
            self._changed.notify_all()
