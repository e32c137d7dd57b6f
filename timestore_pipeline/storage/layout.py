"""The names of what lies in staging, and what a name says. Nobody else spells a path there.

==============================================  =========================================================
``<dataset>/<segment>.duckdb``                  a segment
``<dataset>/.timestore-segments``               the mark of the folder of a dataset's segments
``_quarantine/<dataset>/<segment>.duckdb``      a segment of which part is damaged
``_quarantine/<dataset>/<segment>.rows.parquet``  the rows that were refused when the segment was written
``….rows.parquet.<ordinal>.resolved``           an empty file: the rows of one of the batches were dealt with
``_quarantine/<dataset>/<other name>``          a file that could not be read
``_corrections/<dataset>/<segment>.json``       a correction, with the id of the segment that it came with
``….json.pending``                              the same, before it is acknowledged
==============================================  =========================================================
"""

from __future__ import annotations

from pathlib import PurePosixPath

from timestore_pipeline.durable_files import TEMPORARY_SUFFIX

ASIDE = "_quarantine"
"""The folder of what was set aside; no dataset can be called that."""

_CORRECTIONS = "_corrections"
_CORRECTION = ".json"
_PENDING = ".pending"
_SEGMENT = ".duckdb"
_REFUSED_ROWS = ".rows.parquet"
_DECIDED = ".resolved"
_SEGMENTS_MARK = ".timestore-segments"


def segment_key(dataset: str, segment_id: str) -> str:
    """Return where a segment is."""
    return f"{dataset}/{segment_id}{_SEGMENT}"


def key_aside(dataset: str, name: str) -> str:
    """Return where a file of that name is set aside; ``name`` may be a key, of which the last part counts."""
    return f"{ASIDE}/{dataset}/{name.rpartition('/')[2]}"


def refused_rows_key(dataset: str, segment_id: str) -> str:
    """Return where the rows are that were refused when a segment was written."""
    return key_aside(dataset, f"{segment_id}{_REFUSED_ROWS}")


def decided_key(key: str, ordinal: int) -> str:
    """Return the name of the sign that the rows of a batch in a file of refused rows were retried or discarded."""
    return f"{key}.{ordinal}{_DECIDED}"


def decided_by(key: str) -> tuple[str, int] | None:
    """Return of which file and batch a file is the sign that they are decided; None where it is none."""
    file, _, ordinal = key.removesuffix(_DECIDED).rpartition(".")
    return (file, int(ordinal)) if key.endswith(_DECIDED) and ordinal.isdecimal() else None


def segments_mark(dataset: str) -> str:
    """Return the name of the empty file by which the folder of a dataset's segments is known again."""
    return f"{dataset}/{_SEGMENTS_MARK}"


def correction_key(dataset: str, segment_id: str) -> str:
    """Return where the correction is that came with a segment, or with a batch that has no row."""
    return f"{_CORRECTIONS}/{dataset}/{segment_id}{_CORRECTION}"


def pending_correction(key: str) -> str:
    """Return where a correction is before it is acknowledged."""
    return f"{key}{_PENDING}"


def acknowledged_correction(key: str) -> str | None:
    """Return where a correction that is pending will be; None of a file that is none."""
    return key.removesuffix(_PENDING) if key.endswith(f"{_CORRECTION}{_PENDING}") else None


def is_correction(key: str) -> bool:
    """Whether a file is a correction that was acknowledged, by its name and where it lies."""
    return key.startswith(f"{_CORRECTIONS}/") and key.endswith(_CORRECTION)


def gathering_file(dataset: str, sequence: int) -> str:
    """Return the name, in DuckDB's folder for temporary files, of what a build gathers rows in."""
    return f"{dataset}-{sequence}{_SEGMENT}{TEMPORARY_SUFFIX}"


def gathering_files(dataset: str) -> str:
    """Return the pattern of such names, and of what DuckDB writes beside these files."""
    return f"{dataset}-*{_SEGMENT}{TEMPORARY_SUFFIX}*"


def folders_of(dataset: str) -> tuple[str, str, str]:
    """Return the folders of a dataset's segments, of what was set aside, and of its corrections."""
    return dataset, f"{ASIDE}/{dataset}", f"{_CORRECTIONS}/{dataset}"


def dataset_of(key: str) -> str | None:
    """Return the dataset of a segment, a correction, or of whatever was set aside; None for other files."""
    match key.split("/"):
        case [dataset, name] if is_segment(name):
            return dataset
        case [folder, dataset, _] if folder in (ASIDE, _CORRECTIONS):
            return dataset
    return None


def is_aside(key: str) -> bool:
    """Whether a file was set aside."""
    return key.startswith(f"{ASIDE}/")


def is_segment(key: str) -> bool:
    """Whether a file is a segment, by its name."""
    return key.endswith(_SEGMENT)


def is_refused_rows(key: str) -> bool:
    """Whether a file has refused rows, by its name."""
    return key.endswith(_REFUSED_ROWS)


def is_of_segment(key: str) -> bool:
    """Whether a file is a segment or was on its way to be one, by its name."""
    return _SEGMENT in PurePosixPath(key).suffixes


def is_unfinished(key: str) -> bool:
    """Whether a file never got its own name: whoever wrote it died, or is at it."""
    return key.endswith(TEMPORARY_SUFFIX)
