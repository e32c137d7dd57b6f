"""Take the pictures: ``python -m timestore_pipeline_tests.screenshots [--home HOME] [--to docs/images]``."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from timestore_pipeline_tests.e2e.browser import ROOT, browser_page, webserver
from timestore_pipeline_tests.screenshots.tour import take_all


def main() -> int:
    """Take every picture; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m timestore_pipeline_tests.screenshots", description=__doc__)
    parser.add_argument("--home", type=Path, default=ROOT / ".demo", help="the demo's folder (.demo)")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "images", help="where the pictures go (docs/images)")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("There is no chromium. On Debian and Ubuntu: apt-get install chromium", file=sys.stderr)
        return 1
    settings = options.home / "environment"
    if not settings.exists():
        print(f"There is no demo in {options.home}: run 'make demo' first", file=sys.stderr)
        return 1
    environment = {**os.environ, **_variables(settings), "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory() as folder,
        webserver(environment, Path(folder) / "webserver.log") as address,
        browser_page(chromium) as page,
    ):
        for path in take_all(page, address, options.to):
            print(f"{path.relative_to(options.to.parent)}  {path.stat().st_size / 1e3:,.0f} KB")
    return 0


def _variables(file: Path) -> dict[str, str]:
    """Return what a file of ``export NAME=value`` lines sets."""
    words = shlex.split(file.read_text(encoding="utf-8"), comments=True)
    return dict(word.split("=", 1) for word in words if word != "export")


if __name__ == "__main__":
    sys.exit(main())
