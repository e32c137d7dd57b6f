"""What became of everything that was sent, and whether that is what had to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from examples.demo import accounting, ledger_view
from examples.demo.deliveries import Delivery, Fate
from examples.demo.source import Source
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.store import Store

if TYPE_CHECKING:
    from examples.demo.run_counts import RunCounts


@dataclass(frozen=True)
class Outcome:
    """What was sent, and what there is to say of how it went.

    ``dropped_at`` is by dataset and file name, in seconds since the epoch. ``gateway_rows`` are the published rows
    according to the Pushgateway, None where there is none.
    """

    sources: Mapping[str, Source]
    days: int
    deliveries: Sequence[Delivery]
    dropped_at: Mapping[tuple[str, str], float]
    dropped_bytes: int
    runs: RunCounts
    gateway_rows: float | None
    pipeline_seconds: float

    @property
    def source_rows(self) -> int:
        """Rows of the source that were sent."""
        return sum(source.rows for source in self.sources.values())

    @property
    def refused_rows(self) -> int:
        """Rows that were sent and are not in the source, because they are wrong."""
        return sum(delivery.refused_rows for delivery in self.deliveries)

    def of_fate(self, fate: Fate) -> list[Delivery]:
        """Return the files that must meet ``fate``."""
        return [delivery for delivery in self.deliveries if delivery.fate is fate]


def problems(store: Store, outcome: Outcome) -> list[str]:
    """Return a sentence for everything that is not as it must be; none if every row is accounted for."""
    return [*_of_rows(store, outcome), *_of_files(store, outcome), *_of_totals(store, outcome)]


def quarantined_rows(store: Store) -> int:
    """Return how many rows were set aside while the others of their file were staged."""
    return sum(entry.rows or 0 for entry in ledger_view.quarantined(store) if entry.kind is QuarantineKind.ROWS)


def _of_rows(store: Store, outcome: Outcome) -> list[str]:
    found = []
    for dataset, source in outcome.sources.items():
        spec = store.datasets[dataset]
        expected = accounting.sums_of_source(spec, source.path, outcome.days)
        published = accounting.sums_of_table(spec, accounting.table_files(store, dataset))
        found += accounting.differences(spec, "the published table", expected, published)
        found += accounting.differences(spec, "the read API", expected, accounting.sums_of_reader(store, spec))
    return found


def _of_files(store: Store, outcome: Outcome) -> list[str]:
    fates: dict[tuple[str, str], tuple[Fate, int]] = {
        (batch.dataset, batch.source): (Fate.STAGED, 0) for batch in ledger_view.batch_times(store)
    }
    for entry in ledger_view.quarantined(store):
        whole = entry.kind is QuarantineKind.BATCH
        fates[entry.dataset, entry.source] = (Fate.QUARANTINED, 0) if whole else (Fate.STAGED, entry.rows or 0)
    found = []
    for delivery in outcome.deliveries:
        # A duplicate leaves no batch of its own, only a count.
        fate, refused = fates.get((delivery.dataset, delivery.name), (Fate.DUPLICATE, 0))
        if (fate, refused) != (delivery.fate, delivery.refused_rows):
            found.append(
                f"{delivery.dataset}: {delivery.name} should be {delivery.fate} with {delivery.refused_rows} rows "
                f"quarantined, and is {fate} with {refused}"
            )
    waiting = [path.name for path in store.settings.landing_path.glob("*/*")]
    if waiting:
        found.append(f"{len(waiting)} files are still in the landing folder, such as {waiting[0]}")
    return found


def _of_totals(store: Store, outcome: Outcome) -> list[str]:
    found = []
    standing, set_aside = ledger_view.standing(store), quarantined_rows(store)
    sent = outcome.source_rows + outcome.refused_rows
    if standing.published_rows + set_aside != sent:
        found.append(f"{sent:,} rows were sent, {standing.published_rows:,} published and {set_aside:,} quarantined")
    twice = len(outcome.of_fate(Fate.DUPLICATE))
    # A run that is repeated after a crash meets its own files again, and counts them.
    if standing.duplicates < twice:
        found.append(f"{twice} files were sent twice, {standing.duplicates} recognized as duplicates")
    if outcome.gateway_rows is not None and outcome.gateway_rows != standing.published_rows:
        found.append(
            f"the Pushgateway says that {outcome.gateway_rows:,.0f} rows were published, "
            f"the ledger {standing.published_rows:,}"
        )
    return found
