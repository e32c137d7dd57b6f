"""The ledger has an identity, and remembers which places carry it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables; the identity is drawn by whoever opens the ledger."""
    op.create_table(
        "installation",
        sa.Column("row", sa.Integer(), autoincrement=False, nullable=False, comment="always 1"),
        sa.Column(
            "identity",
            sa.String(length=32),
            nullable=False,
            comment="hexadecimal; drawn when the ledger was first opened",
        ),
        sa.PrimaryKeyConstraint("row", name=op.f("pk_installation")),
        comment="whose ledger this is",
    )
    op.create_table(
        "places",
        sa.Column("name", sa.String(length=16), nullable=False, comment="staging, tables or archive"),
        sa.Column("location", sa.Text(), nullable=False, comment="where it was then, for people"),
        sa.Column("marked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_places")),
        comment="places that were given the mark of this installation, so that one without it is not the same place",
    )
