"""Landing files that are set aside: the ledger learns of each, and why, before it is moved to quarantine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.ledger.batches import known_batches
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.landing import end_readings
from timestore_pipeline.ledger.quarantine import NewEntry, QuarantineEntry, name_also, next_try_at, set_aside
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.staging.arrivals import unique_name
from timestore_pipeline.storage.layout import key_aside
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class BadFile:
    """Why a file is set aside. With ``try_again`` it may not have been its fault, and is tried again by itself."""

    reason: str
    try_again: bool = False


def unread_batch(file: LandingFile, file_id: str) -> IncomingBatch:
    """Return what a file that was not read is called in quarantine: the id that it has without being read."""
    return IncomingBatch(file_id, file_id.rpartition("-")[2], file.path.name, max(file.bytes, file.disk_bytes))


def record_bad_file(
    store: Store, spec: DatasetSpec, batch: IncomingBatch, bad: BadFile, file_id: str
) -> QuarantineEntry | None:
    """Let the ledger know of a bad file (``file_id`` before it was read), which is then to be moved to quarantine.

    In this order, so that after a crash in between the file is found again. Files of one content have one entry, which
    says all their names; it is returned with the name of this one. None where the file was not bad: another ingest
    staged it, and cleared it away while it was read here.
    """
    relative = key_aside(spec.name, unique_name(batch.fingerprint, batch.source))

    def record(tx: Connection) -> QuarantineEntry | None:
        # Another ingest may stage it just now, and resolves what it finds in quarantine.
        lock_dataset(tx, spec.name)
        known = known_batches(tx, spec.name, [batch.batch_id]).get(batch.batch_id)
        if known is not None and known.fingerprint == batch.fingerprint:
            return None
        now = now_micros()
        aside = NewEntry(
            dataset=spec.name,
            kind=QuarantineKind.BATCH,
            batch_id=batch.batch_id,
            source=batch.source,
            path=relative,
            reason=bad.reason,
            rows=None,
            bytes=batch.source_bytes,
            created_at=now,
            try_again_at=next_try_at(0, now) if bad.try_again else None,
        )
        entry = name_also(tx, set_aside(tx, aside), batch.source)
        end_readings(tx, spec.name, [file_id])
        return replace(entry, source=batch.source)

    entry = store.ledger.transact(record)
    if entry is not None:
        reach(CrashPoint.BAD_FILE_RECORDED)
    return entry
