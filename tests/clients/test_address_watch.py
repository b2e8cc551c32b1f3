"""Connections to addresses that a host name has lost are replaced (I28); a pool is one (I19)."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scripted_peer import Client, Peer, peer, until

from pulsar_client import AddressWatch, Pool, PoolConnection

__all__ = ["peer"]  # a fixture

HOST = "several.example"


class Names:
    """The resolver of the running loop: every name has these addresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
        self.hosts: tuple[str, ...] = hosts
        self.error: BaseException | None = None
        self.lookups = 0
        self.stuck = False
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, host: str, port: int, **options: Any) -> list[Any]:
        self.lookups += 1
        await asyncio.sleep(0)
        if self.stuck:
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.hosts
        ]


@pytest.fixture
async def peers() -> AsyncIterator[tuple[Peer, Peer]]:
    """Two peers at two addresses, with the same port."""
    first = Peer(("127.0.0.2", 0))
    second = Peer(("127.0.0.3", first.address[1]))
    try:
        yield first, second
    finally:
        for peer in (first, second):
            for task in peer.tasks:
                task.cancel()
            await asyncio.wait(peer.tasks)
            for sock in (*peer.connections, peer.listener):
                sock.close()


def hosts(client: Client) -> list[str]:
    """The addresses that the pool's connections go to."""
    return sorted(protocol.address[0] for protocol in client._protocols if protocol in client.pool)


async def test_i28_connections_to_a_vanished_address_are_replaced(
    peers: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg 254 and 253, aiohttp 4948, HikariCP 314 (I28): after a failover they stayed."""
    names = Names(monkeypatch, "127.0.0.2")
    async with Client((HOST, peers[0].address[1])) as client:
        watch = AddressWatch(client.address, client.pool, misses=1)
        idle, leased = await client.pool.connect(), await client.pool.connect()
        idle_connection, connection = idle.connection, leased.connection
        idle.close()
        assert await watch.look() == 0
        names.hosts = ("127.0.0.3",)
        assert await watch.look() == 2
        # The idle one goes at once, and nobody gets it any more; the leased one is not disturbed.
        assert idle_connection not in client.pool
        async with client.pool.connect() as lease:
            assert lease.connection.address[0] == "127.0.0.3"
        assert await leased.request(b"in the middle") == b"IN THE MIDDLE"
        leased.close()
        await until(lambda: connection not in client.pool)
        await until(lambda: not peers[0].connections)
        assert hosts(client) == ["127.0.0.3"]
        assert await watch.look() == 0


async def test_i28_what_stays_is_left_alone(
    peers: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, "127.0.0.2")
    async with Client((HOST, peers[0].address[1])) as client:
        watch = AddressWatch(client.address, client.pool, misses=1)
        first = await client.pool.connect()
        names.hosts = ("127.0.0.3",)
        second = await client.pool.connect()
        assert [lease.connection.address[0] for lease in (first, second)] == [
            "127.0.0.2",
            "127.0.0.3",
        ]
        kept = second.connection
        first.close()
        second.close()
        assert await watch.look() == 1
        await until(lambda: hosts(client) == ["127.0.0.3"])
        assert kept in client.pool


async def test_an_answer_that_is_a_part_of_the_addresses(
    peers: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address is gone when several answers in a row lack it."""
    names = Names(monkeypatch, "127.0.0.2")
    async with Client((HOST, peers[0].address[1])) as client:
        watch = AddressWatch(client.address, client.pool, misses=3)
        async with client.pool.connect():
            pass
        for _ in range(3):
            names.hosts = ("127.0.0.3",)
            assert await watch.look() == 0
            assert await watch.look() == 0
            names.hosts = ("127.0.0.3", "127.0.0.2")
            assert await watch.look() == 0
        names.hosts = ("127.0.0.3",)
        assert [await watch.look() for _ in range(3)] == [0, 0, 1]
        await until(lambda: not client.pool.stats().size)


@pytest.mark.parametrize("failure", ["error", "nothing", "stuck"])
async def test_a_lookup_that_fails_changes_nothing(
    peers: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """I27: a resolver that is down must not take the pool with it."""
    names = Names(monkeypatch, "127.0.0.2")
    async with Client((HOST, peers[0].address[1])) as client:
        watch = AddressWatch(client.address, client.pool, misses=1, timeout=0.05)
        async with client.pool.connect() as lease:
            connection = lease.connection
        match failure:
            case "error":
                names.error = socket.gaierror(socket.EAI_AGAIN, "try again")
            case "nothing":
                names.hosts = ()
            case _:
                names.stuck = True
        assert await watch.look() == 0
        assert connection in client.pool


async def test_i28_the_client_looks_by_itself(
    peers: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, "127.0.0.2")
    async with Client((HOST, peers[0].address[1])) as client:
        watch = client.watch_address(client.address, interval=0.01, misses=2)
        assert "watching" in repr(watch)
        assert await client.request(b"x") == b"X"
        assert hosts(client) == ["127.0.0.2"]
        names.hosts = ("127.0.0.3",)
        await until(lambda: not client.pool.stats().size)
        assert await client.request(b"x") == b"X"
        assert hosts(client) == ["127.0.0.3"]
    assert "stopped" in repr(watch)
    lookups = names.lookups
    await asyncio.sleep(0.05)
    assert names.lookups == lookups


@pytest.mark.parametrize("end", ["close", "abort", "pool", "async with"])
async def test_its_end(peer: Peer, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Every task has an owner: none is left, whichever way it ends."""
    Names(monkeypatch, "127.0.0.1")
    client = Client((HOST, peer.address[1]))
    if end == "async with":
        async with AddressWatch(client.address, client.pool, interval=0.01) as watch:
            watch.start()  # twice is once
    else:
        watch = client.watch_address(client.address, interval=0.01)
        if end == "abort":
            client.abort()
        elif end == "pool":
            await client.pool.close()
    if end != "pool":
        client.close()
    await until(lambda: "stopped" in repr(watch))
    client.close()
    await client.wait_closed()


async def test_cancelled_in_a_lookup(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, "127.0.0.1")
    names.stuck = True
    async with Client((HOST, peer.address[1])) as client:
        client.watch_address(client.address, interval=0.001)
        await until(lambda: names.lookups)


async def test_objects_that_have_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell where they go: they are left alone."""

    class Bare:
        closed = False

        def close(self) -> None:
            self.closed = True

    async def connect() -> Bare:
        return Bare()

    Names(monkeypatch, "127.0.0.1")
    async with Pool(connect) as pool:
        async with pool.connect():
            pass
        assert await AddressWatch((HOST, 1), pool, misses=1).look() == 0
        assert pool.available == 1


@pytest.mark.parametrize("address", [("127.0.0.1", 1), ("::1", 1), ("", 1), "unix:/tmp/s"])
def test_an_address_without_a_name(address: Any) -> None:
    with pytest.raises(ValueError, match=r"expected .* a host name"):
        AddressWatch(address, Pool(lambda: None))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("interval", 0),
        ("interval", -1),
        ("interval", None),
        ("timeout", 0),
        ("timeout", "1"),
        ("misses", 0),
        ("misses", 1.5),
        ("misses", True),
    ],
)
def test_options_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value!r}"):
        AddressWatch((HOST, 1), Pool(lambda: None), **{option: value})  # type: ignore[arg-type,return-value]


