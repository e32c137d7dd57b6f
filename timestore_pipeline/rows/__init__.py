"""Bytes or Arrow become rows that fit a dataset: formats, shapes, casts, inference, and why something does not fit."""
