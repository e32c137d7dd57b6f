"""What the server of ``forks`` imports before it forks anything: no thread runs then, and no connection is open."""

from __future__ import annotations

import atexit
import gc
import sqlite3  # noqa: F401

import alembic.command
import alembic.config  # noqa: F401
import psycopg  # noqa: F401
import pyarrow as pa
import pytest  # noqa: F401

from timestore_pipeline_tests.crash import child  # noqa: F401
from timestore_pipeline_tests.soak import jobs, workers  # noqa: F401

# Imports pandas, as the first array of Python values does.
pa.array([0])
# A collection in a child would write to every page that it shares with the server.
gc.freeze()
# Without it the server's own end is told of all these objects as leaks.
atexit.register(gc.unfreeze)
