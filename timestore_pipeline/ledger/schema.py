"""The tables of the ledger; the states of their rows are in ``states`` (long, because it is one declaration).

Times are microseconds since the Unix epoch (UTC), so that SQLite and PostgreSQL order and add them alike.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

VERSION_TABLE = "timestore_version"
"""Where Alembic keeps the schema's version: not under its usual name, which Dagster's tables in the database use."""


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


# SQLite gives a rowid only to a primary key whose type is spelled INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")


def _of_rows(condition: str) -> dict[str, Any]:
    """Make an index a partial one: of the rows for which the condition holds."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


installation = Table(
    "installation",
    metadata,
    Column("row", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    Column("identity", String(32), nullable=False, comment="hexadecimal; drawn when the ledger was first opened"),
    comment="whose ledger this is",
)

places = Table(
    "places",
    metadata,
    Column("name", String(16), primary_key=True, comment="staging, tables or archive"),
    Column("location", Text, nullable=False, comment="where it was then, for people"),
    Column("marked_at", BigInteger, nullable=False),
    comment="places that were given the mark of this installation, so that one without it is not the same place",
)

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("granularity", String(8), nullable=False),
    Column("key", Text, comment="JSON {columns, version}; null: rows are appended as they are"),
    Column("time", Text, comment="JSON {column, format, unit}; null: of a ledger from before it was kept"),
    Column("next_sequence", BigInteger, nullable=False, server_default=text("1")),
    Column("next_position", BigInteger, nullable=False, server_default=text("0"),
           comment="of the next row that is acknowledged, where there is a key"),
    Column("table_version", BigInteger, comment="the Delta version that readers may see; null: no table yet"),
    # What its windows add up to, changed together with them: there are as many windows as time has passed.
    Column("published_windows", BigInteger, nullable=False, server_default=text("0")),
    Column("published_rows", BigInteger, nullable=False, server_default=text("0")),
    Column("published_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("published_files", BigInteger, nullable=False, server_default=text("0")),
    Column("published_at", BigInteger, comment="when rows were published last"),
    Column("published_schema", Integer, nullable=False, server_default=text("0"),
           comment="the latest version of its columns that a build has published"),
    Column("corrections", BigInteger, nullable=False, server_default=text("0"),
           comment="how many it has had, and so the number of the last one"),
    Column("table_id", String(36), comment="the Delta id; null: not looked at yet"),
    Column("refusal_reason", String(32), comment="why the table is not written to"),
    Column("refusal", Text, comment="the same, for people"),
    Column("refused_at", BigInteger, comment="since when"),
)  # fmt: skip

schemas = Table(
    "schemas",
    metadata,
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("version", Integer, nullable=False, comment="counts from 1; the highest one holds"),
    Column("columns", Text, nullable=False, comment="JSON [[name, type], …]"),
    Column("since", BigInteger, nullable=False),
    Column("batch_id", String(255), comment="the batch that brought it; null: the datasets file declares it"),
    Column("source", Text, nullable=False, comment="where that batch came from"),
    PrimaryKeyConstraint("dataset", "version"),
)  # fmt: skip

segments = Table(
    "segments",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("path", Text, nullable=False, comment="relative to the staging directory"),
    Column("bytes", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("schema_version", Integer, nullable=False, comment="the columns that its rows have"),
    Column("position", BigInteger, comment="of its row number 0, where the dataset has a key"),
    Column("after_correction", BigInteger, nullable=False, server_default=text("0"),
           comment="number of the last correction before it; later ones act on its rows"),
    Column("staged_at", BigInteger, nullable=False),
    Column("published_at", BigInteger, comment="when its last slice was published; retention counts from here"),
    Column("quarantined_at", BigInteger, comment="since when some of its slices are in quarantine, and its file too"),
    Column("unlinked_at", BigInteger),
    # With all that disk usage is made from, so that it never touches the table itself.
    Index("ix_segments_on_disk", "dataset", "published_at", "quarantined_at", "unlinked_at", "bytes",
          **_of_rows("unlinked_at IS NULL")),
    Index("ix_segments_unlinked", "dataset", "unlinked_at", **_of_rows("unlinked_at IS NOT NULL")),
)  # fmt: skip

batches = Table(
    "batches",
    metadata,
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("batch_id", String(255), nullable=False),
    Column("fingerprint", String(64), nullable=False, comment="hash of the content; same id, other hash: conflict"),
    Column("source", Text, nullable=False, comment="file name, or who called stage()"),
    Column("source_bytes", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False, comment="staged rows, without the quarantined ones"),
    Column("quarantined_rows", BigInteger, nullable=False),
    Column("dropped_rows", BigInteger, nullable=False, comment="too late, where the dataset drops such rows"),
    Column("segment_id", String(32), ForeignKey("segments.id"), comment="null: the batch had no row to stage"),
    Column("ordinal", Integer, nullable=False, comment="the batch's number within its segment"),
    Column("position", BigInteger, comment="as of its segment; also where no row of it could be staged"),
    Column("after_correction", BigInteger, nullable=False, server_default=text("0"),
           comment="as of its segment; also where no row of it could be staged"),
    Column("staged_at", BigInteger, nullable=False),
    Column("published_at", BigInteger),
    Column("quarantined_at", BigInteger, comment="when all of its slices had left the queue, one of them unread"),
    PrimaryKeyConstraint("dataset", "batch_id"),
    UniqueConstraint("segment_id", "ordinal"),
    Index("ix_batches_queued", "dataset", **_of_rows("published_at IS NULL AND quarantined_at IS NULL")),
)  # fmt: skip

builds = Table(
    "builds",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("sequence", BigInteger, nullable=False, comment="version of the table's application transaction"),
    Column("lane", Integer, nullable=False, server_default=text("0"),
           comment="of the builds that may run at the same time; one of a lane at a time"),
    Column("schema_version", Integer, nullable=False, server_default=text("0"),
           comment="of the dataset's columns, as they were when it was claimed"),
    Column("owner", String(255), nullable=False, comment="Dagster run id, or host and process"),
    Column("kind", String(16), nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("claimed_at", BigInteger, nullable=False),
    Column("lease_expires_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("first_window", BigInteger, nullable=False),
    Column("last_window", BigInteger, nullable=False),
    Column("batches", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default=text("0"), comment="Parquet bytes written"),
    Column("files", BigInteger, nullable=False, server_default=text("0")),
    Column("table_version", BigInteger),
    Column("error", Text),
    UniqueConstraint("dataset", "sequence"),
    # At most one build of a lane in flight: its commits must reach the table in the order of their sequences.
    Index("uq_builds_in_flight", "dataset", "lane", unique=True, **_of_rows("state = 'claimed'")),
    # The last flush of a dataset is one look at the end of its part.
    Index("ix_builds_ended_flushes", "dataset", "id", **_of_rows("kind = 'flush' AND state <> 'claimed'")),
)  # fmt: skip

replaced_windows = Table(
    "replaced_windows",
    metadata,
    Column("build_id", _RowId, ForeignKey("builds.id"), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    PrimaryKeyConstraint("build_id", "window_start"),
    comment="windows whose files a build replaces, all others it adds to",
)

corrections = Table(
    "corrections",
    metadata,
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("number", BigInteger, nullable=False, comment="counts from 1, in the order of their acknowledgement"),
    Column("kind", String(16), nullable=False),
    Column("range_start", BigInteger, nullable=False, comment="of the times whose earlier rows it takes back"),
    Column("range_end", BigInteger, nullable=False, comment="its end, which is not part of it"),
    Column("before_sequence", BigInteger, nullable=False,
           comment="it acts on the files of builds with lower ones: those were claimed before it"),
    Column("batch_id", String(255), nullable=False, comment="the batch whose rows take the place"),
    Column("fingerprint", String(64), nullable=False, comment="of that batch"),
    Column("source", Text, nullable=False, comment="of that batch"),
    Column("path", Text, nullable=False, comment="what a lost ledger knows it by, relative to the staging directory"),
    Column("acknowledged_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("dataset", "number"),
)  # fmt: skip

corrected_windows = Table(
    "corrected_windows",
    metadata,
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False, comment="of the correction"),
    Column("pending", Boolean, nullable=False, comment="published files may still have rows that it takes back"),
    Column("rows", BigInteger, nullable=False, server_default=text("0"),
           comment="rows that it took back and that builds have left out, published before or not"),
    PrimaryKeyConstraint("dataset", "window_start", "number"),
    Index("ix_corrected_windows_pending", "dataset", "window_start", "number", **_of_rows("pending")),
)  # fmt: skip

build_corrections = Table(
    "build_corrections",
    metadata,
    Column("build_id", _RowId, ForeignKey("builds.id"), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False, comment="of the correction"),
    Column("rows", BigInteger, nullable=False),
    PrimaryKeyConstraint("build_id", "window_start", "number"),
    comment="rows that a build leaves out of a window as a correction takes them back; known before it commits",
)

slices = Table(
    "slices",
    metadata,
    Column("segment_id", String(32), ForeignKey("segments.id"), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False, comment="the slice's share of the segment's bytes, by rows"),
    Column("min_time", BigInteger, nullable=False),
    Column("max_time", BigInteger, nullable=False),
    Column("staged_at", BigInteger, nullable=False),
    Column("late", Boolean, nullable=False, comment="its window was closed and published when it was staged"),
    Column("build_id", _RowId, ForeignKey("builds.id")),
    Column("published_at", BigInteger),
    Column("quarantine_id", _RowId, ForeignKey("quarantine.id"), comment="the entry under which it was set aside"),
    PrimaryKeyConstraint("segment_id", "window_start"),
    # Covers the backlog query of all datasets, which so never touches the table itself.
    Index("ix_slices_queued", "dataset", "build_id", "window_start", "staged_at", "rows", "bytes", "late",
          **_of_rows("published_at IS NULL AND quarantine_id IS NULL")),
    Index("ix_slices_quarantine_id", "quarantine_id", **_of_rows("quarantine_id IS NOT NULL")),
    Index("ix_slices_build_id", "build_id"),
    # Where the rows of a window are, wherever they are.
    Index("ix_slices_window", "dataset", "window_start"),
)  # fmt: skip

batch_slices = Table(
    "batch_slices",
    metadata,
    Column("segment_id", String(32), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    PrimaryKeyConstraint("segment_id", "ordinal", "window_start"),
    # Which batches a slice has: a segment of a year of hours has 8,760 of them.
    Index("ix_batch_slices_window", "segment_id", "window_start", "ordinal"),
)

windows = Table(
    "windows",
    metadata,
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("files", BigInteger, nullable=False),
    Column("superseded", BigInteger, nullable=False, server_default=text("0"),
           comment="published rows that a later one of the same key has taken the place of"),
    Column("published_at", BigInteger, nullable=False),
    Column("build_id", _RowId, ForeignKey("builds.id"), nullable=False),
    PrimaryKeyConstraint("dataset", "window_start"),
)  # fmt: skip

past_rows = Table(
    "past_rows",
    metadata,
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    Column("pruned_rows", BigInteger, nullable=False, server_default=text("0"),
           comment="published rows whose slices the ledger has forgotten"),
    Column("expired_rows", BigInteger, nullable=False, server_default=text("0"),
           comment="published rows that were dropped from the table by age"),
    Column("expired_at", BigInteger, comment="when rows of the window were last dropped"),
    PrimaryKeyConstraint("dataset", "window_start"),
    comment="what became of published rows that can no longer be counted in the ledger or in the table",
)  # fmt: skip

losses = Table(
    "losses",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False, comment="published and gone; below zero: of unknown origin"),
    Column("reason", Text, nullable=False),
    Column("accepted_by", String(255), nullable=False),
    Column("accepted_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger, comment="null: it holds"),
    Column("ended_by", String(255)),
    Index("ix_losses_window", "dataset", "window_start"),
)  # fmt: skip

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("dataset", String(63), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("batch_id", String(255), nullable=False, comment="of a segment: its id"),
    Column("source", Text, nullable=False),
    Column("path", Text, nullable=False, comment="where the bytes are kept, relative to the staging directory"),
    Column("reason", Text, nullable=False),
    Column("rows", BigInteger, comment="null: unknown, the batch could not be read"),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("resolved_at", BigInteger),
    Column("resolved_by", String(255)),
    Column("tries", Integer, nullable=False, server_default=text("0"),
           comment="how often it was tried again by itself"),
    Column("try_again_at", BigInteger, comment="when it is tried again by itself; null: only by a person"),
    Index("uq_quarantine_open", "dataset", "kind", "batch_id", unique=True, **_of_rows("state = 'open'")),
)  # fmt: skip

settled_files = Table(
    "settled_files",
    metadata,
    Column("dataset", String(63), nullable=False),
    Column("name", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("modified_at", BigInteger, nullable=False, comment="nanoseconds since the epoch, as the file system has it"),
    Column("version", Text, nullable=False, comment="of an object, whose modified_at is 0; else empty"),
    PrimaryKeyConstraint("dataset", "name"),
    comment="files that stay in the landing folder although their batch is in the ledger",
)

readings = Table(
    "readings",
    metadata,
    Column("dataset", String(63), nullable=False),
    Column("batch_id", String(255), nullable=False),
    Column("begun", Integer, nullable=False, comment="how often, without an end"),
    Column("last_at", BigInteger, nullable=False),
    Column("alone", Integer, nullable=False, server_default=text("0"),
           comment="how many processes ended while they read it and nothing else"),
    PrimaryKeyConstraint("dataset", "batch_id"),
    comment="landing files that are being read, or whose reading ended a process",
)  # fmt: skip

counters = Table(
    "counters",
    metadata,
    Column("metric", String(128), nullable=False),
    Column("dataset", String(63), nullable=False),
    Column("label", String(128), nullable=False),
    Column("value", Double, nullable=False),
    PrimaryKeyConstraint("metric", "dataset", "label"),
)

histograms = Table(
    "histograms",
    metadata,
    Column("metric", String(128), nullable=False),
    Column("dataset", String(63), nullable=False),
    Column("label", String(128), nullable=False),
    Column("bucket", Integer, nullable=False, comment="index of the bucket's upper bound; one past the last is +Inf"),
    Column("count", BigInteger, nullable=False),
    Column("sum", Double, nullable=False),
    PrimaryKeyConstraint("metric", "dataset", "label", "bucket"),
)

landing_backlog = Table(
    "landing_backlog",
    metadata,
    Column("dataset", String(63), primary_key=True),
    Column("files", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("oldest_modified_at", BigInteger, nullable=False),
    comment="files that wait in landing folders, as the last look found them; datasets without any have no row",
)

disk_use = Table(
    "disk_use",
    metadata,
    Column("dataset", String(63), nullable=False, comment="empty: of all datasets"),
    Column("place", String(16), nullable=False),
    Column("files", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("looked_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("dataset", "place"),
    comment="what lies on the disk besides staging and tables, as maintenance last saw it",
)

limit_overrides = Table(
    "limit_overrides",
    metadata,
    Column("dataset", String(63), nullable=False),
    Column("name", String(32), nullable=False),
    Column("value", BigInteger, nullable=False, comment="0 switches the limit off"),
    Column("set_by", String(255), nullable=False),
    Column("set_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("dataset", "name"),
    comment="limits that an operator changed at run time; they go before datasets.yaml and the environment",
)

intake_pauses = Table(
    "intake_pauses",
    metadata,
    Column("dataset", String(63), primary_key=True, comment="* is every dataset"),
    Column("paused_by", String(255), nullable=False),
    Column("paused_at", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    comment="datasets that take nothing in until an operator lets them",
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)
