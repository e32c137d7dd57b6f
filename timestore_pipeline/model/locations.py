"""Where files are kept: a path of this host, or a prefix of an object store. The one place that parses such URLs.

A URL names a place and nothing else: who may go there is said by the environment, as delta-rs reads it too
(``AWS_*``, ``GOOGLE_*``, ``AZURE_*``), so that no location holds a secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEMES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure"}
"""Beginnings of URLs that are taken, with what they mean."""

_BUCKET = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
# What a key may hold without any library on the way reading it as something else.
_NOT_IN_KEYS = re.compile(r"[\x00-\x20\x7f?#\\*\"<>|^`{}\[\]~]|%[0-9A-Fa-f]{2}")


@dataclass(frozen=True)
class ObjectUrl:
    """``<scheme>://<bucket>/<prefix>``; ``prefix`` is without slashes at its ends, and may be empty."""

    scheme: str
    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def as_uri(self) -> str:
        """Return the URL, as a path does."""
        return str(self)

    def __truediv__(self, key: str) -> ObjectUrl:
        return ObjectUrl(self.scheme, self.bucket, "/".join(part for part in (self.prefix, key.strip("/")) if part))


def is_url(location: str) -> bool:
    """Whether a location is meant as a URL rather than as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", location) is not None


def parse_url(location: str) -> ObjectUrl:
    """Return the object store's place that a URL means.

    Raises:
        ValueError: it is no URL of an object store; says what is wrong and what is allowed, and shows no password.
    """
    scheme, _, rest = location.partition(":")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}:// ({store})" for name, store in SCHEMES.items())
        raise ValueError(f"{scheme}:// is no place for files; use a path, or one of {known}")
    if not rest.startswith("//"):
        raise ValueError(f"write it as {scheme}://bucket/prefix")
    bucket, _, prefix = rest[2:].partition("/")
    if "@" in bucket or "?" in rest:
        raise ValueError(
            "it must not hold credentials or options: those belong into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the like; docs/object-store.md)"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"it has no usable bucket name; write it as {scheme}://bucket/prefix")
    prefix = prefix.strip("/")
    found = _NOT_IN_KEYS.search(prefix)
    if found:
        raise ValueError(f"its prefix has {found[0]!r} in it, which not all libraries take; choose another prefix")
    if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ValueError("its prefix has an empty part, '.' or '..' in it; write it as bucket/one/two")
    return ObjectUrl(scheme, bucket, prefix)
