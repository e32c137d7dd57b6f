"""Building: staged slices become Parquet files and one commit to the dataset's Delta table (invariants 5 and 6)."""
