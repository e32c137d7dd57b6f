"""An operator in the Dagster UI: looks at the lineage, launches a backfill with other thresholds, sees it succeed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.execution.backfill import BulkActionStatus

from timestore_pipeline.ledger.builds import published_totals
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, parquet_bytes
from timestore_pipeline_tests.e2e.conftest import Deployment

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e"), pytest.mark.server]

WINDOWS = ["2026-01-01", "2026-01-02", "2026-01-03"]
CONFIG = """ops:
  partitions__weather:
    config:
      when: due
      flush_max_rows: 5
"""


@pytest.mark.timeout(500)
def test_a_backfill_of_three_windows_with_other_thresholds(
    deploy: Callable[..., Deployment],
    drop: Callable[[Store, str, str, str | bytes], Path],
    program: Callable[[str], str],
    tmp_path: Path,
):
    from timestore_pipeline_tests.e2e import browser

    chromium = program("chromium")
    deployment = deploy(staging_flush_max_age_ms=0)  # 50,000 rows would be due, and no age
    drop(deployment.store, "weather", "four-days.parquet", parquet_bytes(hourly(24 * 4)))
    deployment.start()
    deployment.wait_for("the file is staged", lambda: staged_rows(deployment) == 96)

    with (
        browser.webserver(deployment.environment, tmp_path / "webserver.log") as address,
        browser.browser_page(chromium, tmp_path / "last-look.png") as page,
    ):
        browser.open_lineage(page, address, "weather")
        for kind in ("File", "DuckDB", "Delta Lake"):
            page.get_by_text(kind, exact=True).first.wait_for()

        dialog = browser.choose_windows(page, address, "weather", f"[{WINDOWS[0]}...{WINDOWS[-1]}]")
        dialog.get_by_text("3 partitions").wait_for()
        browser.save_config(browser.set_config(page, dialog, CONFIG))
        browser.launch(dialog)
        deployment.wait_for("the backfill is there", lambda: bool(deployment.instance.get_backfills(limit=1)))
        (backfill,) = deployment.instance.get_backfills(limit=2)
        page.goto(f"{address}/runs/b/{backfill.backfill_id}")
        page.get_by_text("Completed", exact=False).or_(page.get_by_text("Succeeded")).first.wait_for(timeout=240_000)
        deployment.wait_for("the backfill has ended", lambda: ended(deployment, backfill.backfill_id))

        page.goto(f"{address}/assets/partitions/weather?view=partitions&partition={WINDOWS[0]}")
        page.get_by_text("Materialized (3)").wait_for()
        page.get_by_text("flush_seconds").wait_for()

    (run,) = deployment.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill.backfill_id}))
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.tags["timestore/trigger"] == "backfill"
    assert run.tags["timestore/windows"] == "2026-01-01...2026-01-03"
    assert run.run_config == yaml.safe_load(CONFIG)
    with deployment.store.ledger.read() as tx:
        assert published_totals(tx)["weather"][:2] == (3, 72)


def staged_rows(deployment: Deployment) -> int:
    with deployment.store.ledger.read() as tx:
        return sum(state.pending_rows for state in queue_states(tx).values())


def ended(deployment: Deployment, backfill_id: str) -> bool:
    backfill = deployment.instance.get_backfill(backfill_id)
    return backfill is not None and backfill.status is BulkActionStatus.COMPLETED_SUCCESS
