"""Mutated files, bodies and frames against a running installation: ``python -m timestore_pipeline_tests.fuzz``."""
