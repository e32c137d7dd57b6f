"""Readings of one file alone are counted by themselves; what lies on the disk besides staging and tables is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns. Readings from before go by the hash of the content, and are forgotten with time."""
    op.add_column(
        "readings",
        sa.Column(
            "alone",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="how many processes ended while they read it and nothing else",
        ),
    )
    op.add_column(
        "quarantine",
        sa.Column(
            "tries",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="how often it was tried again by itself",
        ),
    )
    op.add_column(
        "quarantine",
        sa.Column(
            "try_again_at",
            sa.BigInteger(),
            nullable=True,
            comment="when it is tried again by itself; null: only by a person",
        ),
    )
    op.create_table(
        "disk_use",
        sa.Column("dataset", sa.String(length=63), nullable=False, comment="empty: of all datasets"),
        sa.Column("place", sa.String(length=16), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("looked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "place", name=op.f("pk_disk_use")),
        comment="what lies on the disk besides staging and tables, as maintenance last saw it",
    )
