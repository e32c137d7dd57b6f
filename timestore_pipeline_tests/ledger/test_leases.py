"""A lease has one owner, which loses it when it expires or gives it back."""

from __future__ import annotations

import pytest

from timestore_pipeline.ledger.leases import claim_lease, release_lease
from timestore_pipeline.store import Store

pytestmark = pytest.mark.both_ledgers


def test_a_lease_has_one_owner_until_it_expires(store: Store):
    with store.ledger.write() as tx:
        assert claim_lease(tx, "sweep", "a", now=0, expires_at=10)
        assert not claim_lease(tx, "sweep", "b", now=9, expires_at=20)
        assert claim_lease(tx, "sweep", "a", now=9, expires_at=15)
        assert claim_lease(tx, "sweep", "b", now=15, expires_at=30)
        release_lease(tx, "sweep", "a")
        assert not claim_lease(tx, "sweep", "a", now=16, expires_at=40)
        release_lease(tx, "sweep", "b")
        assert claim_lease(tx, "sweep", "a", now=16, expires_at=40)


def test_a_lease_has_one_holder_at_a_time(store: Store):
    with store.ledger.write() as tx:
        assert claim_lease(tx, "thing", "one", now=0, expires_at=100)
        assert not claim_lease(tx, "thing", "other", now=50, expires_at=150)
        assert claim_lease(tx, "thing", "one", now=60, expires_at=160), "its holder may extend it"
        assert not claim_lease(tx, "thing", "other", now=110, expires_at=210)
        assert claim_lease(tx, "another thing", "other", now=50, expires_at=150)
        assert claim_lease(tx, "thing", "other", now=160, expires_at=260)
        release_lease(tx, "thing", "one")
        assert not claim_lease(tx, "thing", "one", now=200, expires_at=300), "only its holder can release it"
        release_lease(tx, "thing", "other")
        assert claim_lease(tx, "thing", "one", now=200, expires_at=300)
