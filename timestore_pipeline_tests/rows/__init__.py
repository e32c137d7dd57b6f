"""Files and frames become rows."""
