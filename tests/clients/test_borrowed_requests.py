"""Requests of a client on shared connections with a codec: what is not as simple as most are."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest
from line_codec import LineCodec
from scripted_peer import Line, Peer, peer

from pulsar_client import AbstractClient, Connection, ConnectionClosed, Pool

__all__ = ["peer"]  # a fixture


class Client(AbstractClient):
    """A pool of pipelined connections to the peer."""

    connection_class: type[Connection] = Connection

    def __init__(self, address: Any, **options: Any) -> None:
        super().__init__()
        self.protocol_factory = partial(self.connection_class, codec=LineCodec, pipeline=8)
        options = {"share": 4, "timeout": 20.0, **options}
        self.pool: Pool = Pool(partial(self._open, address), 2, **options)

    async def _open(self, address: Any) -> Any:
        return await self.create_connection(address)

    async def aclose(self) -> None:
        await self.pool.close()


class Other(Line):
    """What comes after the upgrade."""

    def start_request(self) -> None:
        raise AssertionError(f"{self.request!r} in the other protocol")


ENDINGS: dict[str, Callable[[Connection], object]] = {
    "last request": lambda connection: connection.close_after_request(),
    "closing": lambda connection: connection.close(),
    "transport aborted": lambda connection: connection._transport.abort(),
    "upgraded": lambda connection: connection.upgrade(Other),
}


@pytest.mark.parametrize("users", [0, 1])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_connection_that_takes_no_more_is_no_attempt(
    peer: Peer, ending: str, users: int
) -> None:
    """Whether or not somebody uses it: a client that may try once gets another."""
    async with aclosing(Client(peer.address)) as client:
        async with client.pool.connect() as lease:
            first = lease.connection
            assert await lease.request(b"one") == b"ONE"
            if users:
                ENDINGS[ending](first)
                assert await client.request(b"two", attempts=1) == b"TWO"
        if not users:
            ENDINGS[ending](first)
            assert await client.request(b"two", attempts=1) == b"TWO"
        assert client.retries == 0
        for _ in range(100):  # some of them are measured
            assert await client.request(b"more", attempts=1) == b"MORE"
        stats = client.pool.stats()
        assert (stats.in_use, stats.opened) == (0, 2)
        assert stats.leases == 102  # the one that was none is not counted


async def test_a_request_of_a_subclass_is_asked(peer: Peer) -> None:
    """What a class adds to its requests is in those that a client makes, too."""
    seen = []

    class Noted(Connection):
        async def request(self, message: Any, timeout: float | None = None) -> Any:
            seen.append((message, timeout))
            return await super().request(message, timeout)

    class Noting(Client):
        connection_class = Noted

    async with aclosing(Noting(peer.address)) as client:
        for number in range(3):
            assert await client.request(b"a%d" % number) == b"A%d" % number
        assert await asyncio.gather(*(client.request(b"b", timeout=5.0) for _ in range(3)))
    assert seen[:3] == [(b"a0", None), (b"a1", None), (b"a2", None)]
    assert [message for message, _ in seen[3:]] == [b"b"] * 3


async def test_what_hooks_are_told_of_borrowed_connections(peer: Peer) -> None:
    """Somebody who listens to requests hears of each, whenever they begin to listen."""
    seen = []
    async with aclosing(Client(peer.address)) as client:
        assert await client.request(b"one") == b"ONE"
        client.bind_event("pre_request", lambda consumer, **kw: seen.append(consumer.request))
        assert await client.request(b"two") == b"TWO"
        assert await client.request(b"three", timeout=5.0) == b"THREE"
    assert seen == [b"two", b"three"]


async def test_a_message_that_cannot_be_written_costs_nothing(peer: Peer) -> None:
    async with aclosing(Client(peer.address)) as client:
        assert await client.request(b"one") == b"ONE"
        with pytest.raises(TypeError):
            await client.request(1)
        assert await client.request(b"two", attempts=1) == b"TWO"
        stats = client.pool.stats()
        assert (stats.in_use, stats.opened) == (0, 1)


async def test_the_only_attempt_on_a_lost_connection_fails(peer: Peer) -> None:
    peer.plan = ["answer", "drop"]
    async with aclosing(Client(peer.address)) as client:
        assert await client.request(b"one") == b"ONE"
        with pytest.raises(ConnectionClosed) as caught:
            await client.request(b"two", attempts=1)
        assert caught.value.sent
        assert await client.request(b"three", attempts=1) == b"THREE"


@pytest.mark.parametrize("share", [1, 4])
async def test_a_request_that_somebody_listens_to_is_one_lease(peer: Peer, share: int) -> None:
    async with aclosing(Client(peer.address, share=share, max_uses=4)) as client:
        client.bind_event("pre_request", lambda consumer, **kw: None)
        for _ in range(8):
            assert await client.request(b"a") == b"A"
        stats = client.pool.stats()
        assert (stats.leases, stats.opened) == (8, 2)
        assert client.requests_processed == 8


async def test_a_connection_that_is_kept_from_others_is_asked_whether_it_is(peer: Peer) -> None:
    """A class may say itself when nobody shall join, and takes requests all the same."""

    class Kept(Connection):
        kept = False

        @property
        def is_shareable(self) -> bool:
            return super().is_shareable and not self.kept

    class Keeping(Client):
        connection_class = Kept

    async with aclosing(Keeping(peer.address)) as client:
        assert await client.request(b"one") == b"ONE"
        async with client.pool.connect() as lease:
            lease.connection.kept = True
            assert await client.request(b"two") == b"TWO"
            assert lease.connection.requests_processed == 1
            assert await lease.request(b"three") == b"THREE"


@pytest.mark.parametrize("share", [1, 4])
async def test_a_wrapper_with_a_request_of_its_own_is_asked(peer: Peer, share: int) -> None:
    """Whatever else it has is its connection's, the way to begin requests without it as well."""

    class Wrapper:
        def __init__(self, wrapped: Connection) -> None:
            self._wrapped = wrapped

        def __getattr__(self, name: str) -> Any:
            return getattr(self._wrapped, name)

        async def request(self, message: Any, timeout: float | None = None) -> Any:
            return b"> " + await self._wrapped.request(message, timeout)

    class Wrapping(Client):
        async def _open(self, address: Any) -> Any:
            return Wrapper(await super()._open(address))

    async with aclosing(Wrapping(peer.address, share=share)) as client:
        for _ in range(3):
            assert await client.request(b"a") == b"> A"
            assert await client.request(b"b", timeout=5.0) == b"> B"
