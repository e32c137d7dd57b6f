"""An operator in the Dagster UI: looks at the lineage, launches a backfill with other thresholds, sees it succeed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.execution.backfill import BulkActionStatus

from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, parquet_bytes
from timestore_pipeline_tests.e2e.conftest import Deployment, Site
from timestore_pipeline_tests.e2e.test_daemon import pending_rows

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e"), pytest.mark.server]

WINDOWS = ["2026-01-01", "2026-01-02", "2026-01-03"]
# Nothing of the dataset is due by its own thresholds.
CONFIG = """ops:
  partitions__clicked:
    config:
      when: due
      flush_max_rows: 5
"""


@pytest.mark.timeout(1800)
def test_a_backfill_of_three_windows_with_other_thresholds(
    site: Site,
    drop: Callable[[Store, str, str, str | bytes], Path],
    program: Callable[[str], str],
    tmp_path: Path,
):
    from timestore_pipeline_tests.e2e import browser

    chromium = program("chromium")
    # By a run: the UI warns of a table whose staging it has never seen.
    drop(site.store, "clicked", "four-days.parquet", parquet_bytes(hourly(24 * 4)))
    site.wait_for("the file is staged", lambda: pending_rows(site.store, "clicked") == [96])
    site.wait_for_the_end_of_runs()

    with (
        browser.webserver(site.environment, tmp_path / "webserver.log", site.workspace) as address,
        browser.browser_page(chromium, tmp_path / "last-look.png") as page,
    ):
        browser.open_lineage(page, address, "clicked")
        for kind in ("File", "DuckDB", "Delta Lake"):
            page.get_by_text(kind, exact=True).first.wait_for()

        dialog = browser.choose_windows(page, address, "clicked", f"[{WINDOWS[0]}...{WINDOWS[-1]}]")
        dialog.get_by_text("3 partitions").wait_for()
        browser.save_config(browser.set_config(page, dialog, CONFIG))
        before = {each.backfill_id for each in site.instance.get_backfills()}
        browser.launch(dialog)
        site.wait_for("the backfill is there", lambda: len(site.instance.get_backfills()) > len(before))
        (backfill,) = [each for each in site.instance.get_backfills() if each.backfill_id not in before]
        page.goto(f"{address}/runs/b/{backfill.backfill_id}")
        page.get_by_text("Completed", exact=False).or_(page.get_by_text("Succeeded")).first.wait_for(timeout=240_000)
        site.wait_for("the backfill has ended", lambda: ended(site, backfill.backfill_id))

        page.goto(f"{address}/assets/partitions/clicked?view=partitions&partition={WINDOWS[0]}")
        page.get_by_text("Materialized (3)").wait_for()
        page.get_by_text("flush_seconds").wait_for()

    (run,) = site.runs(tags={"dagster/backfill": backfill.backfill_id})
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.tags["timestore/trigger"] == "backfill"
    assert run.tags["timestore/windows"] == "2026-01-01...2026-01-03"
    assert run.run_config == yaml.safe_load(CONFIG)
    with site.store.ledger.read() as tx:
        assert published_totals(tx)["clicked"][:2] == (3, 72)


def ended(deployment: Deployment, backfill_id: str) -> bool:
    backfill = deployment.instance.get_backfill(backfill_id)
    return backfill is not None and backfill.status is BulkActionStatus.COMPLETED_SUCCESS
