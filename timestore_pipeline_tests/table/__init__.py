"""The Delta table: whose it is, and what others do to it."""
