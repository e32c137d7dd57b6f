"""The Dagster UI in headless Chromium: what a test and the screenshots of the docs do there, in an operator's words."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

from timestore_pipeline_tests.ports import unused_port

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT = 1_360, 820
_START_SECONDS = 600


@contextlib.contextmanager
def browser_page(chromium: str, last_look: Path | None = None) -> Iterator[Page]:
    """Open a page in a browser of its own; ``chromium`` is the path of the program.

    When what is done there fails, ``last_look`` is a picture of what was to be seen.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--no-proxy-server"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(180_000)
        try:
            yield page
        except BaseException:
            if last_look is not None:
                page.screenshot(path=last_look)
            raise
        finally:
            browser.close()


@contextlib.contextmanager
def webserver(environment: Mapping[str, str], log: Path, workspace: Path = ROOT / "workspace.yaml") -> Iterator[str]:
    """Run a Dagster webserver over the instance of ``environment``; gives its address once it answers."""
    address = f"http://127.0.0.1:{(port := unused_port())}"
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
    with log.open("ab") as output:
        server = subprocess.Popen(
            [*command, "-w", str(workspace)],
            cwd=ROOT,
            env=dict(environment),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_it_answers(address, server, log)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(240)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_it_answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            opener.open(f"{address}/server_info", timeout=5).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no webserver on {address}:\n{log.read_text(errors='replace')[-4_000:]}") from None
            time.sleep(0.2)


def open_lineage(page: Page, address: str, group: str, assets: int = 3) -> None:
    """Open the lineage of a dataset's group and wait until its assets are drawn."""
    page.goto(f"{address}/locations/timestore_pipeline/asset-groups/{group}/lineage")
    page.get_by_text("Latest event").nth(assets - 1).wait_for()


def choose_windows(page: Page, address: str, dataset: str, windows: str) -> Locator:
    """Open the dialog that materializes ``partitions/<dataset>`` and choose ``windows``, such as ``[a...b]``."""
    page.goto(f"{address}/assets/partitions/{dataset}?view=partitions")
    page.get_by_role("button", name="Materialize…").first.click()
    dialog = page.locator(".bp5-dialog").last
    field = dialog.get_by_placeholder("ex: ")
    # Of many windows the dialog offers the last 90 days first.
    show_all = dialog.get_by_text("Show all partitions")
    field.or_(show_all).first.wait_for()
    if show_all.is_visible():
        show_all.click()
    field.fill(windows)
    field.press("Enter")
    return dialog


def set_config(page: Page, dialog: Locator, text: str) -> Locator:
    """Open the launchpad's editor in the dialog and put ``text`` in; returns it, for :func:`save_config` to close."""
    dialog.get_by_text("Config", exact=True).click()
    dialog.get_by_text("Add config").click()
    editor = page.locator(".bp5-dialog").last
    editor.locator(".CodeMirror").click()
    page.keyboard.insert_text(text)
    editor.get_by_text("No errors").wait_for()
    return editor


def save_config(editor: Locator) -> None:
    """Close the editor; the dialog has its config."""
    editor.get_by_role("button", name="Save config").click()
    editor.get_by_role("button", name="Save config").wait_for(state="hidden")


def launch(dialog: Locator) -> None:
    """Press the button and wait until the dialog has gone."""
    button = dialog.get_by_role("button", name="Launch backfill")
    button.click()
    button.wait_for(state="hidden")
