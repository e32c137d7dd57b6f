"""Alembic migrations of the ledger; the ledger runs them when it is opened."""
