"""Tests of building: when, in which runs, how, and what becomes of an interrupted build."""
