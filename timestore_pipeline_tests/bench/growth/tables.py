"""What a table's log costs as versions are added: opening it, planning a read, committing the next build."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.states import BuildState
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import WINDOW_COLUMN, Column
from timestore_pipeline.storage.local import LocalStorage
from timestore_pipeline.table.commit import commit_build, ensure_table
from timestore_pipeline.table.contents import ParquetFile, file_bounds, live_files
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.opening import open_table
from timestore_pipeline_tests.bench.growth.cost import cost_of
from timestore_pipeline_tests.builders import build_of

ROUNDS = 5
COMPACTED_FILES = 100
_CHECKPOINT_EVERY = 100
_NAME = "ticks"
_INSTALLATION = "0" * 32
_COLUMNS = (Column("time", "TIMESTAMP"), Column("id", "BIGINT"), Column("value", "DOUBLE"))


@dataclass(frozen=True)
class _Own:
    """A table that nobody has to ask whose it is: there is no ledger here."""

    place: LocalStorage
    dataset: str = _NAME
    installation: str = _INSTALLATION

    def opened(self) -> DeltaTable:
        """Open it, and find nothing to object to."""
        return open_table(self.place, self.dataset)


def measure(versions: tuple[int, ...], workspace: Path, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Return a row per number of versions and per life that the table had."""
    found = []
    for number in sorted(versions):
        for life in ("never compacted", "compacted", "compacted, log cleaned"):
            path = workspace / f"{number}-{life.replace(', ', '-').replace(' ', '-')}"
            _grow(path, number, compacted=life != "never compacted", cleaned=life.endswith("cleaned"))
            found.append({"versions": number, "life": life, **_row(path, number)})
            shutil.rmtree(path)
        say(f"tables of {number:,} versions: measured")
    return found


def _row(path: Path, versions: int) -> dict[str, Any]:
    place = LocalStorage(path)
    log = path / "_delta_log"
    entries = list(log.iterdir())

    def commit(number: int) -> None:
        commit_build(_Own(place), _build(versions + number + 1), _COLUMNS, [_file(path, versions + number + 1)])

    def plan(_: int) -> None:
        file_bounds(open_table(place, _NAME))

    return {
        "files": len(live_files(open_table(place, _NAME))),
        "log_entries": len(entries),
        "log_bytes": sum(entry.stat().st_size for entry in entries),
        "costs": {
            "open": asdict(cost_of(lambda _: open_table(place, _NAME), ROUNDS)),
            "plan a read": asdict(cost_of(plan, ROUNDS)),
            "commit": asdict(cost_of(commit, ROUNDS)),
        },
    }


def _grow(path: Path, versions: int, *, compacted: bool, cleaned: bool) -> None:
    """Make a table of so many versions: the entries of the log are copies of a real one, with a real checkpoint."""
    place = LocalStorage(path)
    ensure_table(place, _NAME, _COLUMNS, _INSTALLATION)
    commit_build(_Own(place), _build(1), _COLUMNS, [_file(path, 1)])
    log = path / "_delta_log"
    pattern = (log / f"{1:020d}.json").read_text()
    added = json.loads(next(line for line in pattern.splitlines() if '"add"' in line))["add"]
    for version in range(2, versions + 1):
        entry = pattern.replace(added["path"], _path(version)).replace('"version":1', f'"version":{version}')
        if compacted and version > COMPACTED_FILES:
            gone = {name: added[name] for name in ("partitionValues", "size")}
            removed = {"path": _path(version - COMPACTED_FILES), "dataChange": False, "deletionTimestamp": now_micros() // 1_000, "extendedFileMetadata": True, **gone}  # fmt: skip  # noqa: E501
            entry += "\n" + json.dumps({"remove": removed})
        (log / f"{version:020d}.json").write_text(entry)
        if version % _CHECKPOINT_EVERY == 0 and version + _CHECKPOINT_EVERY > versions:
            open_table(place, _NAME).create_checkpoint()
            if cleaned:
                for old in range(version):
                    (log / f"{old:020d}.json").unlink(missing_ok=True)


def _path(version: int) -> str:
    return f"{WINDOW_COLUMN}=2026-01-01-00:00/{version:08d}.parquet"


def _file(path: Path, version: int) -> ParquetFile:
    target = path / _path(version)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"0" * 100)
    micros = 1_767_225_600_000_000 + version
    bounds = {"time": str(micros), "id": 1, "value": 1.0}
    statistics = {"numRecords": 1_000, "minValues": bounds, "maxValues": bounds, "nullCount": dict.fromkeys(bounds, 0)}
    return replace(_LIKE, path=_path(version), bytes=100, modified_at_ms=int(time.time() * 1e3), statistics=statistics)


_LIKE = ParquetFile(path="", window_key="2026-01-01-00:00", rows=1_000, bytes=100, modified_at_ms=0, statistics={})


def _build(sequence: int) -> Build:
    now = now_micros()
    state, lease = BuildState.CLAIMED, now + 10**9
    return build_of(_NAME, id=sequence, sequence=sequence, state=state, claimed_at=now, lease_expires_at=lease)
