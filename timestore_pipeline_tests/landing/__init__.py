"""Tests of finding and reading landing files."""
