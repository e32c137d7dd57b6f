"""The deprecated way: ingest straight to the table (short, because it is gone with the next release).

With ``TIMESTORE_STAGING_ENABLED=false``, what a batch brings is written to a segment and acknowledged as ever, and then
published in the same call, without waiting for a threshold. The segment is what makes it exactly once: a process may
end anywhere, and the batch is either unknown or in the ledger, where the next direct write or ``flush_sensor`` finds
what is still to be published.
"""

from __future__ import annotations

import warnings
from pkgutil import resolve_name

from timestore_pipeline.inert import log_named
from timestore_pipeline.store import Store

log = log_named(__name__)

# By name, because building knows staging and not the other way round; a hook for one release is worth no more.
_PUBLISH = "timestore_pipeline.building.at_once:publish_at_once"


def warn_of_direct_write(store: Store, dataset: str) -> None:
    """Say at every use that ingest straight to the table is deprecated; nothing where staging is on.

    To be called before anything is acknowledged, as a program may turn warnings into errors.
    """
    if store.settings.staging_enabled:
        return
    message = (
        f"dataset {dataset!r}: TIMESTORE_STAGING_ENABLED=false writes straight to the table, a small file per batch "
        "and window. This is deprecated and ends with the next release: remove the variable to stage."
    )
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    log.warning("%s", message)


def publish_if_direct(store: Store, dataset: str) -> None:
    """Publish what is staged of the dataset, in this call; nothing where staging is on.

    Never raises for what cannot be published: it is acknowledged, stays staged and readable, and is flushed later.
    """
    if not store.settings.staging_enabled:
        resolve_name(_PUBLISH)(store, dataset)
