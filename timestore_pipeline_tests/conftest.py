"""What every test can ask for: a store of its own in a temporary folder, an environment without surprises.

Nothing here imports Dagster, so that the tests of the plain library stay as light as the library.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from timestore_pipeline.settings import PREFIX, Settings
from timestore_pipeline_tests.ports import unused_port

if TYPE_CHECKING:
    from timestore_pipeline.store import Store
    from timestore_pipeline_tests.arrangements import Arrange, Arrangements
    from timestore_pipeline_tests.object_store import Bucket
    from timestore_pipeline_tests.shared_duckdb import SharedInstances

# A shell's background job ignores SIGINT, and every process that it starts does too; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATASETS_YAML = """
datasets:
  weather:
    description: Hourly weather of three stations.
    columns: {ts: timestamptz, station: varchar, temp: double}
    time: ts
    window: day
  events:
    description: Events whose columns are inferred and whose time is an integer.
    time: {column: at, unit: ms}
    window: hour
"""
"""Two small datasets: one with declared columns and windows of a day, one inferred with windows of an hour."""

WEATHER_CSV = (
    "ts,station,temp\n2026-01-01T00:30:00Z,JFK,1.5\n2026-01-01T01:30:00Z,LGA,2.5\n2026-01-02T00:30:00Z,JFK,3.5\n"
)
"""Three rows of ``weather`` in the windows 2026-01-01 (two) and 2026-01-02 (one)."""


class MakeStore(Protocol):
    """Opens a store; called twice in a test it opens the same installation again, as another process would."""

    def __call__(self, datasets_yaml: str = DATASETS_YAML, **settings: Any) -> Store:
        """Open it with ``settings`` (fields of Settings) over the defaults."""
        ...


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own installation, shell or proxy reaches a test."""
    for name in list(os.environ):
        if name.upper().startswith((PREFIX, "AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def shared_statements() -> Iterator[None]:
    """A statement is compiled once for all ledgers of this process that are on one kind of database."""
    from timestore_pipeline_tests.reuse import compiled_once

    with compiled_once():
        yield


@pytest.fixture(autouse=True)
def shared_schema() -> Iterator[None]:
    """A new ledger has the schema that one migration has left; overridden where migrations are what is tested."""
    from timestore_pipeline_tests.reuse import migrated_once

    with migrated_once():
        yield


ON_BOTH_LEDGERS = (
    "building",
    "crash",
    "ledger",
    "operating",
    "reading",
    "restoring",
    "segments",
    "simulating",
    "staging",
    "table",
    "upkeep",
)
"""Folders whose tests run on both SQLite and PostgreSQL, as far as they open an installation (``home``)."""


def folder_of(module: Path) -> str:
    """Return the first folder below this one that a module lies in."""
    return module.relative_to(Path(__file__).parent).parts[0]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what touches the ledger once on each database; ``@pytest.mark.only_on("sqlite")`` for what is of one only.

    A sample of the tests has one of the two (see ``sampling.py``), both where a test is marked ``both_ledgers``.
    """
    if "ledger_kind" not in metafunc.fixturenames or folder_of(metafunc.definition.path) not in ON_BOTH_LEDGERS:
        return
    only = metafunc.definition.get_closest_marker("only_on")
    # The examples of a property share one home, which they empty themselves; those that are to run on both databases
    # ask for a fresh ledger each (see reading/test_exactly_once.py).
    property_test = getattr(metafunc.function, "is_hypothesis_test", False)
    kinds = only.args if only else ("sqlite",) if property_test else ("sqlite", "postgresql")
    marks = {"sqlite": (), "postgresql": (pytest.mark.server,)}
    metafunc.parametrize("ledger_kind", [pytest.param(kind, marks=marks[kind]) for kind in kinds], indirect=True)


@pytest.fixture
def ledger_kind(request: pytest.FixtureRequest, clean_environment: None) -> Iterator[str]:
    """Puts the ledger of all that the test opens on the database that is returned: ``sqlite`` or ``postgresql``."""
    from timestore_pipeline_tests.postgresql import fresh_ledger

    kind = getattr(request, "param", "sqlite")
    with fresh_ledger(kind):
        yield kind


@pytest.fixture
def home(tmp_path: Path, ledger_kind: str) -> Path:
    """The folder of the installation under test; ``TIMESTORE_HOME`` of everything that the test starts."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def make_settings(home: Path) -> Callable[..., Settings]:
    """Builds Settings whose paths all lie in ``home``; keyword arguments are fields."""

    def make(**fields: Any) -> Settings:
        # The free disk of the machine that tests run on is none of their business, unless they say so.
        return Settings(**{"home": home, "staging_min_free_disk_bytes": 0, **fields})

    return make


@pytest.fixture(scope="session")
def duckdb_instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedInstances]:
    """The DuckDB instances of all stores of these tests, but for those of their children."""
    from timestore_pipeline_tests.shared_duckdb import SharedInstances

    instances = SharedInstances(tmp_path_factory.getbasetemp())
    yield instances
    instances.close()


SHARE_DUCKDB = ON_BOTH_LEDGERS
"""Folders whose stores share DuckDB instances; what these may reach is for ``security`` and ``duck``."""

DUCKDB_SETTINGS = frozenset(
    {"duckdb_memory_limit", "duckdb_threads", "duckdb_temp_directory", "query_max_seconds", "query_max_spill_bytes"}
)
"""Who opens a store with one of these has instances that obey it."""


@pytest.fixture
def make_store(
    home: Path,
    make_settings: Callable[..., Settings],
    duckdb_instances: SharedInstances,
    request: pytest.FixtureRequest,
) -> Iterator[MakeStore]:
    """Opens stores in ``home`` and closes them at the end of the test."""
    opened: list[Store] = []
    shares = folder_of(request.path) in SHARE_DUCKDB

    def make(datasets_yaml: str = DATASETS_YAML, **settings: Any) -> Store:
        from timestore_pipeline.store import Store

        datasets_file = home / "datasets.yaml"
        # Another thread of the test may be reading it, and would find it empty.
        if not datasets_file.exists() or datasets_file.read_text(encoding="utf-8") != datasets_yaml:
            datasets_file.write_text(datasets_yaml, encoding="utf-8")
        store = Store.open(make_settings(**settings))
        if shares and not settings.keys() & DUCKDB_SETTINGS:
            store = duckdb_instances.used_by(store)
        opened.append(store)
        return store

    yield make
    for store in opened:
        assert_totals_are_those_of_the_windows(store)
        store.close()


def assert_totals_are_those_of_the_windows(store: Store) -> None:
    """Whatever a test did, what is published of each dataset is still the sum of its windows."""
    from sqlalchemy import func, select
    from sqlalchemy.exc import SQLAlchemyError

    from timestore_pipeline.errors import LedgerError
    from timestore_pipeline.ledger.schema import windows
    from timestore_pipeline.ledger.windows import published_totals

    sums = (func.count(), func.sum(windows.c.rows), func.sum(windows.c.bytes), func.sum(windows.c.files))
    try:
        with store.ledger.read() as tx:
            found = tx.execute(select(windows.c.dataset, *sums).group_by(windows.c.dataset)).all()
            totals = published_totals(tx)
    except (LedgerError, SQLAlchemyError):
        return  # the test took the ledger away
    assert totals == {name: tuple(map(int, numbers)) for name, *numbers in found}


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """A store with the datasets of :data:`DATASETS_YAML` and default settings."""
    return make_store()


@pytest.fixture(scope="session")
def arrangements(tmp_path_factory: pytest.TempPathFactory) -> Arrangements:
    """The installations that :func:`arrange` copies."""
    from timestore_pipeline_tests.arrangements import Arrangements

    return Arrangements(tmp_path_factory.mktemp("arranged"))


@pytest.fixture
def arrange(make_store: MakeStore, home: Path, ledger_kind: str, arrangements: Arrangements) -> Arrange:
    """Opens a store with ``settings`` in an installation that is made, by default settings, the first time only."""

    def arranged(name: str, datasets_yaml: str, prepare: Callable[[Store], None], **settings: object) -> Store:
        if any(str(value).startswith("s3:") for value in settings.values()):
            store = make_store(datasets_yaml, **settings)
            prepare(store)
            return store
        if not arrangements.restore(f"{ledger_kind} {name}", home):
            store = make_store(datasets_yaml)
            prepare(store)
            store.close()
            arrangements.keep(f"{ledger_kind} {name}", home)
        return make_store(datasets_yaml, **settings)

    return arranged


@pytest.fixture
def store_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Writes ``datasets.yaml`` and puts ``TIMESTORE_*`` into the environment: for commands and other processes."""

    def put(datasets_yaml: str = DATASETS_YAML, **fields: Any) -> dict[str, str]:
        (home / "datasets.yaml").write_text(datasets_yaml, encoding="utf-8")
        for field, value in {"home": home, "staging_min_free_disk_bytes": 0, **fields}.items():
            monkeypatch.setenv(PREFIX + field.upper(), str(value))
        return dict(os.environ)

    return put


@pytest.fixture
def drop() -> Callable[[Store, str, str, str | bytes], Path]:
    """Drops a landing file: ``drop(store, dataset, file_name, content)`` returns its path."""

    def put(store: Store, dataset: str, file_name: str, content: str | bytes) -> Path:
        folder = store.settings.landing_path / dataset
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file_name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return put


@pytest.fixture
def s3_bucket(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket on a real S3 server, behind a proxy that can spoil requests; the environment is how to reach it."""
    from timestore_pipeline_tests.object_store import bucket

    with bucket() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def free_port() -> int:
    """A loopback port that nothing listens on."""
    return unused_port()


@pytest.fixture
def program() -> Callable[[str], str]:
    """Finds a program of the system, see :func:`find_program`."""
    return find_program


def find_program(name: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails where ``CI`` says all must be there."""
    path = shutil.which(name)
    if path is None:
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain(f"{name} is not installed; .ci/install-servers installs it")
    return path
