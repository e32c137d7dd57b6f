"""What the time of a dataset means is kept, as its window and its key are."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; what it says of datasets that there are is taken from their declaration."""
    op.add_column(
        "datasets",
        sa.Column(
            "time",
            sa.Text(),
            nullable=True,
            comment="JSON {column, format, unit}; null: of a ledger from before it was kept",
        ),
    )
