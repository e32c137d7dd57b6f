"""Dropping the files over time, as careful producers do: written under another name, then renamed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.demo.deliveries import Delivery


@dataclass
class Dropper:
    """Drops ``deliveries`` into ``landing`` within ``seconds``, in a thread of its own.

    ``dropped_at`` has the modification time of each file, by dataset and name, in seconds since the epoch.
    """

    landing: Path
    deliveries: Sequence[Delivery]
    seconds: float
    dropped_at: dict[tuple[str, str], float] = field(default_factory=dict)
    bytes: int = 0
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dropper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, if it is not done."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def done(self) -> bool:
        """Whether everything has been dropped."""
        return len(self.dropped_at) == len(self.deliveries)

    def _run(self) -> None:
        started = time.monotonic()
        try:
            for number, delivery in enumerate(self.deliveries):
                due = started + self.seconds * number / len(self.deliveries)
                if self._stop.wait(max(0.0, due - time.monotonic())):
                    return
                self._drop(delivery)
        except Exception as error:
            self.error = error

    def _drop(self, delivery: Delivery) -> None:
        path = self.landing / delivery.dataset / delivery.name
        partial = path.with_name(f"{path.name}.partial")
        content = delivery.content()
        partial.write_bytes(content)
        modified_at = partial.stat().st_mtime
        partial.rename(path)
        self.bytes += len(content)
        self.dropped_at[delivery.dataset, delivery.name] = modified_at
