"""Tests of the ``timestore`` command."""
