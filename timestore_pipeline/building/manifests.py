"""Manifests: beside its table, each build leaves a list of the batches and slices that it published.

The ledger can be lost; what is published must still be told from what is only staged, for else rows would be published
twice. The Delta log forgets after 30 days, and Parquet files are compacted and dropped by age. A manifest is written
and synced before the commit, as *pending*, and *kept* or dropped once the table has decided. Nobody who rewrites
Parquet files has anything to do for it. Readers of Delta tables do not look into the folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa

from timestore_pipeline.columns import Column
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX, fsync_path, make_folder, put_in_place, sync_private
from timestore_pipeline.ledger.contributions import Contribution
from timestore_pipeline.ledger.schemas import columns_from_text, columns_to_text

log = logging.getLogger(__name__)

MANIFEST_FOLDER = "_timestore"
"""In the folder of a table; Delta and its readers pass over names that begin with an underscore."""

MERGE_FROM = 64
"""So many manifests of one level are merged into one of the next."""

_PENDING = ".pending"
_SUFFIX = ".arrow"
_COLUMNS = [field.name for field in fields(Contribution)]
_TEXTS = ("segment_id", "batch_id", "fingerprint", "source")
_SCHEMA = pa.schema(
    [(name, pa.string() if name in _TEXTS else pa.int64()) for name in _COLUMNS]
    + [("sequence", pa.int64()), ("published_at", pa.int64())]
)
_VERSIONS = b"timestore.columns"
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclass(frozen=True)
class Published:
    """A contribution that is in the table; ``published_at`` in microseconds since the epoch."""

    contribution: Contribution
    sequence: int
    published_at: int


def write_manifest(
    table_path: Path,
    sequence: int,
    contributions: Sequence[Contribution],
    versions: Sequence[Sequence[Column]],
    now: int,
) -> None:
    """Write the manifest of a build that is about to commit, durably; nothing where it publishes no slice.

    ``versions`` are the columns that the dataset has had, oldest first.

    Raises:
        OSError: it cannot be written; the build must not commit.
    """
    if not contributions:
        return
    path = pending_manifest(table_path, sequence)
    make_folder(path.parent)
    rows = [{**asdict(each), "sequence": sequence, "published_at": now} for each in contributions]
    columns = json.dumps([columns_to_text(version) for version in versions])
    _write(path, pa.Table.from_pylist(rows, _SCHEMA.with_metadata({_VERSIONS: columns})))
    # Under its own name at once: one that is not whole is of a build that cannot have committed.
    sync_private(path)
    fsync_path(path.parent)
    reach(CrashPoint.MANIFEST_WRITTEN)


def keep_manifest(table_path: Path, sequence: int) -> None:
    """Remember that the table has the build.

    Neither synced nor raising anything: of a manifest that stays pending, the table decides again when it is needed.
    """
    try:
        pending_manifest(table_path, sequence).rename(_kept(table_path, 0, sequence, sequence))
    except FileNotFoundError:
        return  # a build that publishes no slice, or one whose manifest another process has kept
    except OSError as error:
        log.warning("the manifest of build sequence %s in %s stays pending: %s", sequence, table_path, error)
        return
    reach(CrashPoint.MANIFEST_KEPT)


def drop_manifest(table_path: Path, sequence: int) -> None:
    """Forget the manifest of a build that was fenced."""
    pending_manifest(table_path, sequence).unlink(missing_ok=True)


def pending_manifests(table_path: Path) -> list[int]:
    """Return the sequences of builds whose manifests nobody has decided on yet."""
    return sorted(
        int(path.name.partition(".")[0]) for path in (table_path / MANIFEST_FOLDER).glob(f"[0-9]*{_PENDING}{_SUFFIX}")
    )


def read_manifests(table_path: Path) -> Iterable[Published]:
    """Yield what all kept manifests say was published, each thing once.

    Raises:
        OSError, pyarrow.ArrowInvalid: one cannot be read.
    """
    seen: set[tuple[str, int, int]] = set()
    for path in _kept_files(table_path):
        for batch in _read(path).to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                sequence, published_at = row.pop("sequence"), row.pop("published_at")
                found = Contribution(**row)
                key = (found.segment_id, found.window_start, found.ordinal)
                # Twice where a process died between writing a merged one and removing its parts.
                if key not in seen:
                    seen.add(key)
                    yield Published(found, sequence, published_at)


def read_versions(table_path: Path) -> list[tuple[Column, ...]]:
    """Return the columns that the dataset had had when it was last published, oldest first.

    Raises:
        OSError, pyarrow.ArrowInvalid: a manifest cannot be read.
    """
    found: list[tuple[Column, ...]] = []
    for path in _kept_files(table_path):
        with path.open("rb") as file, pa.ipc.open_file(file) as reader:
            versions = [columns_from_text(text) for text in _versions_in(reader.schema)]
        found = max(found, versions, key=len)
    return found


def merge_manifests(table_path: Path) -> None:
    """Merge manifests where there are many of one size; to be called by one build of a dataset at a time.

    Builds in other lanes may keep theirs meanwhile. Never raises: a build does not fail for it, and the next one tries
    again.
    """
    try:
        for level in range(9):
            parts = [path for path in _kept_files(table_path) if _level(path) == level]
            if len(parts) < MERGE_FROM:
                return
            _merge(table_path, level + 1, parts)
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("the manifests in %s were not merged: %s", table_path / MANIFEST_FOLDER, error)


def last_manifest_sequence(table_path: Path) -> int:
    """Return the highest sequence of which there is a manifest, 0 for none."""
    kept = [int(path.stem.split("-")[2]) for path in _kept_files(table_path)]
    return max([0, *kept, *pending_manifests(table_path)])


def _merge(table_path: Path, level: int, parts: Sequence[Path]) -> None:
    # Builds end in any order, so a part of the next merge may lie between the first and the last of this one.
    first, last = (getter(int(path.stem.split("-")[index]) for path in parts) for getter, index in ((min, 1), (max, 2)))
    final = _kept(table_path, level, first, last)
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    try:
        tables = [_read(path) for path in parts]
        newest = max(tables, key=lambda table: len(_versions_in(table.schema)))
        _write(temporary, pa.concat_tables(tables).replace_schema_metadata(newest.schema.metadata))
        put_in_place(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    reach(CrashPoint.MANIFESTS_MERGED)
    for path in parts:
        path.unlink(missing_ok=True)


def _versions_in(schema: pa.Schema) -> list[str]:
    return json.loads((schema.metadata or {}).get(_VERSIONS, b"[]"))


def _write(path: Path, table: pa.Table) -> None:
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)


def _read(path: Path) -> pa.Table:
    with path.open("rb") as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def pending_manifest(table_path: Path, sequence: int) -> Path:
    """Return where the manifest of a build is until the table has decided."""
    return table_path / MANIFEST_FOLDER / f"{sequence:010d}{_PENDING}{_SUFFIX}"


def _kept(table_path: Path, level: int, first: int, last: int) -> Path:
    return table_path / MANIFEST_FOLDER / f"{level}-{first:010d}-{last:010d}{_SUFFIX}"


def _kept_files(table_path: Path) -> list[Path]:
    return sorted((table_path / MANIFEST_FOLDER).glob(f"[0-9]-*-*{_SUFFIX}"))


def _level(path: Path) -> int:
    return int(path.name[0])
