"""The ledger knows each table by its Delta id, and why one was refused."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; they are filled when a table is looked at for the first time."""
    op.add_column(
        "datasets",
        sa.Column("table_id", sa.String(length=36), nullable=True, comment="the Delta id; null: not looked at yet"),
    )
    op.add_column(
        "datasets",
        sa.Column("refusal_reason", sa.String(length=32), nullable=True, comment="why the table is not written to"),
    )
    op.add_column("datasets", sa.Column("refusal", sa.Text(), nullable=True, comment="the same, for people"))
    op.add_column("datasets", sa.Column("refused_at", sa.BigInteger(), nullable=True, comment="since when"))
