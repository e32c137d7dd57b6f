"""Immutable files in a local directory or in an object store, through one interface.

Segments, tables and landing files are written to local scratch and put whole. What is read from an object store is
fetched into a bounded local cache first; locally it is the file itself, and nothing is paid for the choice.
"""

from timestore_pipeline.storage.contract import Entry, Storage
from timestore_pipeline.storage.opening import open_storage

__all__ = ["Entry", "Storage", "open_storage"]
