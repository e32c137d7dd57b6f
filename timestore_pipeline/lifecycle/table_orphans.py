"""What crashed processes and aborted builds left of tables: files that no commit refers to and none ever will."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from timestore_pipeline.building.manifests import pending_manifest, pending_manifests
from timestore_pipeline.building.table import file_prefix
from timestore_pipeline.columns import WINDOW_COLUMN
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX
from timestore_pipeline.ledger.builds import aborted_sequences
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import LOG_FOLDER, PARQUET_SUFFIX, file_name
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class TableOrphan:
    """An object of a table that nobody needs; ``modified_at`` in seconds since the epoch."""

    place: Storage
    key: str
    bytes: int
    modified_at: float

    def remove(self) -> None:
        """Remove it; that it is gone already is fine."""
        self.place.delete(self.key)


def local_orphans(store: Store, datasets: Iterable[str]) -> Iterator[Path]:
    """Go through the files and folders of this host that may be orphans of tables, in the tables' folders and scratch.

    Those of builds that still live are among them: whoever removes any looks at their age.
    """
    with store.ledger.read() as tx:
        aborted = aborted_sequences(tx)
    for dataset in datasets:
        yield from store.settings.temp_path.glob(f"{dataset}-*-parquet{TEMPORARY_SUFFIX}")
        place, sequences = store.table(dataset), aborted.get(dataset, set())
        if place.local is None:
            continue
        yield from place.local.glob(f"{WINDOW_COLUMN}=*/.*{TEMPORARY_SUFFIX}")
        yield from (place.local / LOG_FOLDER).glob("*.json#*")
        for sequence in set(pending_manifests(place)) & sequences:
            yield place.local / pending_manifest(sequence)
        prefixes = tuple(file_prefix(sequence) for sequence in sequences)
        for path in place.local.glob(f"{WINDOW_COLUMN}=*/*{PARQUET_SUFFIX}") if prefixes else ():
            if path.name.startswith(prefixes):
                yield path


def orphan_objects(store: Store, datasets: Iterable[str]) -> Iterator[TableOrphan]:
    """Go through the objects that aborted builds left, of tables in an object store."""
    with store.ledger.read() as tx:
        aborted = aborted_sequences(tx)
    for dataset in datasets:
        place, sequences = store.table(dataset), aborted.get(dataset, set())
        if place.local is not None or not sequences:
            continue
        prefixes = tuple(file_prefix(sequence) for sequence in sequences)
        manifests = {pending_manifest(sequence) for sequence in sequences}
        for entry in place.entries():
            is_file = entry.key.endswith(PARQUET_SUFFIX) and file_name(entry.key).startswith(prefixes)
            if entry.key in manifests or is_file:
                yield TableOrphan(place, entry.key, entry.bytes, entry.modified_at / 1e6)
