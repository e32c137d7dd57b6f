"""Whose ledger it is: an identity that is drawn once and stays, in the ledger and in every backup of it.

What an installation keeps elsewhere carries the identity too, and is so told from what belongs to another one.
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, select

from timestore_pipeline.ledger.schema import installation
from timestore_pipeline.ledger.upserts import insert_unless_there

_IDENTITY_BYTES = 16
_ONLY_ROW = 1


def read_identity(tx: Connection) -> str | None:
    """Return the identity of the ledger; None where it has none yet."""
    return tx.execute(select(installation.c.identity)).scalar()


def draw_identity(tx: Connection) -> str:
    """Give the ledger an identity, unless it has one; return the one that it has then.

    Of several processes that open a new ledger at the same time the first one decides.
    """
    insert_unless_there(tx, installation, {"row": _ONLY_ROW, "identity": secrets.token_hex(_IDENTITY_BYTES)})
    return tx.execute(select(installation.c.identity)).scalar_one()
