"""A process killed at the steps of a build whose table is in an object store: each row is there once all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.store import Store
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import killed_at
from timestore_pipeline_tests.crash.conftest import Recover
from timestore_pipeline_tests.object_store import Bucket

pytestmark = [pytest.mark.crash, pytest.mark.server, pytest.mark.only_on("sqlite")]

KILLS = [
    ("build", CrashPoint.TABLE_CREATED, 1, True),
    ("build", CrashPoint.PARQUET_WRITTEN, 1, False),
    ("build", CrashPoint.PARQUET_RENAMED, 2, False),
    ("build", CrashPoint.MANIFEST_WRITTEN, 1, False),
    ("build", CrashPoint.TABLE_COMMITTED, 1, False),
    ("build and merge", CrashPoint.MANIFESTS_MERGED, 1, False),
    ("compact", CrashPoint.TABLE_COMMITTED, 1, False),
]
"""Job, point, for the how-manieth time, and whether nothing is published before.

Those after which something else lies in the store than before; between them only the ledger differs.
"""


@pytest.mark.matrix
@pytest.mark.parametrize(("job", "point", "times", "first"), KILLS, ids=str)
def test_a_killed_build_loses_and_doubles_nothing(
    job: str,
    point: CrashPoint,
    times: int,
    first: bool,
    at_work: Callable[..., Store],
    recover: Recover,
    s3_bucket: Bucket,
):
    store = at_work(published=not first, flushed=job == "compact", tables_url=f"{s3_bucket.url}/tables")

    killed_at(store, job, point, times)

    recover(store)
    rows.assert_all_is_well(store)
