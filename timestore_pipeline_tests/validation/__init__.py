"""Tests of the validation of an installation under load."""
