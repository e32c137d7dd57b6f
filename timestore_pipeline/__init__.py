"""Time-series batches staged in DuckDB and built into well-sized Delta Lake partitions.

Every part but :mod:`timestore_pipeline.orchestration` is a plain library that knows no Dagster.
"""

__version__ = "0.1.0"
