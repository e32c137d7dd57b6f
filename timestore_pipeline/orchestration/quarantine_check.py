"""The check ``quarantine_empty``: part of every ingest run, and of builds that set something aside."""

# No `from __future__ import annotations`: as in the other modules of this folder.
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import LedgerError
from timestore_pipeline.ledger.quarantine import QuarantineTotals, newest_entries, open_totals
from timestore_pipeline.orchestration.keys import staging_key
from timestore_pipeline.orchestration.logs import log_of
from timestore_pipeline.orchestration.metadata import Metadata, table
from timestore_pipeline.store import Store

QUARANTINE_EMPTY = "quarantine_empty"

_NEWEST = 10


@dataclass(frozen=True)
class Quarantined:
    """What a look into the quarantine of a dataset found."""

    totals: QuarantineTotals
    newest: tuple[tuple[str, str, str, str], ...]
    dataset: str

    @property
    def passed(self) -> bool:
        """Whether nothing is there."""
        return not self.newest

    @property
    def description(self) -> str | None:
        """What to do about it."""
        return None if self.passed else f"`timestore quarantine list {self.dataset}` shows it all"

    @property
    def metadata(self) -> Metadata:
        """How much is there, and why the newest of it is."""
        heading = ("entry", "kind", "source", "reason")
        return {
            "batches": self.totals.batches,
            "rows": self.totals.rows,
            "segments": self.totals.segments,
            **({"newest": table(heading, self.newest, _NEWEST)} if self.newest else {}),
        }


def look_into_quarantine(store: Store, spec: DatasetSpec) -> Quarantined:
    """Return what of the dataset is in quarantine."""
    with store.ledger.read() as tx:
        totals = open_totals(tx).get(spec.name, QuarantineTotals(batches=0, rows=0))
        newest = newest_entries(tx, spec.name, _NEWEST)
    lines = tuple((str(entry.id), entry.kind.value, entry.source, entry.reason) for entry in newest)
    return Quarantined(totals, lines, spec.name)


@contextmanager
def quarantine_watched(context: dg.AssetExecutionContext, store: Store, spec: DatasetSpec) -> Iterator[None]:
    """Evaluate the check where the block has changed what is in quarantine, whether it ends well or not."""
    before = look_into_quarantine(store, spec)
    try:
        yield
    finally:
        try:
            after = look_into_quarantine(store, spec)
        except LedgerError as error:
            log_of(context).warning("%s: %s is not evaluated: %s", spec.name, QUARANTINE_EMPTY, error)
        else:
            if after != before:
                # Of no run, because of a step that fails Dagster keeps no events.
                context.instance.report_runless_asset_event(
                    dg.AssetCheckEvaluation(
                        asset_key=staging_key(spec.name),
                        check_name=QUARANTINE_EMPTY,
                        passed=after.passed,
                        severity=dg.AssetCheckSeverity.WARN,
                        description=after.description,
                        metadata={
                            name: dg.MetadataValue.int(value) if isinstance(value, int) else value
                            for name, value in after.metadata.items()
                        },
                    )
                )
