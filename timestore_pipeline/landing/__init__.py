"""Landing: find files that producers dropped, and read them through DuckDB. Nothing here writes to staging."""
