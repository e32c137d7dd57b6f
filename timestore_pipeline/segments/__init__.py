"""Segments: the immutable DuckDB files of staging, how they are written, judged, described and read."""
