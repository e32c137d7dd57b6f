"""Tests of reading: every acked row exactly once, at every moment."""
