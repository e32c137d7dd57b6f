"""The demo's own installation: a folder that is emptied first, with its settings and its Dagster home in it."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.demo.errors import DemoError
from timestore_pipeline.settings import PREFIX, Settings, load_settings, variable_name

PROJECT = Path(__file__).parents[2]

# Says that a folder is the demo's, so that it may be emptied, and is locked while a demo runs in it.
_MARKER = ".timestore-demo"

# Lower than the defaults, so that within two minutes flushes happen by rows (flights) and by age (weather).
_SETTINGS = {
    "staging_flush_max_rows": "40000",
    "staging_flush_max_age_ms": "15000",
    # All of these rows are of 2013, so their windows are closed, and each is published more than once.
    "staging_flush_late_max_age_ms": "15000",
    "staging_max_pending": "4000",
    "metrics_sensor_interval_seconds": "10",
}


@dataclass(frozen=True)
class Installation:
    """Where the demo works; ``pushgateway_url`` is None where there is none."""

    home: Path
    pushgateway_url: str | None = None

    @property
    def dagster_home(self) -> Path:
        """The Dagster instance's folder."""
        return self.home / "dagster_home"

    @property
    def environment_file(self) -> Path:
        """A file for shells with the settings."""
        return self.home / "environment"

    @property
    def settings(self) -> Settings:
        """The demo's settings; to be asked for once :func:`forget_other_installations` has been called."""
        return load_settings(**self._values())

    def environment(self) -> dict[str, str]:
        """Return the environment of the demo's programs: this process's, and the demo's settings."""
        no_proxy = ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1", "localhost"]))
        return {**os.environ, "no_proxy": no_proxy, "NO_PROXY": no_proxy, **self._variables()}

    def prepare(self, datasets: Mapping[str, object]) -> None:
        """Create the folders and files that the programs find."""
        self.dagster_home.mkdir()
        (self.dagster_home / "dagster.yaml").symlink_to(PROJECT / "dagster.yaml")
        for name in datasets:
            (self.settings.landing_path / name).mkdir(parents=True)
        # Not the gateway, which ends with the demo.
        lasting = Installation(self.home)._variables()
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in lasting.items()]
        self.environment_file.write_text("".join(["# The demo's installation, for a shell to read.\n", *lines]))

    def _values(self) -> dict[str, str]:
        values = {"home": str(self.home), "datasets_file": str(PROJECT / "datasets.yaml"), **_SETTINGS}
        return values if self.pushgateway_url is None else {**values, "pushgateway_url": self.pushgateway_url}

    def _variables(self) -> dict[str, str]:
        return {
            **{variable_name(field): value for field, value in self._values().items()},
            "DAGSTER_HOME": str(self.dagster_home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
        }


@contextmanager
def own_folder(home: Path) -> Iterator[None]:
    """Empty the demo's folder and hold it; another folder is left alone.

    Raises:
        DemoError: the folder is not the demo's, or another demo runs in it.
    """
    marker = home / _MARKER
    if home.exists() and not marker.exists() and any(home.iterdir()):
        raise DemoError(f"{home} is not empty and not from an earlier demo; choose another folder with --home")
    home.mkdir(parents=True, exist_ok=True)
    with marker.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError(f"another demo runs in {home}; wait for its end or choose another folder") from error
        for entry in home.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != marker:
                entry.unlink()
        yield


def forget_other_installations() -> None:
    """Remove settings of timestore and Dagster from this process's environment: the demo has its own."""
    for name in list(os.environ):
        if name.upper().startswith((PREFIX, "DAGSTER_")):
            del os.environ[name]
