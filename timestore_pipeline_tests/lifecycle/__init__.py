"""Tests of the life of files after their rows are published."""
