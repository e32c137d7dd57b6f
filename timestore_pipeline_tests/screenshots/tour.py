"""What there is to see: each picture with the page that it shows, in the order of ``docs/ui.md``."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from timestore_pipeline_tests.e2e.browser import choose_windows, open_lineage, set_config

_COLORS = 128
_LOCATION = "locations/timestore_pipeline"

CONFIG = """ops:
  partitions__flights:
    config:
      when: due
      flush_max_rows: 1000
      target_file_bytes: 33554432
"""


Show = Callable[[Page, str], None]


def take_all(page: Page, address: str, folder: Path, pictures: Mapping[str, Show]) -> Iterator[Path]:
    """Take every picture into ``folder`` and yield its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, show in pictures.items():
        show(page, address)
        # What is still fading in or being plotted.
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1_500)
        path = folder / f"ui-{name}.png"
        _compressed(page.screenshot(), path)
        yield path
        page.keyboard.press("Escape")


def _compressed(picture: bytes, path: Path) -> None:
    """Write a screenshot with few colours: a tenth of the size, and nobody sees a difference."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def lineage(page: Page, address: str) -> None:
    """Landing, staging and partitions of a dataset."""
    open_lineage(page, address, "flights")


def asset(page: Page, address: str) -> None:
    """What a table is."""
    page.goto(f"{address}/assets/partitions/flights?view=overview")
    page.get_by_text("Kinds").first.wait_for()
    page.get_by_text("Delta Lake").first.wait_for()


def partition(page: Page, address: str) -> None:
    """One window and the numbers of its last build."""
    page.goto(f"{address}/assets/partitions/flights?view=partitions&partition=2013-01")
    page.get_by_text("flush_seconds").first.wait_for()


def events(page: Page, address: str) -> None:
    """What happened to a table."""
    page.goto(f"{address}/assets/partitions/flights?view=events")
    page.get_by_text("2013-01").first.wait_for()


def checks(page: Page, address: str) -> None:
    """The row audit of a table."""
    page.goto(f"{address}/assets/partitions/flights?view=checks&checkDetail=row_audit")
    page.get_by_text("row_audit").first.wait_for()


def runs(page: Page, address: str) -> None:
    """Runs by their tags."""
    page.goto(f"{address}/runs?q%5B0%5D=tag%3Atimestore%2Fdatasets%3Dflights")
    page.get_by_text("partition_build").first.wait_for()


def sensor(page: Page, address: str) -> None:
    """Ticks of the flush sensor."""
    page.goto(f"{address}/{_LOCATION}/sensors/flush_sensor")
    page.get_by_text("Evaluations").first.wait_for()
    page.get_by_text("1hr", exact=True).click()


def tick(page: Page, address: str) -> None:
    """Why a tick asked for a run."""
    sensor(page, address)
    page.get_by_text("All ticks").first.click()
    page.get_by_text("Requested", exact=True).click()
    page.get_by_text("1 requested").or_(page.get_by_text("1 run requested")).first.wait_for()
    page.get_by_role("button", name="View logs").first.click()
    page.get_by_text("flush by").first.wait_for()


def launchpad(page: Page, address: str) -> None:
    """A backfill with thresholds of its own."""
    dialog = choose_windows(page, address, "flights", "[2013-01...2013-03]")
    set_config(page, dialog, CONFIG)


def plots(page: Page, address: str) -> None:
    """The numbers of a table's windows over time."""
    asset(page, address)
    page.get_by_role("button", name="Plots").click()
    # By partition it would show the newest ones, and the demo's are of 2013.
    page.get_by_text("Events", exact=True).last.click()
    page.locator("canvas").first.wait_for()
    page.locator("canvas").first.evaluate("plot => plot.scrollIntoView()")


def maintenance(page: Page, address: str) -> None:
    """What the maintenance job freed."""
    page.goto(f"{address}/runs?q%5B0%5D=job%3Amaintenance")
    page.locator("a[href^='/runs/']").first.click()
    page.get_by_text("View full message").first.click()
    page.get_by_text("files_merged_into").last.wait_for()


def consumers(page: Page, address: str) -> None:
    """Assets of another code location around a table."""
    page.goto(f"{address}/assets/partitions/readings?view=lineage&lineageScope=neighbors")
    page.get_by_text("daily_means").first.wait_for()


PICTURES: dict[str, Show] = {
    "lineage": lineage,
    "asset": asset,
    "partition": partition,
    "events": events,
    "plots": plots,
    "checks": checks,
    "runs": runs,
    "sensor": sensor,
    "tick": tick,
    "launchpad": launchpad,
    "maintenance": maintenance,
}

PICTURES_OF_EXAMPLE: dict[str, Show] = {"consumers": consumers}
