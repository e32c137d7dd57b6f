"""Tests of staging: batches in, segments and acknowledgements out."""
