"""What ``landing_sensor`` remembers: which files it has asked a run for, so that it does not ask again and again.

Files that an ingest run took are gone from landing or known to the ledger. Those that could not be taken (changing,
unreadable, no disk left) are asked for again at growing intervals, and at once when a file comes or changes. Losing
the cursor costs one run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from timestore_pipeline.landing.found import LandingFile

_FIRST_WAIT_SECONDS = 30
_LONGEST_WAIT_SECONDS = 900


@dataclass(frozen=True)
class Asked:
    """A request for the files of one dataset; ``at`` in seconds since the epoch."""

    files: str
    at: float
    times: int

    @property
    def again_at(self) -> float:
        """When to ask again if the same files are still there."""
        return self.at + min(_FIRST_WAIT_SECONDS * 2 ** (self.times - 1), _LONGEST_WAIT_SECONDS)


def fingerprint(files: Sequence[LandingFile]) -> str:
    """Return what changes when a file comes, goes or changes."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.path}\0{file.bytes}\0{file.modified_at}\0{file.version}\0".encode())
    return digest.hexdigest()


def select_new(
    shares: Mapping[str, Sequence[LandingFile]], asked: Mapping[str, Asked], now: float
) -> tuple[list[str], dict[str, Asked]]:
    """Return the datasets to ask a run for, and what to remember if that is done.

    Datasets without files are forgotten.
    """
    wanted: list[str] = []
    remembered: dict[str, Asked] = {}
    for dataset, files in shares.items():
        digest, before = fingerprint(files), asked.get(dataset)
        if before is not None and before.files == digest:
            if now < before.again_at:
                remembered[dataset] = before
                continue
            remembered[dataset] = Asked(digest, now, before.times + 1)
        else:
            remembered[dataset] = Asked(digest, now, 1)
        wanted.append(dataset)
    return sorted(wanted), remembered


def read_cursor(text: str | None) -> dict[str, Asked]:
    """Return what a cursor says; nothing where it is empty or of another version."""
    try:
        return {dataset: Asked(**fields) for dataset, fields in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def write_cursor(asked: Mapping[str, Asked]) -> str:
    """Return the cursor to keep."""
    return json.dumps({dataset: asdict(request) for dataset, request in sorted(asked.items())})
