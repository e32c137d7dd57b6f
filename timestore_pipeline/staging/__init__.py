"""Staging: batches become rows of an immutable DuckDB segment, and are acknowledged in the ledger (invariant 1)."""
