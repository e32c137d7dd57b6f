"""Asking an object store until it answers: what is tried again, for how long, and how a refusal is put into words.

One place for all retries, rather than some here and some in the library below: it alone knows that a create-only put
may be repeated. Waiting times grow and are random, so that many processes do not come back at the same moment.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotModifiedError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from timestore_pipeline.errors import StorageRefused, StorageUnavailable
from timestore_pipeline.inert import log_named
from timestore_pipeline.model.locations import ObjectUrl

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = log_named(__name__)

T = TypeVar("T")

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0

# Answers that mean "not now": time-outs, conflicts of conditional requests, too early, too many.
_NOT_NOW = {408, 409, 425, 429}
_NO_PLACE = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")

Answers = (AlreadyExistsError, PreconditionError, NotModifiedError, NotSupportedError)
"""What a caller asked about, so these are not translated here."""


def times_of_requests(timeout_seconds: float) -> dict[str, str]:
    """Return how long a request may take, as the libraries below are told."""
    return {"timeout": f"{max(1, round(timeout_seconds * 1_000))}ms", "connect_timeout": "5s"}


def client_of(url: ObjectUrl, timeout_seconds: float) -> ObjectStore:
    """Return a client of a place, which tries nothing again by itself.

    Raises:
        StorageRefused: the environment does not say enough to reach the store.
    """
    # Not as client options: those would replace what the environment says of the client, such as AWS_ALLOW_HTTP.
    config: Any = times_of_requests(timeout_seconds)
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        return kinds[url.scheme](url.bucket, prefix=url.prefix or None, config=config, retry_config={"max_retries": 0})
    except (BaseError, ValueError) as error:
        raise StorageRefused(f"opening {url}", reason_of(error)) from None


def insistently(what: str, ask: Callable[[], T], patience_seconds: float) -> T:
    """Return what ``ask`` does, asking again while the store does not answer or says "not now".

    Args:
        what: the request for messages: verb and location.
        ask: does it once; doing it twice must be the same as doing it once.
        patience_seconds: for how long; the first attempt is always made.

    Raises:
        FileNotFoundError, AlreadyExistsError, PreconditionError: the store's answer, for the caller to judge.
        StorageRefused: it says no: credentials, permissions, a bucket that is not there, settings.
        StorageUnavailable: it gave no usable answer for as long.
    """
    give_up = time.monotonic() + patience_seconds
    longest = _FIRST_WAIT_SECONDS
    attempts = 0
    while True:
        attempts += 1
        try:
            return ask()
        except Answers:
            raise
        except FileNotFoundError as error:
            if any(said in str(error) for said in _NO_PLACE):
                raise StorageRefused(what, reason_of(error)) from None
            raise
        except BaseError as error:
            # The cause is left out on purpose: it shows whole URLs, which may be signed.
            reason = reason_of(error)
            if _is_refusal(error):
                raise StorageRefused(what, reason) from None
            wait = random.uniform(longest / 2, longest)
            if time.monotonic() + wait > give_up:
                raise StorageUnavailable(what, reason, attempts, patience_seconds) from None
        log.info("%s is tried again in %.1f s: %s", what, wait, reason)
        time.sleep(wait)
        longest = min(2 * longest, _LONGEST_WAIT_SECONDS)


def reason_of(error: BaseException) -> str:
    """Return what an object store's error says, in one line and without queries of URLs: those may be signatures."""
    text = str(error).split("\n\nDebug source")[0]
    status = re.search(r"status code: (\d{3}[^:]*)", text)
    code, message = (re.search(f"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    if status:
        said = ": ".join(part[1].strip() for part in (code, message) if part)
        return f"{status[1].strip()}" + (f" ({said})" if said else "")
    text = re.sub(r"\?\S*", "", text)
    return " ".join(text.split())[:300]


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return True
    text = str(error)
    status = re.search(r"status code: (\d{3})", text)
    if status:
        return 400 <= int(status[1]) < 500 and int(status[1]) not in _NOT_NOW
    return not isinstance(error, GenericError) or "builder error" in text
