"""Lifecycle: staging shrinks by unlinking whole segments, and orphans of crashes are swept (invariant 3)."""
