"""The first schema of the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "batch_slices",
        sa.Column("segment_id", sa.String(length=32), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("segment_id", "ordinal", "window_start", name=op.f("pk_batch_slices")),
    )
    op.create_index("ix_batch_slices_window", "batch_slices", ["segment_id", "window_start", "ordinal"], unique=False)
    op.create_table(
        "counters",
        sa.Column("metric", sa.String(length=128), nullable=False),
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("label", sa.String(length=128), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("metric", "dataset", "label", name=op.f("pk_counters")),
    )
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("granularity", sa.String(length=8), nullable=False),
        sa.Column(
            "key", sa.Text(), nullable=True, comment="JSON {columns, version}; null: rows are appended as they are"
        ),
        sa.Column("next_sequence", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "next_position",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of the next row that is acknowledged, where there is a key",
        ),
        sa.Column(
            "table_version",
            sa.BigInteger(),
            nullable=True,
            comment="the Delta version that readers may see; null: no table yet",
        ),
        sa.Column("published_windows", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("published_rows", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("published_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("published_files", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=True, comment="when rows were published last"),
        sa.Column(
            "published_schema",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="the latest version of its columns that a build has published",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_datasets")),
    )
    op.create_table(
        "histograms",
        sa.Column("metric", sa.String(length=128), nullable=False),
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("label", sa.String(length=128), nullable=False),
        sa.Column(
            "bucket",
            sa.Integer(),
            nullable=False,
            comment="index of the bucket's upper bound; one past the last is +Inf",
        ),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("sum", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("metric", "dataset", "label", "bucket", name=op.f("pk_histograms")),
    )
    op.create_table(
        "landing_backlog",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("oldest_modified_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_landing_backlog")),
        comment="files that wait in landing folders, as the last look found them; datasets without any have no row",
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "intake_pauses",
        sa.Column("dataset", sa.String(length=63), nullable=False, comment="* is every dataset"),
        sa.Column("paused_by", sa.String(length=255), nullable=False),
        sa.Column("paused_at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_intake_pauses")),
        comment="datasets that take nothing in until an operator lets them",
    )
    op.create_table(
        "limit_overrides",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False, comment="0 switches the limit off"),
        sa.Column("set_by", sa.String(length=255), nullable=False),
        sa.Column("set_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "name", name=op.f("pk_limit_overrides")),
        comment="limits that an operator changed at run time; they go before datasets.yaml and the environment",
    )
    op.create_table(
        "quarantine",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("batch_id", sa.String(length=255), nullable=False, comment="of a segment: its id"),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column(
            "path",
            sa.Text(),
            nullable=False,
            comment="where the bytes are kept, relative to the staging directory",
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "rows",
            sa.BigInteger(),
            nullable=True,
            comment="null: unknown, the batch could not be read",
        ),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("resolved_at", sa.BigInteger(), nullable=True),
        sa.Column("resolved_by", sa.String(length=255), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
    )
    op.create_index(
        "uq_quarantine_open",
        "quarantine",
        ["dataset", "kind", "batch_id"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "readings",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("batch_id", sa.String(length=255), nullable=False),
        sa.Column("begun", sa.Integer(), nullable=False, comment="how often, without an end"),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "batch_id", name=op.f("pk_readings")),
        comment="landing files that are being read, or whose reading ended a process",
    )
    op.create_table(
        "settled_files",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column(
            "modified_at",
            sa.BigInteger(),
            nullable=False,
            comment="nanoseconds since the epoch, as the file system has it",
        ),
        sa.Column("version", sa.Text(), nullable=False, comment="of an object, whose modified_at is 0; else empty"),
        sa.PrimaryKeyConstraint("dataset", "name", name=op.f("pk_settled_files")),
        comment="files that stay in the landing folder although their batch is in the ledger",
    )
    op.create_table(
        "builds",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column(
            "sequence",
            sa.BigInteger(),
            nullable=False,
            comment="version of the table's application transaction",
        ),
        sa.Column(
            "lane",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of the builds that may run at the same time; one of a lane at a time",
        ),
        sa.Column(
            "schema_version",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of the dataset's columns, as they were when it was claimed",
        ),
        sa.Column(
            "owner",
            sa.String(length=255),
            nullable=False,
            comment="Dagster run id, or host and process",
        ),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("trigger", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("claimed_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("first_window", sa.BigInteger(), nullable=False),
        sa.Column("last_window", sa.BigInteger(), nullable=False),
        sa.Column("batches", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column(
            "bytes",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Parquet bytes written",
        ),
        sa.Column("files", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("table_version", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_builds_dataset")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_builds")),
        sa.UniqueConstraint("dataset", "sequence", name=op.f("uq_builds_dataset_sequence")),
    )
    op.create_index(
        "uq_builds_in_flight",
        "builds",
        ["dataset", "lane"],
        unique=True,
        sqlite_where=sa.text("state = 'claimed'"),
        postgresql_where=sa.text("state = 'claimed'"),
    )
    op.create_index(
        "ix_builds_ended_flushes",
        "builds",
        ["dataset", "id"],
        unique=False,
        sqlite_where=sa.text("kind = 'flush' AND state <> 'claimed'"),
        postgresql_where=sa.text("kind = 'flush' AND state <> 'claimed'"),
    )
    op.create_table(
        "replaced_windows",
        sa.Column("build_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_replaced_windows_build_id")),
        sa.PrimaryKeyConstraint("build_id", "window_start", name=op.f("pk_replaced_windows")),
        comment="windows whose files a build replaces, all others it adds to",
    )
    op.create_table(
        "losses",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False, comment="published and gone; below zero: of unknown origin"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("accepted_by", sa.String(length=255), nullable=False),
        sa.Column("accepted_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True, comment="null: it holds"),
        sa.Column("ended_by", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_losses_dataset")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_losses")),
    )
    op.create_index("ix_losses_window", "losses", ["dataset", "window_start"], unique=False)
    op.create_table(
        "past_rows",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.Column(
            "pruned_rows",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="published rows whose slices the ledger has forgotten",
        ),
        sa.Column(
            "expired_rows",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="published rows that were dropped from the table by age",
        ),
        sa.Column("expired_at", sa.BigInteger(), nullable=True, comment="when rows of the window were last dropped"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_past_rows_dataset")),
        sa.PrimaryKeyConstraint("dataset", "window_start", name=op.f("pk_past_rows")),
        comment="what became of published rows that can no longer be counted in the ledger or in the table",
    )
    op.create_table(
        "schemas",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, comment="counts from 1; the highest one holds"),
        sa.Column("columns", sa.Text(), nullable=False, comment="JSON [[name, type], …]"),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column(
            "batch_id",
            sa.String(length=255),
            nullable=True,
            comment="the batch that brought it; null: the datasets file declares it",
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="where that batch came from"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_schemas_dataset_datasets")),
        sa.PrimaryKeyConstraint("dataset", "version", name=op.f("pk_schemas")),
    )
    op.create_table(
        "segments",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("path", sa.Text(), nullable=False, comment="relative to the staging directory"),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False, comment="the columns that its rows have"),
        sa.Column(
            "position", sa.BigInteger(), nullable=True, comment="of its row number 0, where the dataset has a key"
        ),
        sa.Column("staged_at", sa.BigInteger(), nullable=False),
        sa.Column(
            "published_at",
            sa.BigInteger(),
            nullable=True,
            comment="when its last slice was published; retention counts from here",
        ),
        sa.Column(
            "quarantined_at",
            sa.BigInteger(),
            nullable=True,
            comment="since when some of its slices are in quarantine, and its file too",
        ),
        sa.Column("unlinked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_segments_dataset")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segments")),
    )
    op.create_index(
        "ix_segments_on_disk",
        "segments",
        ["dataset", "published_at", "quarantined_at", "unlinked_at", "bytes"],
        unique=False,
        sqlite_where=sa.text("unlinked_at IS NULL"),
        postgresql_where=sa.text("unlinked_at IS NULL"),
    )
    op.create_index(
        "ix_segments_unlinked",
        "segments",
        ["dataset", "unlinked_at"],
        unique=False,
        sqlite_where=sa.text("unlinked_at IS NOT NULL"),
        postgresql_where=sa.text("unlinked_at IS NOT NULL"),
    )
    op.create_table(
        "batches",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("batch_id", sa.String(length=255), nullable=False),
        sa.Column(
            "fingerprint",
            sa.String(length=64),
            nullable=False,
            comment="hash of the content; same id, other hash: conflict",
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="file name, or who called stage()"),
        sa.Column("source_bytes", sa.BigInteger(), nullable=False),
        sa.Column(
            "rows",
            sa.BigInteger(),
            nullable=False,
            comment="staged rows, without the quarantined ones",
        ),
        sa.Column("quarantined_rows", sa.BigInteger(), nullable=False),
        sa.Column(
            "dropped_rows",
            sa.BigInteger(),
            nullable=False,
            comment="too late, where the dataset drops such rows",
        ),
        sa.Column(
            "segment_id",
            sa.String(length=32),
            nullable=True,
            comment="null: the batch had no row to stage",
        ),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="the batch's number within its segment"),
        sa.Column(
            "position",
            sa.BigInteger(),
            nullable=True,
            comment="as of its segment; also where no row of it could be staged",
        ),
        sa.Column("staged_at", sa.BigInteger(), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=True),
        sa.Column(
            "quarantined_at",
            sa.BigInteger(),
            nullable=True,
            comment="when all of its slices had left the queue, one of them unread",
        ),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_batches_dataset")),
        sa.ForeignKeyConstraint(["segment_id"], ["segments.id"], name=op.f("fk_batches_segment_id")),
        sa.PrimaryKeyConstraint("dataset", "batch_id", name=op.f("pk_batches")),
        sa.UniqueConstraint("segment_id", "ordinal", name=op.f("uq_batches_segment_id_ordinal")),
    )
    op.create_index(
        "ix_batches_queued",
        "batches",
        ["dataset"],
        unique=False,
        sqlite_where=sa.text("published_at IS NULL AND quarantined_at IS NULL"),
        postgresql_where=sa.text("published_at IS NULL AND quarantined_at IS NULL"),
    )
    op.create_table(
        "slices",
        sa.Column("segment_id", sa.String(length=32), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column(
            "bytes",
            sa.BigInteger(),
            nullable=False,
            comment="the slice's share of the segment's bytes, by rows",
        ),
        sa.Column("min_time", sa.BigInteger(), nullable=False),
        sa.Column("max_time", sa.BigInteger(), nullable=False),
        sa.Column("staged_at", sa.BigInteger(), nullable=False),
        sa.Column(
            "late",
            sa.Boolean(),
            nullable=False,
            comment="its window was closed and published when it was staged",
        ),
        sa.Column("build_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("published_at", sa.BigInteger(), nullable=True),
        sa.Column(
            "quarantine_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="the entry under which it was set aside",
        ),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_slices_build_id")),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_slices_dataset")),
        sa.ForeignKeyConstraint(["quarantine_id"], ["quarantine.id"], name=op.f("fk_slices_quarantine_id")),
        sa.ForeignKeyConstraint(["segment_id"], ["segments.id"], name=op.f("fk_slices_segment_id")),
        sa.PrimaryKeyConstraint("segment_id", "window_start", name=op.f("pk_slices")),
    )
    op.create_index("ix_slices_build_id", "slices", ["build_id"], unique=False)
    op.create_index("ix_slices_window", "slices", ["dataset", "window_start"], unique=False)
    op.create_index(
        "ix_slices_quarantine_id",
        "slices",
        ["quarantine_id"],
        unique=False,
        sqlite_where=sa.text("quarantine_id IS NOT NULL"),
        postgresql_where=sa.text("quarantine_id IS NOT NULL"),
    )
    op.create_index(
        "ix_slices_queued",
        "slices",
        ["dataset", "build_id", "window_start", "staged_at", "rows", "bytes", "late"],
        unique=False,
        sqlite_where=sa.text("published_at IS NULL AND quarantine_id IS NULL"),
        postgresql_where=sa.text("published_at IS NULL AND quarantine_id IS NULL"),
    )
    op.create_table(
        "windows",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column(
            "superseded",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="published rows that a later one of the same key has taken the place of",
        ),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.Column("build_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_windows_build_id")),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_windows_dataset")),
        sa.PrimaryKeyConstraint("dataset", "window_start", name=op.f("pk_windows")),
    )
