"""Every Dagster object: assets, jobs, sensors and resources, as thin declarations over the library.

Nothing outside of this folder and ``definitions.py`` knows Dagster. Nothing here is asked what is true: the
ledger is, and what Dagster remembers (runs, cursors, materializations) only saves work or shows it.
"""
