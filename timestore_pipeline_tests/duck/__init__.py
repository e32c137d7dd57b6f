"""DuckDB's instances and connections."""
