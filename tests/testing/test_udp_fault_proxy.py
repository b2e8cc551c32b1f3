"""The UDP proxy: every fault does what it says, and every datagram is accounted for."""

import asyncio
from functools import partial
from typing import Any

import pytest
from datagram_kit import Peer, dead_address, peer, until

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing import UdpFaultProxy


async def exchange(client: Peer, server: Peer, proxy: UdpFaultProxy, data: bytes) -> Any:
    """Send through the proxy and answer; the address that the server saw."""
    client.send(data, proxy.address)
    received, source = await server.receive()
    assert received == data
    server.send(data[::-1], source)
    assert await client.receive() == (data[::-1], proxy.address)
    return source


async def collected(sock: Peer, proxy: UdpFaultProxy, number: int) -> list[bytes]:
    """What arrives, once so many datagrams were forwarded."""
    await until(lambda: proxy.forwarded >= number)
    return [(await sock.receive())[0] for _ in range(number)]


def has_received(proxy: UdpFaultProxy, number: int) -> bool:
    return proxy.received == number


async def test_it_passes_datagrams_on_both_ways_and_keeps_clients_apart() -> None:
    with peer() as server, peer() as one, peer() as other:
        async with UdpFaultProxy(server.address) as proxy:
            first = await exchange(one, server, proxy, b"one")
            second = await exchange(other, server, proxy, b"other")
            assert first != second
            assert await exchange(one, server, proxy, b"") == first
            assert (proxy.received, proxy.forwarded, proxy.on_the_way) == (6, 6, 0)


async def test_drop() -> None:
    with peer() as server, peer() as client:
        async with UdpFaultProxy(server.address, drop=1.0) as proxy:
            client.send(b"lost", proxy.address)
            await until(lambda: proxy.dropped == 1)
            proxy.drop = 0.0
            client.send(b"found", proxy.address)
            assert (await server.receive())[0] == b"found"
            assert proxy.forwarded == 1


async def test_duplicate() -> None:
    with peer() as server, peer() as client:
        async with UdpFaultProxy(server.address, duplicate=1.0) as proxy:
            client.send(b"twice", proxy.address)
            assert await collected(server, proxy, 2) == [b"twice", b"twice"]
            assert (proxy.received, proxy.duplicated) == (1, 1)


async def test_reorder_lets_the_next_one_pass() -> None:
    with peer() as server, peer() as client:
        async with UdpFaultProxy(server.address, reorder=1.0) as proxy:
            for number in range(4):
                client.send(b"%d" % number, proxy.address)
            assert await collected(server, proxy, 4) == [b"1", b"0", b"3", b"2"]
            client.send(b"alone", proxy.address)  # nothing overtakes it
            assert (await server.receive())[0] == b"alone"
            assert proxy.on_the_way == 0


async def test_delay_takes_a_random_time_for_each() -> None:
    with peer() as server, peer() as client:
        async with UdpFaultProxy(server.address, delay=0.02, seed=3) as proxy:
            sent = [b"%d" % number for number in range(30)]
            for data in sent:
                client.send(data, proxy.address)
            await until(lambda: proxy.received == 30)
            got = await collected(server, proxy, 30)
            assert sorted(got) == sorted(sent)
            assert got != sent


async def test_the_chances_follow_the_seed() -> None:
    dropped = []
    for _ in range(2):
        with peer() as server, peer() as client:
            async with UdpFaultProxy(server.address, drop=0.3, duplicate=0.2, seed=7) as proxy:
                for number in range(200):
                    client.send(b"%d" % number, proxy.address)
                    await until(partial(has_received, proxy, number + 1))
                dropped.append((proxy.dropped, proxy.duplicated))
                assert proxy.forwarded == 200 - proxy.dropped + proxy.duplicated
    assert dropped[0] == dropped[1]
    assert 30 < dropped[0][0] < 90


async def test_a_server_that_is_gone_and_comes_back() -> None:
    with peer() as client:
        address = dead_address()
        async with UdpFaultProxy(address) as proxy:
            for _ in range(3):
                client.send(b"nobody", proxy.address)
            await until(lambda: proxy.received == 3)
            await asyncio.sleep(0.01)
            with peer(address) as server:
                await exchange(client, server, proxy, b"back")


async def test_its_life() -> None:
    with peer() as server, peer() as client:
        proxy = UdpFaultProxy(server.address, delay=10.0)
        with pytest.raises(RuntimeError, match="not started"):
            _ = proxy.address
        async with proxy:
            client.send(b"?", proxy.address)
            await until(lambda: proxy.on_the_way == 1)
            with pytest.raises(RuntimeError, match="once"):
                await proxy.start()
            assert "1 on the way" in repr(proxy)
        await proxy.close()
        assert proxy.on_the_way == 0


@pytest.mark.parametrize("kw", [{"drop": 1.5}, {"duplicate": -1}, {"reorder": 2}, {"delay": -1}])
def test_bad_values_are_named(kw: dict[str, float]) -> None:
    [(name, value)] = kw.items()
    with pytest.raises(ConfigError, match=f"{name} must be .*{value}"):
        UdpFaultProxy(("127.0.0.1", 1), **kw)  # type: ignore[arg-type]
