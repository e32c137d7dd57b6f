"""Manifests: beside its table, each build leaves a list of the batches and slices that it published.

The ledger can be lost; what is published must still be told from what is only staged, for else rows would be published
twice. The Delta log forgets after 30 days, and Parquet files are compacted and dropped by age. A manifest is written
and synced before the commit, as *pending*, and *kept* or dropped once the table has decided. Nobody who rewrites
Parquet files has anything to do for it. Readers of Delta tables do not look into the folder.
"""

from __future__ import annotations

import fnmatch
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import pyarrow as pa

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.lineage import Contribution
from timestore_pipeline.ledger.schemas import columns_from_text, columns_to_text
from timestore_pipeline.model.columns import Column
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import (
    MANIFEST_FOLDER,
    MANIFEST_SUFFIX,
    remove_from_table,
    write_before_commit,
)

log = log_named(__name__)

MERGE_FROM = 64
"""So many manifests of one level are merged into one of the next."""

_PENDING = ".pending"
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
    place: Storage,
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
    rows = [{**asdict(each), "sequence": sequence, "published_at": now} for each in contributions]
    columns = json.dumps([columns_to_text(version) for version in versions])
    table = pa.Table.from_pylist(rows, _SCHEMA.with_metadata({_VERSIONS: columns}))
    write_before_commit(place, pending_manifest(sequence), partial(_write, table))
    reach(CrashPoint.MANIFEST_WRITTEN)


def keep_manifest(place: Storage, sequence: int) -> None:
    """Remember that the table has the build.

    Neither synced nor raising anything: of a manifest that stays pending, the table decides again when it is needed.
    """
    try:
        place.rename(pending_manifest(sequence), _kept(0, sequence, sequence))
    except FileNotFoundError:
        return  # a build that publishes no slice, or one whose manifest another process has kept
    except OSError as error:
        log.warning("the manifest of build sequence %s in %s stays pending: %s", sequence, place.location, error)
        return
    reach(CrashPoint.MANIFEST_KEPT)


def forget_manifests(place: Storage) -> None:
    """Remove all manifests of a table that is gone: they would say of lost rows that they are published."""
    _remove(place, place.names(MANIFEST_FOLDER))


def tables_with_manifests(tables: Storage) -> set[str]:
    """Return the names of the tables, of whatever dataset, that have manifests."""
    return {name for name in tables.names() if tables.names(f"{name}/{MANIFEST_FOLDER}")}


def pending_manifests(place: Storage) -> list[int]:
    """Return the sequences of builds whose manifests nobody has decided on yet."""
    names = fnmatch.filter(place.names(MANIFEST_FOLDER), f"[0-9]*{_PENDING}{MANIFEST_SUFFIX}")
    return sorted(int(name.partition(".")[0]) for name in names)


def read_manifests(place: Storage) -> Iterable[Published]:
    """Yield what all kept manifests say was published, each thing once.

    Raises:
        OSError, pyarrow.ArrowInvalid: one cannot be read.
    """
    seen: set[tuple[str, int, int]] = set()
    for name in _kept_files(place):
        for batch in _read(place, name).to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                sequence, published_at = row.pop("sequence"), row.pop("published_at")
                found = Contribution(**row)
                key = (found.segment_id, found.window_start, found.ordinal)
                # Twice where a process died between writing a merged one and removing its parts.
                if key not in seen:
                    seen.add(key)
                    yield Published(found, sequence, published_at)


def read_versions(place: Storage) -> list[tuple[Column, ...]]:
    """Return the columns that the dataset had had when it was last published, oldest first.

    Raises:
        OSError, pyarrow.ArrowInvalid: a manifest cannot be read.
    """
    found: list[tuple[Column, ...]] = []
    for name in _kept_files(place):
        versions = [columns_from_text(text) for text in _versions_in(_read(place, name).schema)]
        found = max(found, versions, key=len)
    return found


def merge_manifests(place: Storage) -> None:
    """Merge manifests where there are many of one size; to be called by one build of a dataset at a time.

    Builds in other lanes may keep theirs meanwhile. Never raises: a build does not fail for it, and the next one tries
    again.
    """
    try:
        for level in range(9):
            parts = [name for name in _kept_files(place) if _level(name) == level]
            if len(parts) < MERGE_FROM:
                return
            _merge(place, level + 1, parts)
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("the manifests in %s were not merged: %s", place.shown(MANIFEST_FOLDER), error)


def last_manifest_sequence(place: Storage) -> int:
    """Return the highest sequence of which there is a manifest, 0 for none."""
    kept = [_range(name)[1] for name in _kept_files(place)]
    return max([0, *kept, *pending_manifests(place)])


def pending_manifest(sequence: int) -> str:
    """Return the key in the table's folder of the manifest of a build until the table has decided."""
    return f"{MANIFEST_FOLDER}/{sequence:010d}{_PENDING}{MANIFEST_SUFFIX}"


def _merge(place: Storage, level: int, parts: Sequence[str]) -> None:
    # Builds end in any order, so a part of the next merge may lie between the first and the last of this one.
    ranges = [_range(name) for name in parts]
    # A merge of the same parts that was killed has left a manifest of this range.
    final = _kept(
        level, min(first for first, _ in ranges), max(last for _, last in ranges), mark=f"-{secrets.token_hex(4)}"
    )
    temporary = place.scratch(final)
    try:
        tables = [_read(place, name) for name in parts]
        newest = max(tables, key=lambda table: len(_versions_in(table.schema)))
        _write(pa.concat_tables(tables).replace_schema_metadata(newest.schema.metadata), temporary)
        place.put(temporary, final, keep=False)
    finally:
        temporary.unlink(missing_ok=True)
    reach(CrashPoint.MANIFESTS_MERGED)
    _remove(place, parts)


def _remove(place: Storage, names: Iterable[str]) -> None:
    for _ in remove_from_table(place, (f"{MANIFEST_FOLDER}/{name}" for name in names), live=()):
        pass


def _versions_in(schema: pa.Schema) -> list[str]:
    return json.loads((schema.metadata or {}).get(_VERSIONS, b"[]"))


def _write(table: pa.Table, path: Path) -> None:
    with path.open("xb") as file, pa.ipc.new_file(file, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)


def _read(place: Storage, name: str) -> pa.Table:
    with pa.ipc.open_file(pa.BufferReader(place.content(f"{MANIFEST_FOLDER}/{name}"))) as reader:
        return reader.read_all()


def _kept(level: int, first: int, last: int, mark: str = "") -> str:
    return f"{MANIFEST_FOLDER}/{level}-{first:010d}-{last:010d}{mark}{MANIFEST_SUFFIX}"


def _kept_files(place: Storage) -> list[str]:
    """Return the names of kept manifests, those of one level in the order of their sequences."""
    kept = fnmatch.filter(place.names(MANIFEST_FOLDER), f"[0-9]-*-*{MANIFEST_SUFFIX}")
    return sorted(kept, key=lambda name: (_level(name), _range(name)))


def _level(name: str) -> int:
    return int(name[0])


def _range(name: str) -> tuple[int, int]:
    """Return the first and last sequence that a kept manifest has."""
    first, last = name.removesuffix(MANIFEST_SUFFIX).split("-")[1:3]
    return int(first), int(last)
