"""The fault proxy over real sockets: each fault does what it says, at once and to the byte."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing import FaultProxy

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# Seconds in which bytes that may pass do pass.  Where they must not, a slow machine can only hide
# a fault, never report a wrong one.
SOON = 0.05

IN_USE = os.strerror(errno.EADDRINUSE)

pytestmark = pytest.mark.time_limit(20)


class Target:
    """A server that a test drives by hand: it hands out the connections it accepts."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Stream] = asyncio.Queue()
        self.streams: list[Stream] = []
        self.address: Any = None

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.streams.append((reader, writer))
        self.accepted.put_nowait((reader, writer))


@contextlib.asynccontextmanager
async def serving(path: Path | None = None) -> AsyncIterator[Target]:
    target = Target()
    if path is None:
        server = await asyncio.start_server(target.take, "127.0.0.1", 0)
        target.address = server.sockets[0].getsockname()[:2]
    else:
        server = await asyncio.start_unix_server(target.take, path)
        target.address = f"unix:{path}"
    try:
        yield target
    finally:
        server.close()
        for stream in target.streams:
            await end(stream)
        await server.wait_closed()


async def end(*streams: Stream) -> None:
    for _reader, writer in streams:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def joined(**options: Any) -> AsyncIterator[tuple[FaultProxy, Stream, Stream]]:
    """One client connected through a proxy to one server."""
    async with serving() as target, FaultProxy(target.address, **options) as proxy:
        client = await asyncio.open_connection(*proxy.address)
        server = await target.accepted.get()
        try:
            yield proxy, client, server
        finally:
            await end(client)


async def nothing_arrives(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON):
            await reader.read(1)


async def is_reset(reader: asyncio.StreamReader) -> bool:
    try:
        await reader.read()
    except ConnectionResetError:
        return True
    return False


async def is_ended(reader: asyncio.StreamReader) -> bool:
    return await reader.read() == b""


async def test_bytes_pass_both_ways_and_are_counted() -> None:
    async with joined() as (proxy, client, server):
        client[1].write(b"ping")
        assert await server[0].readexactly(4) == b"ping"
        server[1].write(b"hello")
        assert await client[0].readexactly(5) == b"hello"
        assert (proxy.bytes_to_server, proxy.bytes_to_client) == (4, 5)
        assert (proxy.accepted, proxy.open, proxy.peak) == (1, 1, 1)
        assert repr(proxy) == "<FaultProxy listening: 1 open, 1 accepted>"


async def test_much_more_than_the_buffers_passes_unharmed() -> None:
    data = bytes(range(256)) * 16 * 1024
    async with joined() as (_proxy, client, server):
        client[1].write(data)
        client[1].write_eof()
        assert await server[0].read() == data
        server[1].write(data[::-1])
        server[1].write_eof()  # half-closed the other way first: the reply still passes
        assert await client[0].read() == data[::-1]


async def test_a_connection_that_both_ends_close_is_forgotten() -> None:
    async with joined() as (proxy, client, server):
        client[1].close()
        assert await is_ended(server[0])
        server[1].close()
        await proxy.until(lambda proxy: proxy.open == 0)
        assert (proxy.accepted, proxy.peak) == (1, 1)


async def test_peak_counts_simultaneous_connections() -> None:
    async with serving() as target, FaultProxy(target.address) as proxy:
        clients = [await asyncio.open_connection(*proxy.address) for _ in range(3)]
        await proxy.until(lambda proxy: proxy.open == 3)
        await end(*clients, *[await target.accepted.get() for _ in clients])
        await proxy.until(lambda proxy: proxy.open == 0)
        client = await asyncio.open_connection(*proxy.address)
        await target.accepted.get()
        assert (proxy.accepted, proxy.open, proxy.peak) == (4, 1, 3)
        await end(client)


