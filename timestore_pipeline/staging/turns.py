"""Waiting one's turn to write a segment, where a dataset's ``concurrent_ingests`` is limited.

The turns are leases in the ledger, so the limit holds over all processes and hosts; one that dies holds its turn for
no longer than the lease.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import LedgerError, TooManyIngests
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.leases import claim_slot, extend_slot, release_lease, slots_held
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.policy import EffectiveLimits
from timestore_pipeline.store import Store

log = log_named(__name__)

LEASE_SECONDS = 60
"""How long a process that died holds its turn."""

_LEASE_MICROS = LEASE_SECONDS * 1_000_000
_POLL_SECONDS = (0.02, 0.2)


def turns_of(dataset: str) -> str:
    """Return the name under which the ledger keeps the turns of a dataset."""
    return f"ingest/{dataset}"


@contextmanager
def turn(store: Store, spec: DatasetSpec, limits: EffectiveLimits) -> Iterator[bool]:
    """Hold one of the dataset's turns while the block writes a segment; without a limit nothing is held.

    Gives whether one is held.

    ``limits`` are those that the caller found; while it waits they are looked up again, so a raised limit lets it on.

    Raises:
        TooManyIngests: none came free within TIMESTORE_STAGING_TURN_TIMEOUT_SECONDS.
        LedgerError: the ledger cannot be used.
    """
    if not limits.concurrent_ingests:
        yield False
        return
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    lease = _wait(store, spec, owner)
    if lease is None:
        yield False
        return
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(store, lease, owner, done), name=f"lease-of-{lease}", daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        done.set()
        keeper.join()
        try:
            store.ledger.transact(lambda tx: release_lease(tx, lease, owner))
        except LedgerError as error:
            log.warning("dataset %r: a turn is held until its lease runs out: %s", spec.name, error)


def _wait(store: Store, spec: DatasetSpec, owner: str) -> str | None:
    """Return the name of the lease that was taken, or None where there is no limit any more."""
    timeout = store.settings.staging_turn_timeout_seconds
    deadline = time.monotonic() + timeout
    while True:
        with store.ledger.read() as tx:
            limit = store.policy(tx, spec).limits.concurrent_ingests
        if not limit:
            return None
        now = now_micros()
        lease, running = store.ledger.transact(partial(_take_turn, spec.name, limit, owner, now))
        if lease:
            return lease
        if time.monotonic() >= deadline:
            raise TooManyIngests(spec.name, running, limit, timeout)
        time.sleep(random.uniform(*_POLL_SECONDS))


def _take_turn(dataset: str, limit: int, owner: str, now: int, tx: Connection) -> tuple[str | None, int]:
    """Return the lease that was taken, or None and how many are held."""
    lock_dataset(tx, dataset)
    name = turns_of(dataset)
    lease = claim_slot(tx, name, limit, owner, now=now, lease_micros=_LEASE_MICROS)
    return lease, 0 if lease else slots_held(tx, name, now)


def _keep(store: Store, lease: str, owner: str, done: threading.Event) -> None:
    """Extend the lease for as long as the segment takes."""
    while not done.wait(LEASE_SECONDS / 3):
        try:
            with store.ledger.write() as tx:
                if not extend_slot(tx, lease, owner, now_micros() + _LEASE_MICROS):
                    return  # this process slept so long that another one has the turn; the limit bends, no row does
        except LedgerError as error:
            log.warning("the lease %s was not extended: %s", lease, error)
