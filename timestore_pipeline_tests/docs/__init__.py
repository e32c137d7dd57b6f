"""Tests of the pages under docs/ that people wrote: what they tell to do works."""
