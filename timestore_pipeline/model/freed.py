"""What was removed: files and bytes (short, because all that removes files counts them in this way)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Freed:
    """What was removed: files and their bytes."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.files + other.files, self.bytes + other.bytes)

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Self:
        """Return how many files these are, each with its bytes."""
        known = list(sizes)
        return cls(len(known), sum(known))
