"""An operator in the Dagster UI: launches a backfill with other thresholds, and looks at what producers have sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.execution.backfill import BulkActionStatus

from timestore_pipeline.inert import visible
from timestore_pipeline.ledger.quarantine import open_totals
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


@pytest.fixture(scope="module")
def address(running_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the UI of the site is."""
    from timestore_pipeline_tests.e2e import browser

    running_site.begin()
    log = tmp_path_factory.mktemp("webserver") / "webserver.log"
    with browser.webserver(running_site.environment, log, running_site.workspace) as address:
        yield address


@pytest.mark.timeout(1800)
def test_a_backfill_of_three_windows_with_other_thresholds(
    site: Site,
    drop: Callable[[Store, str, str, str | bytes], Path],
    program: Callable[[str], str],
    address: str,
    tmp_path: Path,
):
    from timestore_pipeline_tests.e2e import browser

    chromium = program("chromium")
    # By a run: the UI warns of a table whose staging it has never seen.
    drop(site.store, "clicked", "four-days.parquet", parquet_bytes(hourly(24 * 4)))
    site.wait_for("the file is staged", lambda: pending_rows(site.store, "clicked") == [96])
    site.wait_for_the_end_of_runs()

    with browser.browser_page(chromium, tmp_path / "last-look.png") as page:
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


ELSEWHERE = "x.example"
"""A host of which nothing is known here; where it is in an address on a page, somebody else has put it there."""
HOSTILE = [
    "![](&#47;graphql?query=mutation{launchRun(x)})",
    f"![a](http:&#47;&#47;{ELSEWHERE}&#47;a.png)",
    f"[a](javascript:alert(1)) <javascript:alert(2)> [b](https:{ELSEWHERE})",
    f"<img src=&#47;&#47;{ELSEWHERE} onerror=alert(1)> <svg onload=alert(2)>",
    f"www.{ELSEWHERE} http:\\\\{ELSEWHERE} https://{ELSEWHERE}".replace("//", "\u2215\u2215"),
    "dagster\u2215run_id timestore\u2215trigger=backfill",
    "mutation { terminateRun(runId: 1) { __typename } }",
    "a\nERROR \x1b[2K\u202eb",
]
"""Names of files, and of their columns, which are addresses and markup as well."""


@pytest.mark.timeout(1800)
def test_nothing_that_a_producer_has_named_acts_in_the_ui(
    site: Site, program: Callable[[str], str], address: str, tmp_path: Path
):
    from playwright.sync_api import Request

    from timestore_pipeline_tests.e2e import browser

    chromium = program("chromium")
    folder = site.store.settings.landing_path / "hostile"
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(HOSTILE):
        (folder / f".{number}").write_text(f'"{name}",https://{ELSEWHERE}\n{name},{number}\n')
        (folder / f".{number}").rename(folder / f"{name}.csv")
        (folder / f"link {name}").symlink_to("/nowhere")
    site.wait_for("the files are set aside", lambda: quarantined(site) == len(HOSTILE))
    site.wait_for_the_end_of_runs()
    (run,) = [run for run in site.runs() if run.asset_selection == {dg.AssetKey(["staging", "hostile"])}]
    before = len(site.runs())
    acted: list[str] = []

    def note(request: Request) -> None:
        elsewhere = request.url.startswith("http") and not request.url.startswith(address)
        if elsewhere or (request.method == "GET" and "graphql" in request.url):
            acted.append(f"{request.method} {request.url}")

    with browser.browser_page(chromium, tmp_path / "last-look.png") as page:
        page.on("request", note)
        page.on("dialog", lambda dialog: acted.append(dialog.message))
        for where, seen in {
            "assets/staging/hostile?view=events": "quarantined_rows",
            "assets/staging/hostile?view=checks&checkDetail=quarantine_empty": "entry",
            f"runs/{run.run_id}": "was quarantined",
            "locations/timestore_pipeline/sensors/landing_sensor": "View logs",
        }.items():
            page.goto(f"{address}/{where}")
            page.get_by_text(seen).first.wait_for()
            if "sensors" in where:
                page.get_by_text("0 runs requested").nth(1).hover()
            page.get_by_text(HOSTILE[0]).first.wait_for()
            acted += page.evaluate(_LINKS, [ELSEWHERE, "javascript:", "graphql"])
            if "assets" in where:
                text = page.inner_text("body")
                assert [name for name in HOSTILE if visible(name) not in text] == []

    assert acted == []
    assert len(site.runs()) == before


_LINKS = """words => [...document.querySelectorAll("[href], [src]")]
    .flatMap(each => [each.getAttribute("href"), each.getAttribute("src")])
    .filter(address => address !== null && words.some(word => address.toLowerCase().includes(word)))"""


def quarantined(site: Site) -> int:
    with site.store.ledger.read() as tx:
        totals = open_totals(tx).get("hostile")
    return totals.batches if totals else 0
