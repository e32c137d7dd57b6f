"""The file that a correction leaves in staging, by which a ledger that is made again knows of it (invariant 12).

A segment says itself which correction it came with. Its file goes after its retention, though, and a replacement that
only empties a range has none; the correction still acts on what may come back. Its file has another name until it is
acknowledged: without a ledger nobody could tell, and what was not acknowledged must take no row.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import StorageError
from timestore_pipeline.inert import log_named
from timestore_pipeline.segments.description import (
    DescribedCorrection,
    IncomingBatch,
    NotDescribed,
    correction_as_list,
    correction_from_list,
)
from timestore_pipeline.storage.layout import correction_key, pending_correction
from timestore_pipeline.store import Store

log = log_named(__name__)

_VERSION = 1
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class CorrectionFile:
    """What the file of a correction says: which one it is, and the batch whose rows take the place.

    ``segment_id`` is that of the segment with these rows, None where there is no row. A correction whose segment
    nobody knows was never acknowledged.
    """

    correction: DescribedCorrection
    batch: IncomingBatch
    segment_id: str | None

    def as_text(self) -> str:
        """Return it as text, for :meth:`from_text`."""
        batch = {name: value for name, value in asdict(self.batch).items() if name not in ("client", "replaces")}
        return json.dumps(
            {
                "version": _VERSION,
                "correction": correction_as_list(self.correction),
                "batch": batch,
                "segment": self.segment_id,
            }
        )

    @classmethod
    def from_text(cls, text: str) -> CorrectionFile:
        """Read what :meth:`as_text` wrote.

        Raises:
            NotDescribed: it is something else.
        """
        try:
            found = json.loads(text)
            if found["version"] != _VERSION:
                raise NotDescribed(f"it was written by another version of timestore (correction {found['version']})")
            return cls(correction_from_list(found["correction"]), IncomingBatch(**found["batch"]), found["segment"])
        except (ValueError, KeyError, TypeError) as error:
            raise NotDescribed("it does not say what it corrects") from error


def write_correction(store: Store, dataset: str, segment_id: str, file: CorrectionFile) -> str:
    """Write the file of a correction that is to be acknowledged, durably; return the path that it has after that.

    Raises:
        OSError: it cannot be written.
    """
    key = correction_key(dataset, segment_id)
    temporary = store.staging.scratch(key)
    try:
        temporary.write_text(file.as_text(), encoding="utf-8")
        store.staging.put(temporary, pending_correction(key))
    finally:
        temporary.unlink(missing_ok=True)
    reach(CrashPoint.CORRECTION_IN_PLACE)
    return key


def keep_correction(store: Store, key: str) -> None:
    """Let the file of a correction say that it is acknowledged.

    Neither synced nor raising anything: as long as there is a ledger it is asked, and the next sweep does this again.
    """
    try:
        store.staging.rename(pending_correction(key), key)
    except (OSError, StorageError) as error:
        log.warning("%s does not say yet that it is acknowledged: %s", store.staging.shown(key), error)
        return
    reach(CrashPoint.CORRECTION_KEPT)


def read_correction(store: Store, key: str) -> CorrectionFile:
    """Return what the file of a correction says.

    Raises:
        NotDescribed: it is damaged, or something else.
        OSError: it cannot be read.
    """
    path = store.staging.fetch(key)
    if path.stat().st_size > _MOST_BYTES:
        raise NotDescribed("it is larger than the file of a correction")
    try:
        return CorrectionFile.from_text(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise NotDescribed("it does not say what it corrects") from error
