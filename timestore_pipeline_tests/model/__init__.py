"""Columns, windows, names."""
