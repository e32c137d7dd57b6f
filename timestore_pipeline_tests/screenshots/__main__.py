"""Take the pictures: ``python -m timestore_pipeline_tests.screenshots [--home HOME] [--to docs/images]``."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from timestore_pipeline.orchestration.maintenance_job import MAINTENANCE_JOB
from timestore_pipeline_tests.e2e.browser import ROOT, browser_page, webserver
from timestore_pipeline_tests.screenshots.tour import PICTURES, PICTURES_OF_EXAMPLE, take_all

EXAMPLE = ROOT / "examples" / "own_assets"
_DAY = "2026-01-02"


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
    _dagster(environment, "job", "execute", "-m", "timestore_pipeline.definitions", "-j", MAINTENANCE_JOB)
    with tempfile.TemporaryDirectory() as folder, browser_page(chromium) as page:
        log = Path(folder) / "webserver.log"
        with webserver(environment, log) as address:
            _say(take_all(page, address, options.to, PICTURES))
        example = _example(Path(folder) / "example")
        with webserver(example, log, EXAMPLE / "workspace.yaml") as address:
            _say(take_all(page, address, options.to, PICTURES_OF_EXAMPLE))
    return 0


def _say(pictures: Iterable[Path]) -> None:
    for path in pictures:
        print(f"{path.parent.name}/{path.name}  {path.stat().st_size / 1e3:,.0f} KB")


def _example(home: Path) -> dict[str, str]:
    """Materialize the example's assets, and the table between them, in an installation of their own."""
    (home / "dagster_home").mkdir(parents=True)
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster_home" / "dagster.yaml")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TIMESTORE_")},
        "PYTHONPATH": str(ROOT),
        "DAGSTER_HOME": str(home / "dagster_home"),
        "TIMESTORE_HOME": str(home),
        "TIMESTORE_DATASETS_FILE": str(EXAMPLE / "datasets.yaml"),
    }
    own, theirs = ("-f", str(EXAMPLE / "definitions.py")), ("-m", "timestore_pipeline.definitions")
    _dagster(environment, "asset", "materialize", *own, "--select", "key:stations/readings", "--partition", _DAY)
    _dagster(environment, "asset", "materialize", *theirs, "--select", "key:partitions/readings", "--partition", _DAY)
    _dagster(environment, "asset", "materialize", *own, "--select", "key:reports/daily_means", "--partition", _DAY)
    return environment


def _dagster(environment: Mapping[str, str], *words: str) -> None:
    command = [str(Path(sys.executable).with_name("dagster")), *words]
    done = subprocess.run(command, env=dict(environment), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}:\n{done.stderr[-4_000:]}")


def _variables(file: Path) -> dict[str, str]:
    """Return what a file of ``export NAME=value`` lines sets."""
    words = shlex.split(file.read_text(encoding="utf-8"), comments=True)
    return dict(word.split("=", 1) for word in words if word != "export")


if __name__ == "__main__":
    sys.exit(main())
