"""Benchmarks: every figure is a ratio against something measured in the same run.

``python -m timestore_pipeline_tests.bench`` runs all of them; ``--only staging`` one; ``--repeats N`` changes how
often. Machines are noisy: the pair is measured in turn and the median of the ratios is what counts.
"""
