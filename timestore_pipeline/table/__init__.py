"""A dataset's Delta table: opened, committed to, fenced, and whose it is."""
