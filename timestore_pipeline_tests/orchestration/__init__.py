"""Dagster objects over a store of the test's own, with ephemeral instances."""
