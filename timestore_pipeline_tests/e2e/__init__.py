"""Whole Dagster processes on real files."""
