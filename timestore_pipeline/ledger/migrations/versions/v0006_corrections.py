"""Corrections: what they take back, from which windows, and what was acknowledged before which."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add tables and columns. Whatever there is was acknowledged before the first correction."""
    op.add_column(
        "datasets",
        sa.Column(
            "corrections",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="how many it has had, and so the number of the last one",
        ),
    )
    for table, comment in (
        ("segments", "number of the last correction before it; later ones act on its rows"),
        ("batches", "as of its segment; also where no row of it could be staged"),
    ):
        op.add_column(
            table,
            sa.Column(
                "after_correction", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment=comment
            ),
        )
    op.create_table(
        "corrections",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column(
            "number", sa.BigInteger(), nullable=False, comment="counts from 1, in the order of their acknowledgement"
        ),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column(
            "range_start", sa.BigInteger(), nullable=False, comment="of the times whose earlier rows it takes back"
        ),
        sa.Column("range_end", sa.BigInteger(), nullable=False, comment="its end, which is not part of it"),
        sa.Column(
            "before_sequence",
            sa.BigInteger(),
            nullable=False,
            comment="it acts on the files of builds with lower ones: those were claimed before it",
        ),
        sa.Column("batch_id", sa.String(length=255), nullable=False, comment="the batch whose rows take the place"),
        sa.Column("fingerprint", sa.String(length=64), nullable=False, comment="of that batch"),
        sa.Column("source", sa.Text(), nullable=False, comment="of that batch"),
        sa.Column(
            "path",
            sa.Text(),
            nullable=False,
            comment="what a lost ledger knows it by, relative to the staging directory",
        ),
        sa.Column("acknowledged_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_corrections_dataset")),
        sa.PrimaryKeyConstraint("dataset", "number", name=op.f("pk_corrections")),
    )
    op.create_table(
        "corrected_windows",
        sa.Column("dataset", sa.String(length=63), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False, comment="of the correction"),
        sa.Column(
            "pending",
            sa.Boolean(),
            nullable=False,
            comment="published files may still have rows that it takes back",
        ),
        sa.Column(
            "rows",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="rows that it took back and that builds have left out, published before or not",
        ),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_corrected_windows_dataset")),
        sa.PrimaryKeyConstraint("dataset", "window_start", "number", name=op.f("pk_corrected_windows")),
    )
    op.create_index(
        op.f("ix_corrected_windows_pending"),
        "corrected_windows",
        ["dataset", "window_start", "number"],
        sqlite_where=sa.text("pending"),
        postgresql_where=sa.text("pending"),
    )
    op.create_table(
        "build_corrections",
        sa.Column("build_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False, comment="of the correction"),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_build_corrections_build_id")),
        sa.PrimaryKeyConstraint("build_id", "window_start", "number", name=op.f("pk_build_corrections")),
        comment="rows that a build leaves out of a window as a correction takes them back; known before it commits",
    )
