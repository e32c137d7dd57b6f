"""What a code location costs to load, by its number of datasets: every process of a run pays it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timestore_pipeline_tests.bench.growth.history import declare


def measure(datasets: tuple[int, ...], workspace: Path, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Return a row per number of datasets: CPU seconds and memory of a process that loads their definitions."""
    found = []
    for number in sorted(datasets):
        with tempfile.TemporaryDirectory(dir=workspace) as folder:
            command = [sys.executable, "-m", "timestore_pipeline_tests.bench.growth.definitions", folder, str(number)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append({"datasets": number, **json.loads(answer)})
        say(f"definitions of {number:,} datasets: loaded")
    return found


def _load(folder: Path, number: int) -> dict[str, float]:
    declare(folder, number)
    from timestore_pipeline.datasets import load_datasets
    from timestore_pipeline.orchestration.location import build_definitions
    from timestore_pipeline.settings import Settings

    imported, before = time.process_time(), _memory_mib()
    settings = Settings.model_validate({"home": folder})
    repository = build_definitions(settings, load_datasets(settings.datasets_path)).get_repository_def()
    loaded = time.process_time()
    from dagster._core.remote_representation.external_data import RepositorySnap  # noqa: TID251 - what the webserver asks for

    RepositorySnap.from_def(repository)
    described = time.process_time()
    return {
        "import_seconds": imported,
        "load_seconds": loaded - imported,
        "describe_seconds": described - loaded,
        "memory_mib": _memory_mib() - before,
    }


def _memory_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1_024


if __name__ == "__main__":
    print(json.dumps(_load(Path(sys.argv[1]), int(sys.argv[2]))))
