"""Tests, in folders that mirror the package, plus ``crash/``, ``e2e/`` and ``bench/``."""
