"""The ledger: the SQL database that remembers batches, segments, slices, builds, quarantine and counters.

It is the one mutable shared thing (invariant 4): every coordination between processes is one of its
transactions. Functions of this package take an open transaction, so that a caller can make several of them
happen together or not at all.
"""

from timestore_pipeline.ledger.database import Ledger

__all__ = ["Ledger"]
