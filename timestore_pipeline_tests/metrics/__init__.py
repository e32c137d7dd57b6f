"""Tests of the metrics: what the ledger is projected to, and how it reaches a Pushgateway."""
