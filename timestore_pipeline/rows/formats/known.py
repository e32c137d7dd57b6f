"""The formats that there are (short, because it is the list that a new one joins)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.rows.formats.arrow_files import Arrow
from timestore_pipeline.rows.formats.csv_files import Csv
from timestore_pipeline.rows.formats.format import File, Format
from timestore_pipeline.rows.formats.json_array import JsonArray
from timestore_pipeline.rows.formats.json_lines import JsonLines
from timestore_pipeline.rows.formats.parquet_files import Parquet
from timestore_pipeline.rows.reasons import UnreadableFile

TABLES = Arrow()
"""The format of tables in memory."""

FORMATS: tuple[Format, ...] = (JsonArray(), JsonLines(), Csv(), TABLES, Parquet())

MEDIA_TYPES: Mapping[str, Format] = {media_type: format_ for format_ in FORMATS for media_type in format_.media_types}
"""The Content-Types that are taken."""

_BY_NAME = {format_.name: format_ for format_ in FORMATS if format_.name}
_BY_ENDING = {ending: format_ for name, format_ in _BY_NAME.items() for ending in name.endings}


def file_of(spec: DatasetSpec, path: Path) -> File:
    """Return a landing file with its format, which the dataset tells, or else the name.

    Raises:
        UnreadableFile: neither does.
    """
    if spec.landing.format is not FileFormat.AUTO:
        return File(path, _BY_NAME[spec.landing.format])
    name = path.name.lower().removesuffix(".gz")
    found = _BY_ENDING.get(Path(name).suffix)
    if found is None:
        raise UnreadableFile(
            f"its name does not tell its format (known endings: {', '.join(sorted(_BY_ENDING))}); "
            "rename the file or set landing.format of the dataset"
        )
    return File(path, found)
