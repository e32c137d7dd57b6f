"""Taking a dataset out of the ledger with everything that was ever known of it: a validation's, or one removed."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from timestore_pipeline.ledger.schema import batch_slices, builds, datasets, metadata, replaced_windows, segments


def forget_dataset(tx: Connection, dataset: str) -> None:
    """Delete every row of a dataset, from every table."""
    # These know their dataset only by way of another table.
    own_segments = select(segments.c.id).where(segments.c.dataset == dataset)
    own_builds = select(builds.c.id).where(builds.c.dataset == dataset)
    tx.execute(delete(batch_slices).where(batch_slices.c.segment_id.in_(own_segments)))
    tx.execute(delete(replaced_windows).where(replaced_windows.c.build_id.in_(own_builds)))
    # Whoever refers to a row goes before it.
    for table in reversed(metadata.sorted_tables):
        if table is not datasets and "dataset" in table.c:
            tx.execute(delete(table).where(table.c.dataset == dataset))
    tx.execute(delete(datasets).where(datasets.c.name == dataset))
