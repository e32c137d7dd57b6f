"""Segments: judged, and cut into slices."""