async def test_a_client_without_a_pool() -> None:
    class Poolless(Client):
        def __init__(self) -> None:
            super().__init__((HOST, 1))
            self.pool = None  # type: ignore[assignment]

    async with Poolless() as client:
        with pytest.raises(RuntimeError, match="has no pool"):
            client.watch_address(client.address)


# -- what a connection is ------------------------------------------------------------------------


async def test_i19_a_pool_is_bound_to_one_creator(peers: tuple[Peer, Peer]) -> None:
    """A pool dials one creator; it has no key that could be too short to tell them apart."""
    async with Client(peers[0].address, 2) as one, Client(peers[1].address, 2) as other:
        for _ in range(3):
            await asyncio.gather(*(one.request(b"one") for _ in range(5)))
            await asyncio.gather(*(other.request(b"other") for _ in range(5)))
        assert set(peers[0].lines) == {b"one"}
        assert set(peers[1].lines) == {b"other"}
        async with other.pool.connect() as lease:
            with pytest.raises(ValueError, match="is not a connection of"):
                PoolConnection(one.pool, lease.connection)


async def test_i19_connections_made_with_other_parameters_are_never_shared(peer: Peer) -> None:
    """``create_connection`` opens a new one at each call, whatever the parameters."""
    async with Client(peer.address) as client:
        connections = [
            await client.create_connection(peer.address, local_addr=local)
            for local in (None, None, ("127.0.0.5", 0), ("127.0.0.6", 0))
        ]
        assert len({id(connection) for connection in connections}) == 4
        assert not any(connection in client.pool for connection in connections)
        await until(lambda: len(peer.connections) == 4)
