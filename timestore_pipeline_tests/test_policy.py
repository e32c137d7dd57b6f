"""What holds for a dataset: an operator's limit goes before its own value, and that before the environment's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.datasets import CompactionSpec, DatasetSpec, FlushSpec, LimitSpec, RetentionSpec
from timestore_pipeline.ledger.limits import LimitName, Override, clear_override, set_override
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.policy import FlushThresholds, LimitSource, Policy, service_levels
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import declared
from timestore_pipeline_tests.conftest import MakeStore

DAY_MICROS = 86_400_000_000


def override(store: Store, name: LimitName, value: int, dataset: str = "weather") -> None:
    with store.ledger.write() as tx:
        set_override(tx, Override(dataset, name, value, "the test", now_micros()))


def source_of(store: Store, name: LimitName) -> LimitSource:
    with store.ledger.read() as tx:
        return store.policy(tx, store.datasets["weather"]).limits.source(name)


def test_an_override_goes_before_the_file_and_the_file_before_the_environment(make_store: MakeStore):
    store = make_store(declared(weather="limits: {max_pending: 7}"), staging_max_pending=5)
    override(store, LimitName.MAX_PENDING, 9)

    assert source_of(store, LimitName.MAX_PENDING) is LimitSource.OVERRIDE
    assert source_of(store, LimitName.MAX_BYTES) is LimitSource.ENVIRONMENT
    with store.ledger.write() as tx:
        assert store.policy(tx, store.datasets["weather"]).limits.max_pending == 9
        assert clear_override(tx, "weather", LimitName.MAX_PENDING)
        assert not clear_override(tx, "weather", LimitName.MAX_PENDING)
        assert store.policy(tx, store.datasets["weather"]).limits.max_pending == 7
    assert source_of(store, LimitName.MAX_PENDING) is LimitSource.DATASETS_FILE


def test_an_override_is_of_one_dataset(make_store: MakeStore):
    store = make_store()
    override(store, LimitName.MAX_PENDING, 3, dataset="events")

    with store.ledger.read() as tx:
        policies = store.policies(tx)

    assert tuple(policies[name].limits.max_pending for name in ("events", "weather")) == (3, 1_000)


def test_thresholds_of_a_dataset_go_before_those_of_the_environment(make_store: MakeStore):
    store = make_store(
        "datasets: {weather: {time: ts, window: day, flush: {max_rows: 7, max_age_ms: 0}}}",
        staging_flush_max_rows=1,
        staging_flush_max_bytes=2,
        staging_flush_max_age_ms=3,
        staging_flush_late_max_age_ms=4,
    )

    assert Policy.of(store.settings, store.datasets["weather"]).flush == FlushThresholds(7, 2, 0, 4)
    assert Policy.of(Settings(), store.datasets["weather"]).flush.max_bytes == 134_217_728


@pytest.mark.parametrize(
    ("max_age_ms", "said", "promised"),
    [(60_000, 0, 120), (600_000, 0, 1_200), (1, 0, 60), (29_999, 0, 60), (0, 0, 0), (60_000, 90, 90), (0, 90, 90)],
)
def test_rows_are_promised_after_twice_their_age_threshold_unless_somebody_says_when(
    max_age_ms: int, said: float, promised: float
):
    settings = Settings(slo_flush_seconds=7, slo_publish_seconds=said)

    levels = service_levels(settings, FlushThresholds(0, 0, max_age_ms))

    assert (levels.flush_seconds, levels.publish_seconds) == (7, promised)


def test_what_a_dataset_says_goes_before_the_environment():
    settings = Settings(
        staging_retention_seconds=10, table_retention_seconds=20, compaction_max_small_files=3, freshness_seconds=60
    )
    own = described(
        retention=RetentionSpec(staging=timedelta(0), table=timedelta(days=1)),
        compaction=CompactionSpec(max_small_files=0),
        freshness=timedelta(0),
    )

    policy = Policy.of(settings, own)
    assert (policy.staging_retention_micros, policy.table_retention_micros) == (0, DAY_MICROS)
    assert (policy.max_small_files, policy.freshness_micros) == (0, 0)
    for of_environment in (Policy.of(settings, described()), Policy.of(settings, None)):
        assert (of_environment.staging_retention_micros, of_environment.table_retention_micros) == (10**7, 2 * 10**7)
        assert (of_environment.max_small_files, of_environment.freshness_micros) == (3, 6 * 10**7)


limit = st.none() | st.integers(1, 32)


@given(st.fixed_dictionaries({name: st.tuples(limit, limit, st.integers(1, 32)) for name in LimitName}))
def test_each_limit_is_what_the_first_one_says_who_says_anything(said: dict[LimitName, tuple[Any, ...]]):
    variables = {
        LimitName.MAX_PENDING: "staging_max_pending",
        LimitName.MAX_BYTES: "staging_max_dataset_bytes",
        LimitName.MAX_WINDOWS: "staging_max_windows",
        LimitName.CONCURRENT_INGESTS: "staging_concurrent_ingests",
        LimitName.CONCURRENT_BUILDS: "build_concurrent_builds",
    }
    settings = Settings(**{variables[name]: environment for name, (_, _, environment) in said.items()})
    spec = described(limits=LimitSpec(**{name.value: own for name, (_, own, _) in said.items()}))
    by_operator = {name.value: value for name, (value, _, _) in said.items() if value is not None}

    limits = Policy.of(settings, spec, by_operator).limits

    for name, values in said.items():
        first = next(number for number, value in enumerate(values) if value is not None)
        assert (limits.value(name), limits.source(name)) == (values[first], list(LimitSource)[first])


def test_where_staging_is_switched_off_no_threshold_holds():
    policy = Policy.of(Settings(staging_enabled=False), described(flush=FlushSpec(max_rows=7)))

    assert policy.flush.all_off


def described(**parts: object) -> DatasetSpec:
    return DatasetSpec.model_validate({"name": "weather", "time": "ts", "window": "day", **parts})