async def test_a_unix_socket_as_target(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as target, FaultProxy(target.address) as proxy:
        client = await asyncio.open_connection(*proxy.address)
        server = await target.accepted.get()
        server[1].write(b"from a file")
        assert await client[0].readexactly(11) == b"from a file"
        proxy.reset()
        assert await is_reset(client[0])
        assert await is_ended(server[0])


async def test_a_reset_passes_through() -> None:
    async with joined() as (proxy, client, server):
        linger_not(client[1])
        client[1].transport.abort()
        assert await is_reset(server[0])
        await proxy.until(lambda proxy: proxy.open == 0)


def linger_not(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


# Stalls


async def test_stall_and_resume_both_directions() -> None:
    async with joined() as (proxy, client, server):
        proxy.stall()
        client[1].write(b"up")
        client[1].write_eof()
        server[1].write(b"down")
        await nothing_arrives(server[0])
        await nothing_arrives(client[0])
        assert (proxy.bytes_to_server, proxy.bytes_to_client) == (0, 0)
        proxy.resume()
        assert await server[0].read() == b"up"
        assert await client[0].readexactly(4) == b"down"


async def test_stall_one_direction() -> None:
    async with joined() as (proxy, client, server):
        proxy.stall("to_client")
        client[1].write(b"up")
        assert await server[0].readexactly(2) == b"up"
        server[1].write(b"down")
        await nothing_arrives(client[0])
        proxy.resume("to_server")
        await nothing_arrives(client[0])
        proxy.resume("to_client")
        assert await client[0].readexactly(4) == b"down"


async def test_a_stall_holds_for_later_connections_and_slows_the_sender() -> None:
    async with serving() as target, FaultProxy(target.address) as proxy:
        proxy.stall()
        client = await asyncio.open_connection(*proxy.address)
        server = await target.accepted.get()
        data = bytes(32 * 1024 * 1024)
        client[1].write(data)
        draining = asyncio.ensure_future(client[1].drain())
        await nothing_arrives(server[0])
        assert not draining.done()  # all buffers are bounded
        proxy.resume()
        assert len(await server[0].readexactly(len(data))) == len(data)
        await draining
        await end(client)


async def test_a_reset_is_noticed_while_stalled() -> None:
    async with joined() as (proxy, client, server):
        proxy.stall()
        linger_not(client[1])
        client[1].transport.abort()
        await proxy.until(lambda proxy: proxy.open == 0)
        assert await is_reset(server[0])


# Ends


async def test_reset_all() -> None:
    async with serving() as target, FaultProxy(target.address) as proxy:
        client = await asyncio.open_connection(*proxy.address)
        server = await target.accepted.get()
        proxy.reset()
        assert proxy.open == 0
        assert await is_reset(client[0])
        assert await is_reset(server[0])
        again = await asyncio.open_connection(*proxy.address)  # only those that were open
        await target.accepted.get()
        assert proxy.open == 1
        await end(client, again)


async def test_close_all_is_orderly_even_with_unread_bytes() -> None:
    async with joined() as (proxy, client, server):
        proxy.stall()
        client[1].write(bytes(256 * 1024))
        await client[1].drain()
        await nothing_arrives(server[0])
        proxy.close_all()
        assert proxy.open == 0
        assert await is_ended(client[0])
        assert await is_ended(server[0])


@pytest.mark.parametrize("reset", [False, True])
async def test_half_a_reply(reset: bool) -> None:
    async with joined() as (proxy, client, server):
        server[1].write(b"whole")
        assert await client[0].readexactly(5) == b"whole"
        proxy.cut_after(4, reset=reset)
        server[1].write(b"hal")
        assert await client[0].readexactly(3) == b"hal"
        server[1].write(b"f a reply")
        assert await client[0].readexactly(1) == b"f"
        assert await (is_reset if reset else is_ended)(client[0])
        assert proxy.bytes_to_client == 9


async def test_half_a_request_of_each_connection_to_come() -> None:
    async with serving() as target, FaultProxy(target.address) as proxy:
        proxy.cut_after(3, "to_server")
        for _ in range(2):
            client = await asyncio.open_connection(*proxy.address)
            server = await target.accepted.get()
            client[1].write(b"request")
            assert await server[0].read() == b"req"
            assert await is_ended(client[0])
            await end(client)
        proxy.cut_after(None, "to_server")
        client = await asyncio.open_connection(*proxy.address)
        server = await target.accepted.get()
        client[1].write(b"request")
        assert await server[0].readexactly(7) == b"request"
        await end(client)


async def test_a_cut_that_strikes_once() -> None:
    async with serving() as target, FaultProxy(target.address) as proxy:
        first = await asyncio.open_connection(*proxy.address)
        first_end = await target.accepted.get()
        second = await asyncio.open_connection(*proxy.address)
        second_end = await target.accepted.get()
        await proxy.until(lambda proxy: proxy.open == 2)
        proxy.cut_after(1, once=True)
        first_end[1].write(b"abc")
        assert await first[0].read() == b"a"
        second_end[1].write(b"abc")
        assert await second[0].readexactly(3) == b"abc"
        await end(first, second)


async def test_cut_at_once() -> None:
    async with joined() as (proxy, client, server):
        proxy.cut_after(0)
        assert proxy.open == 0
        assert await is_ended(client[0])
        assert await is_ended(server[0])


# Slowness


async def test_latency_counts_each_way_and_keeps_the_order() -> None:
    loop = asyncio.get_running_loop()
    async with joined(latency=0.1) as (proxy, client, server):
        start = loop.time()
        client[1].write(b"ping")
        await server[0].readexactly(4)
        assert loop.time() - start > 0.09
        server[1].write(b"po")
        await nothing_arrives(client[0])  # it has been read by the proxy by now
        proxy.latency = 0.0
        server[1].write(b"ng")
        assert await client[0].readexactly(4) == b"pong"
        assert loop.time() - start > 0.18


async def test_rate_is_in_bytes_per_second() -> None:
    loop = asyncio.get_running_loop()
    async with joined(rate=100_000) as (proxy, client, server):
        start = loop.time()
        server[1].write(bytes(20_000))
        await client[0].readexactly(20_000)
        assert loop.time() - start > 0.15
        proxy.rate = 0.001
        server[1].write(b"a")  # the first byte is due at once, the next in 1,000 seconds
        assert await client[0].readexactly(1) == b"a"
        server[1].write(b"bc")
        await nothing_arrives(client[0])
        proxy.rate = None
        assert await client[0].readexactly(2) == b"bc"


# The listener


async def test_deaf() -> None:
    async with serving() as target, FaultProxy(target.address, deaf=True) as proxy:
        assert repr(proxy) == "<FaultProxy deaf: 0 open, 0 accepted>"
        client = await asyncio.open_connection(*proxy.address)  # the kernel accepts
        client[1].write(b"hello?")
        await nothing_arrives(client[0])
        assert (proxy.accepted, proxy.open, target.accepted.qsize()) == (0, 0, 0)
        proxy.deaf = False
        server = await target.accepted.get()
        assert await server[0].readexactly(6) == b"hello?"
        proxy.deaf = True
        other = await asyncio.open_connection(*proxy.address)
        server[1].write(b"yes")
        assert await client[0].readexactly(3) == b"yes"
        assert proxy.accepted == 1
        await end(client, other)


async def test_refuse_and_accept_on_the_same_port() -> None:
    async with serving() as target, FaultProxy(target.address) as proxy:
        address = proxy.address
        client = await asyncio.open_connection(*address)
        server = await target.accepted.get()
        for _ in range(2):
            proxy.refuse()
            proxy.refuse()
            assert repr(proxy) == "<FaultProxy refusing: 1 open, 1 accepted>"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)
            server[1].write(b"still here")
            assert await client[0].readexactly(10) == b"still here"
            proxy.accept()
            proxy.accept()
        assert proxy.address == address
        again = await asyncio.open_connection(*address)
        await target.accepted.get()
        assert proxy.accepted == 2
        await end(client, again)


async def test_the_port_is_kept_while_refusing() -> None:
    async with FaultProxy(("127.0.0.1", 1)) as proxy:
        proxy.refuse()
        with socket.socket() as other, pytest.raises(OSError, match=IN_USE):
            other.bind(proxy.address)


async def test_refusing_and_deaf_are_independent() -> None:
    async with serving() as target, FaultProxy(target.address) as proxy:
        proxy.refuse()
        proxy.deaf = True
        proxy.accept()
        client = await asyncio.open_connection(*proxy.address)
        await nothing_arrives(client[0])
        assert proxy.accepted == 0
        proxy.deaf = False
        await target.accepted.get()
        await end(client)


async def test_a_client_of_an_unreachable_target_is_reset() -> None:
    async with FaultProxy(("127.0.0.1", 1)) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        assert await is_reset(reader)
        await proxy.until(lambda proxy: proxy.open == 0)
        assert proxy.accepted == 1
        await end((reader, writer))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_listen_on_an_address(host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            pytest.skip(f"no {host} here")
    async with serving() as target, FaultProxy(target.address, listen=(host, 0)) as proxy:
        assert proxy.address[0] == host
        client = await asyncio.open_connection(*proxy.address)
        await target.accepted.get()
        await end(client)


# Its life


async def test_close_leaves_nothing_and_ends_in_order() -> None:
    async with serving() as target:
        proxy = await FaultProxy(target.address).start()
        address = proxy.address
        client = await asyncio.open_connection(*address)
        server = await target.accepted.get()
        waiting = asyncio.ensure_future(proxy.until(lambda proxy: False))
        await asyncio.sleep(0)
        await proxy.close()
        await proxy.close()
        assert await is_ended(client[0])
        assert await is_ended(server[0])
        assert repr(proxy) == "<FaultProxy closed: 0 open, 1 accepted>"
        with pytest.raises(RuntimeError, match="closed"):
            await waiting
        with pytest.raises(RuntimeError, match="closed"):
            await proxy.until(lambda proxy: False)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        await end(client)


async def test_close_ends_a_dial_that_gets_no_answer() -> None:
    # A full backlog: the kernel does not answer further attempts to connect.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with contextlib.ExitStack() as fillers:
            for _ in range(4):
                filler = fillers.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with FaultProxy(full.getsockname()) as proxy:
                client = await asyncio.open_connection(*proxy.address)
                await proxy.until(lambda proxy: proxy.open == 1)
                assert len(asyncio.all_tasks()) == 2
            assert len(asyncio.all_tasks()) == 1
            assert await is_ended(client[0])
            await end(client)


async def test_a_cancelled_until_is_forgotten() -> None:
    async with joined() as (proxy, _client, _server):
        seen = []

        def condition(proxy: FaultProxy) -> bool:
            seen.append(proxy.open)
            return False

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await proxy.until(condition)
        proxy.reset()
        assert seen == [1]


async def test_order_of_life() -> None:
    proxy = FaultProxy(("127.0.0.1", 1))
    calls: list[Callable[[], object]] = [proxy.refuse, proxy.accept, lambda: proxy.address]
    for call in calls:
        with pytest.raises(RuntimeError):
            call()
    proxy.reset()
    await proxy.close()
    async with proxy:
        with pytest.raises(RuntimeError):
            await proxy.start()


async def test_an_address_in_use() -> None:
    async with FaultProxy(("127.0.0.1", 1)) as proxy:
        with pytest.raises(OSError, match=IN_USE):
            await FaultProxy(("127.0.0.1", 1), listen=proxy.address).start()


async def test_bad_values_are_named() -> None:
    with pytest.raises(ConfigError, match="tcp://x"):
        FaultProxy("tcp://x")
    with pytest.raises(ConfigError, match="-1"):
        FaultProxy(("h", 1), latency=-1)
    with pytest.raises(ConfigError, match="0"):
        FaultProxy(("h", 1), rate=0)
    proxy = FaultProxy(("h", 1))
    with pytest.raises(ConfigError, match="-3"):
        proxy.cut_after(-3)
    with pytest.raises(ConfigError, match="sideways"):
        proxy.stall("sideways")  # type: ignore[arg-type]
