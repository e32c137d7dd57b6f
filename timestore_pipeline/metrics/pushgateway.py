"""Pushes the whole picture to a Pushgateway, and never fails or holds up the work that it reports on.

A push replaces its group (the job and the grouping labels) as a whole, so what is no longer true does not live on
in the gateway. Because pictures of two processes could overtake each other on the way, and a counter that steps back
looks to Prometheus like a restart, a lease in the ledger lets one process at a time collect and push.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit

from prometheus_client import push_to_gateway

from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.leases import claim_lease, release_lease
from timestore_pipeline.metrics.projection import Picture, collect_metrics
from timestore_pipeline.metrics.transport import gateway_handler, secrets_sent
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.settings import grouping_labels
from timestore_pipeline.store import Store

log = log_named(__name__)

_QUOTED_CHARACTERS = 500

_LEASE = "metrics_push"
_RETRY_SECONDS = 0.05
# What collecting may take: 5,000 datasets take five seconds.
_COLLECTING_SECONDS = 30


@dataclass(frozen=True)
class PushResult:
    """Whether the picture reached the gateway; ``reason`` says where it went or why not, for people."""

    pushed: bool
    reason: str


def push_metrics(store: Store) -> PushResult:
    """Push every series to the configured Pushgateway.

    Waits for its turn and for the gateway at most ``TIMESTORE_PUSHGATEWAY_TIMEOUT_SECONDS`` each, and raises nothing: a
    push that fails is logged as a warning, and the next one makes up for it because each carries the whole picture.
    """
    url = store.settings.pushgateway_url
    if url is None:
        return PushResult(False, "off: TIMESTORE_PUSHGATEWAY_URL is not set")
    deadline = time.monotonic() + store.settings.pushgateway_timeout_seconds
    gateway = "the Pushgateway"
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        gateway = _without_password(parts)
        reason = _push_in_turn(store, parts, deadline)
    except Exception as error:  # whatever it is, the run that reports must not fail for it
        reason = _explain(error)
    if reason is None:
        return PushResult(True, f"pushed to {gateway}")
    message = f"metrics were not pushed to {gateway}: {reason}"
    log.warning("%s", message)
    return PushResult(False, message)


def _push_in_turn(store: Store, gateway: SplitResult, deadline: float) -> str | None:
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    while not _take_turn(store, owner):
        if time.monotonic() + _RETRY_SECONDS >= deadline:
            return "other processes were pushing all the time"
        time.sleep(_RETRY_SECONDS)
    try:
        return _push(store, gateway)
    finally:
        with store.ledger.write() as tx:
            release_lease(tx, _LEASE, owner)


def _take_turn(store: Store, owner: str) -> bool:
    now = now_micros()
    # Longer than a push may take: after that its process must have died.
    expires_at = now + int(1e6 * (_COLLECTING_SECONDS + 2 * store.settings.pushgateway_timeout_seconds))
    with store.ledger.write() as tx:
        return claim_lease(tx, _LEASE, owner, now=now, expires_at=expires_at)


def _push(store: Store, gateway: SplitResult) -> str | None:
    settings = store.settings
    handler = gateway_handler(settings, gateway)
    picture = Picture(collect_metrics(store))
    # From now on: the picture of thousands of datasets takes longer to draw than a gateway may take to answer.
    left = settings.pushgateway_timeout_seconds
    failure: list[BaseException] = []

    def send() -> None:
        try:
            push_to_gateway(
                _without_password(gateway),
                settings.pushgateway_job,
                picture,
                grouping_labels(settings.pushgateway_grouping),
                timeout=left,
                handler=handler,
            )
        except Exception as error:
            failure.append(error)

    # A socket's timeout covers neither name resolution nor an answer that trickles, hence the thread.
    sender = threading.Thread(target=send, name="timestore-push", daemon=True)
    sender.start()
    sender.join(left)
    if sender.is_alive():
        return f"no answer within {settings.pushgateway_timeout_seconds:g} s"
    return _explain(failure[0], secrets_sent(settings, gateway)) if failure else None


def _explain(error: BaseException, secrets: Iterable[str] = ()) -> str:
    if isinstance(error, HTTPError):
        body = error.read(10 * _QUOTED_CHARACTERS).decode(errors="replace").strip()
        repeated = any(secret in body for secret in secrets)
        body = "its answer repeats the credentials and is not shown" if repeated else body[:_QUOTED_CHARACTERS]
        return f"HTTP {error.code} {error.reason}" + (f": {body}" if body else "")
    if isinstance(error, URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _without_password(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
