"""What maintenance removed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Freed:
    """What was removed: files and their bytes."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.files + other.files, self.bytes + other.bytes)
