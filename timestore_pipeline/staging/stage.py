"""``stage()``: one batch of rows from a caller's own code."""

from __future__ import annotations

from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.staging.direct import publish_if_direct, warn_of_direct_write
from timestore_pipeline.staging.frames import Frame, as_table
from timestore_pipeline.staging.receipts import Receipt
from timestore_pipeline.staging.retry import when_there_is_room
from timestore_pipeline.staging.together import Incoming, stage_together
from timestore_pipeline.store import Store


def stage(
    store: Store,
    dataset: str,
    data: Frame,
    batch_id: str | None = None,
    source: str = "stage()",
    wait_seconds: float = 0.0,
) -> Receipt:
    """Stage a frame as one batch; when this returns, the batch is acknowledged.

    Args:
        store: the installation.
        dataset: a declared dataset.
        data: a pyarrow Table, RecordBatch or RecordBatchReader, a pandas or Polars frame, a DuckDB relation, or
            anything else with ``__arrow_c_stream__``. Its columns go by name, in any order; values are cast to the
            dataset's types where that loses nothing.
        batch_id: the caller's idempotency key; derived from the content where left out.
        source: where the data comes from, for lineage.
        wait_seconds: how long to try again, at growing intervals, while there is no room.

    Returns:
        The receipt; ``duplicate`` is true where the same batch was staged before, and nothing changed.

    Raises:
        NoFrame: ``data`` is nothing of these.
        BatchRejected: the data does not fit the dataset; nothing was staged.
        BatchConflict: ``batch_id`` is known with other content.
        StagingQueueFull, GuardrailExceeded, DiskFull, TooManyIngests, IntakePaused: refused for now, and counted
            as dropped.
        UnknownDataset, ColumnsChanged, LedgerError: as they say.
    """
    spec = store.datasets[dataset]
    incoming = Incoming.of(dataset, as_table(dataset, data, source, Bounds.of(store.settings)), batch_id, source)

    def attempt() -> Receipt:
        answer = stage_together(store, spec, [incoming])[0]
        if isinstance(answer, TimestoreError):
            raise answer
        return answer

    warn_of_direct_write(store, dataset)
    receipt = when_there_is_room(store, dataset, attempt, wait_seconds)
    publish_if_direct(store, dataset)
    return receipt
