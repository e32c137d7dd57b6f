"""What batches are called: which ids the project gives, and how callers' keys are kept out of each other's way.

An id names one content for ever (invariant 2). So nobody may take the id that a content which is not there yet is going
to get: its batch could never be staged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from blake3 import blake3

from timestore_pipeline.model.windows import TimeRange

MAX_BATCH_ID = 255
"""Most characters of a batch id."""

RETRY_MARK = "/rows/"
"""Stands in the ids of batches that came out of quarantine, before the number of their entry."""

_GIVEN = re.compile(
    rf"(file|arrow|unread)-[0-9a-f]{{64}}|replaced-[0-9a-f]{{64}}-[0-9]+|.*{RETRY_MARK}[0-9]+|token/[A-Za-z0-9_.-]+/.*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Client:
    """One of several who send batches to one server: how its batches are called, and whose share of a queue they take.

    Args:
        name: who it is, as the ledger has it as the source of its batches.
        space: the name of its keys' space.
        key: its own key for this batch, if it gave one.
    """

    name: str
    space: str
    key: str | None = None

    @property
    def batch_id(self) -> str | None:
        """The id of the batch of that key, which no other space has; None where there is no key."""
        if self.key is None:
            return None
        prefix = f"token/{self.space}/"
        if len(prefix) + len(self.key) <= MAX_BATCH_ID:
            return prefix + self.key
        return f"{prefix}hash-{blake3(self.key.encode()).hexdigest()}"


def file_batch_id(fingerprint: str) -> str:
    """Return the batch id of a landing file: its content's, so that its name does not matter."""
    return f"file-{fingerprint}"


def content_batch_id(fingerprint: str) -> str:
    """Return the batch id of rows that came without one: their content's."""
    return f"arrow-{fingerprint}"


def replacement_batch_id(fingerprint: str, number: int) -> str:
    """Return the batch id of rows that came without one and replace a range, as the dataset's correction ``number``."""
    return f"replaced-{fingerprint}-{number}"


def replacement_fingerprint(fingerprint: str, replaces: TimeRange) -> str:
    """Return the hash of what a replacement says: rows and the range of which they are all that there is to be."""
    return blake3(f"{fingerprint}/{replaces.start}/{replaces.end}".encode()).hexdigest()


def unread_file_id(*stamp: object) -> str:
    """Return what a file is called before its content is known, by what tells it from others and from itself later."""
    return f"unread-{blake3(repr(stamp).encode(errors='surrogatepass')).hexdigest()}"


def claims_given_id(batch_id: str, fingerprint: str, client: Client | None = None) -> bool:
    """Whether a batch that its caller named has an id that the project would give to another content than its own."""
    own = {file_batch_id(fingerprint), content_batch_id(fingerprint)}
    if client is not None:
        own.add(client.batch_id or "")
    if batch_id in own or batch_id.startswith(replacement_batch_id(fingerprint, 0)[:-1]):
        return False
    return _GIVEN.fullmatch(batch_id) is not None
