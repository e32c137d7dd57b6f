"""The dataset of a validation: nobody else's, and gone without a trace afterwards, however the validation ended.

It lives in the installation's own ledger, staging directory and tables, because these are what is put to the test. Its
name is reserved. A lease says that its validation is alive; one without is removed by the next validation.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from timestore_pipeline.datasets import (
    SCRATCH_PREFIX,
    Datasets,
    DatasetSpec,
    FlushSpec,
    LimitSpec,
    TimeSpec,
)
from timestore_pipeline.durable_files import make_folder
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.datasets import known_datasets, lock_dataset
from timestore_pipeline.ledger.forgetting import forget_dataset
from timestore_pipeline.ledger.leases import claim_lease, release_lease
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Granularity
from timestore_pipeline.placement import PlaceName, location_of, storage_at, used_places
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.layout import ASIDE, folders_of
from timestore_pipeline.storage.marks import put_mark, table_mark
from timestore_pipeline.store import Store

log = log_named(__name__)

COLUMNS = {"ts": "timestamptz", "source": "varchar", "batch": "bigint", "number": "bigint", "value": "double"}
_LEASE_MICROS = 60_000_000
_NAME = re.compile(rf"{SCRATCH_PREFIX}[0-9a-f]{{8}}")


@contextmanager
def scratch_store(store: Store, like: str | None) -> Iterator[Store]:
    """Open the installation of ``store`` with a scratch dataset as its only one; it is removed at the end.

    Args:
        store: the installation.
        like: a dataset whose window, thresholds and limits it gets; by default those of the environment.

    Raises:
        UnknownDataset: ``like`` is not declared.
        PlaceError: a place of the installation is not there.
    """
    spec = _spec(store, like)
    remove_leftovers(store)
    settings = store.settings.model_copy(
        # Hidden, so that no sensor takes an interest; beside the real ones, so on the same disk.
        update={
            "landing_directory": str(store.settings.landing_location / f".{spec.name}"),
            "landing_archive_directory": str(store.settings.archive_location / f".{spec.name}"),
        }
    )
    # Of the real archive the scratch one is a folder, that is looked at as a place of its own.
    store.places.mark_new()
    extend_lease(store, spec.name)
    try:
        if PlaceName.ARCHIVE in used_places(settings):
            scratch = storage_at(settings, location_of(settings, PlaceName.ARCHIVE))
            put_mark(scratch, PlaceName.ARCHIVE, store.ledger.identity)
        make_folder(settings.landing_path / spec.name)
        with Store.open(settings, datasets=Datasets({spec.name: spec})) as opened:
            yield opened
    finally:
        _remove(store, spec.name)


def scratch_name(scratch: Store) -> str:
    """Return the name of the scratch dataset that :func:`scratch_store` opened."""
    return next(iter(scratch.datasets))


def extend_lease(store: Store, name: str) -> None:
    """Say that the validation is alive; to be called at least once a minute."""
    now = now_micros()
    with store.ledger.write() as tx:
        claim_lease(tx, _lease(name), _owner(), now=now, expires_at=now + _LEASE_MICROS)


def remove_leftovers(store: Store) -> list[str]:
    """Remove what validations left whose process was killed; return the names of their datasets."""
    with store.ledger.read() as tx:
        found = known_datasets(tx)
    for place, folder in (
        (store.staging, ""),
        (store.staging, ASIDE),
        (store.tables, ""),
        (store.landing, ""),
        (store.archive, ""),
    ):
        with suppress(OSError):  # what cannot be listed now is removed another time
            found |= {name.removeprefix(".") for name in place.names(folder)}
    # Declared datasets cannot be called so; should one be all the same, it is somebody's.
    leftovers = sorted(name for name in found if _NAME.fullmatch(name) and name not in store.datasets)
    removed = []
    for name in leftovers:
        now = now_micros()
        with store.ledger.write() as tx:
            dead = claim_lease(tx, _lease(name), _owner(), now=now, expires_at=now + _LEASE_MICROS)
        if dead:
            log.warning("removing %s, which a validation left that did not end by itself", name)
            _remove(store, name)
            removed.append(name)
    return removed


def _spec(store: Store, like: str | None) -> DatasetSpec:
    name = f"{SCRATCH_PREFIX}{secrets.token_hex(4)}"
    described = {
        "name": name,
        "description": "Rows of a validation.",
        "columns": COLUMNS,
        "time": TimeSpec(column="ts"),
    }
    if like is None:
        return DatasetSpec(**described, window=Granularity.HOUR)
    model = store.datasets[like]
    with store.ledger.read() as tx:
        policy = store.policy(tx, model)
    thresholds, limits = policy.flush, policy.limits
    return DatasetSpec(
        **described,
        window=model.window,
        flush=FlushSpec(
            max_rows=thresholds.max_rows,
            max_bytes=thresholds.max_bytes,
            max_age_ms=thresholds.max_age_ms,
            late_max_age_ms=thresholds.late_max_age_ms,
        ),
        limits=LimitSpec(
            max_pending=limits.max_pending,
            max_bytes=limits.max_bytes,
            concurrent_ingests=limits.concurrent_ingests,
            concurrent_builds=limits.concurrent_builds,
        ),
    )


def _remove(store: Store, name: str) -> None:
    """Remove all that there is of a scratch dataset; files last, as those that the ledger does not know harm nobody."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no scratch dataset")
    with store.ledger.write() as tx:
        lock_dataset(tx, name)
        forget_dataset(tx, name)
    for folder in folders_of(name):
        _empty(store.staging, folder)
    for place in (store.landing, store.archive):
        _empty(place, f".{name}")
    _empty(store.table(name))
    store.tables.delete(table_mark(name))
    with store.ledger.write() as tx:
        release_lease(tx, _lease(name), _owner())


def _empty(place: Storage, folder: str = "") -> None:
    place.delete(*(entry.key for entry in place.entries(f"{folder}/")))
    place.prune(folder)


def _lease(name: str) -> str:
    return f"validation:{name}"


def _owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
