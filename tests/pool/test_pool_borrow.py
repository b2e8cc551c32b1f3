"""Leases without an object for the lease, and shared ones that begin and end beside others."""

import pytest
from pool_kit import Fake, Source, at_rest

from pulsar_client import Pool


class Shared(Fake):
    """May be used by several at once."""

    is_reusable = True
    is_shareable = True


async def test_what_is_there_at_once_is_borrowed_and_given_back() -> None:
    source = Source(Shared)
    async with Pool(source, 2, share=4) as pool:
        assert pool.borrow() is None  # nothing is open
        async with pool.connect() as lease:
            entries = [pool.borrow() for _ in range(3)]
            assert all(entry is not None for entry in entries)
            assert {entry.connection for entry in entries if entry} == {lease.connection}
            assert pool.borrow() is None  # four use it
            for entry in entries:
                assert entry is not None
                entry.owner.give_back(entry, False, False)
        assert pool.in_use == 0
        assert pool.available == 1
    at_rest(pool)


async def test_nobody_joins_a_connection_that_went_bad_beside_others() -> None:
    source = Source(Shared)
    async with Pool(source, 2, share=4) as pool:
        async with pool.connect() as first, pool.connect() as second:
            bad = first.connection
            assert second.connection is bad
            bad.is_shareable = False
        async with pool.connect() as third:
            assert third.connection is not bad
        assert bad.closed
        assert bad not in pool
    at_rest(pool)


@pytest.mark.parametrize("share", [1, 4])
async def test_what_is_observed_is_not_borrowed(share: int) -> None:
    seen = []
    async with Pool(Source(Shared), 2, share=share) as pool:
        pool.bind_event("on_lease", lambda sender, exc=None, **kw: seen.append(kw))
        async with pool.connect():
            pass
        assert pool.borrow() is None
    assert len(seen) == 1
