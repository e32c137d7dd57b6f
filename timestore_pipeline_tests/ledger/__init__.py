"""Tests of the ledger: its schema, its transactions, and what it remembers."""
