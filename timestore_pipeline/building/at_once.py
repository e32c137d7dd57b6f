"""Publishing in the call that stages, for direct writes (short, because it is gone with the next release)."""

from __future__ import annotations

import os
import random
import socket
import time

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.builds import build_in_flight
from timestore_pipeline.store import Store

log = log_named(__name__)

_POLL_SECONDS = (0.05, 0.25)


def publish_at_once(store: Store, dataset: str) -> None:
    """Publish all that is staged of the dataset, after the build that is in flight, if any.

    What cannot be published is logged and stays staged: its batches are acknowledged, so the caller must not be told
    that they failed.
    """
    owner = f"direct:{socket.gethostname()}:{os.getpid()}"
    order = BuildOrder(dataset, owner=owner, trigger=Trigger.DIRECT)
    deadline = time.monotonic() + store.settings.build_lease_seconds
    while True:
        try:
            if not _waits_for_another(store, dataset):
                flush_windows(store, order)
                return
        except BuildInFlight:
            pass  # another process was faster
        except Exception as error:
            # Whatever it is. As when a program ends: then no thread can be started any more, for any file.
            log.error("dataset %r: not published, its rows stay staged until the next flush: %s", dataset, error)
            return
        if time.monotonic() >= deadline:
            log.warning("dataset %r: not published yet, another build is in flight; the next flush does it", dataset)
            return
        time.sleep(random.uniform(*_POLL_SECONDS))


def _waits_for_another(store: Store, dataset: str) -> bool:
    with store.ledger.read() as tx:
        if build_in_flight(tx, dataset) is None:
            return False
    settle_dead_builds(store)
    with store.ledger.read() as tx:
        return build_in_flight(tx, dataset) is not None
