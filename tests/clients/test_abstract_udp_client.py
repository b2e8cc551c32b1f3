"""How a client's datagram endpoint comes about: addresses, arguments, callbacks, its end."""

import asyncio
import errno
import logging
import socket
from functools import partial
from typing import Any

import pytest
from datagram_kit import EchoDatagram, Keyed, factory, has_ipv6, peer, served

from pulsar_client import AbstractUdpClient, Connection, DatagramProtocol


def client(**kw: Any) -> AbstractUdpClient:
    return AbstractUdpClient(protocol_factory=factory(Keyed), **kw)


async def test_an_endpoint_counts_and_is_closed_with_its_client() -> None:
    async with served() as server:
        async with client(name="asker") as udp:
            one = await udp.create_datagram_endpoint(remote_addr=server.address)
            two = await udp.create_datagram_endpoint(remote_addr=server.address)
            assert (udp.sessions, one.session, two.session) == (2, 1, 2)
            assert await one.request(b"?") == b"?"
            assert udp.requests_processed == 1
            assert one.address == server.address
            assert repr(one) == f"127.0.0.1:{server.address[1]} session 1"
            assert "'asker': 2 connections, 1 requests" in repr(udp)
            assert one.producer is udp
        assert one.closed
        assert two.closed


async def test_host_names_are_resolved() -> None:
    async with served() as server, client() as udp:
        endpoint = await udp.create_datagram_endpoint(
            remote_addr=("localhost", server.address[1]), local_addr=("127.0.0.1", 0)
        )
        assert await endpoint.request(b"?") == b"?"
        with pytest.raises(socket.gaierror, match=r"can't resolve nowhere\.invalid:53"):
            await udp.create_datagram_endpoint(remote_addr=("nowhere.invalid", 53))


async def test_the_local_address() -> None:
    async with served() as server, client() as udp:
        with peer(("127.0.0.2", 0)) as free:
            local = free.address
            with pytest.raises(OSError, match="can't open a socket for") as caught:
                await udp.create_datagram_endpoint(remote_addr=server.address, local_addr=local)
            assert caught.value.errno == errno.EADDRINUSE
        endpoint = await udp.create_datagram_endpoint(remote_addr=server.address, local_addr=local)
        assert endpoint.sock is not None
        assert endpoint.sock.getsockname() == local
        assert await endpoint.request(b"?") == b"?"
        with pytest.raises(OSError, match="no address of this family"):
            await udp.create_datagram_endpoint(remote_addr=server.address, local_addr=("::1", 0))


async def test_any_interface_and_ipv6() -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    async with served(address=("::1", 0)) as server, client() as udp:
        endpoint = await udp.create_datagram_endpoint(remote_addr=server.address)
        assert await endpoint.request(b"?") == b"?"
        everywhere = await udp.create_datagram_endpoint(local_addr=("", 0))
        assert everywhere.address[0] in ("0.0.0.0", "::")


async def test_callbacks_of_connection_made_are_waited_for_and_may_take_too_long() -> None:
    log: list[str] = []

    async def slowly(protocol: Any, exc: BaseException | None = None) -> None:
        await asyncio.sleep(0.0 if not log else 3600)
        log.append("made")

    async with served() as server, client() as udp:
        udp.bind_event("connection_made", slowly)
        await udp.create_datagram_endpoint(remote_addr=server.address)
        assert log == ["made"]
        with pytest.raises(TimeoutError, match=r"no endpoint within 0\.05 s"):
            await udp.create_datagram_endpoint(remote_addr=server.address, timeout=0.05)
        task = asyncio.create_task(udp.create_datagram_endpoint(remote_addr=server.address))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for pending in asyncio.all_tasks() - {asyncio.current_task()}:
            pending.cancel()


async def test_the_receive_buffer_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pulsar_client.clients"):
        async with served() as server, client() as udp:
            endpoint = await udp.create_datagram_endpoint(remote_addr=server.address)
            assert endpoint.sock is not None
            granted = endpoint.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert f"receive buffer {granted} bytes, {2**20} were asked for" in caplog.text


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({}, "neither remote_addr nor local_addr"),
        ({"remote_addr": "unix:/x"}, "remote_addr is 'unix:/x'"),
        ({"remote_addr": ("h", -1)}, "-1"),
        ({"local_addr": 3}, "3"),
        ({"remote_addr": ("127.0.0.1", 1), "timeout": -1}, "timeout is -1"),
        ({"remote_addr": ("127.0.0.1", 1), "protocol_factory": 3}, "protocol_factory is 3"),
        (
            {"remote_addr": ("127.0.0.1", 1), "protocol_factory": partial(Connection, Keyed)},
            "expected a DatagramProtocol",
        ),
    ],
)
async def test_bad_arguments_are_named(kw: dict[str, Any], message: str) -> None:
    async with client() as udp:
        with pytest.raises((TypeError, ValueError), match=message):
            await udp.create_datagram_endpoint(**kw)


async def test_a_factory_of_its_own_and_its_keywords() -> None:
    async with served(EchoDatagram) as server, AbstractUdpClient() as udp:
        endpoint = await udp.create_datagram_endpoint(
            DatagramProtocol, remote_addr=server.address, consumer_factory=Keyed, max_payload=10
        )
        assert await endpoint.request(b"123456") == b"123456"
        with pytest.raises(ValueError, match="max_payload"):
            await endpoint.request(b"1234567")
        with pytest.raises(NotImplementedError, match="create_endpoint"):
            await udp.connect()
