"""The transport of datagrams: bursts, a full system, errors, the loop's own where it must be."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from datagram_kit import Keyed, Plain, dead_address, endpoint, peer, served, turns, until

from pulsar_client import ConnectionClosed, DatagramProtocol
from pulsar_client.protocols.datagram_transport import (
    DatagramSocketTransport,
    open_datagram_transport,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's sockets")


class Recorder(DatagramProtocol):
    """Keeps what its transport tells it."""

    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw)
        self.got: list[bytes] = []
        self.errors: list[Exception] = []
        self.log: list[str] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.append(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def pause_writing(self) -> None:
        self.log.append("pause")
        super().pause_writing()

    def resume_writing(self, exc: BaseException | None = None) -> None:
        self.log.append("resume")
        super().resume_writing(exc)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Datagram sockets that are full after a few: unix ones, the peer has to read first."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


def read_all(sock: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(sock.recv(65536))
    except BlockingIOError:
        return found


def has_failed(protocol: Recorder, times: int) -> bool:
    return len(protocol.errors) >= times


def fill(protocol: Recorder) -> list[bytes]:
    """Send until some of it has to wait; what was sent."""
    sent: list[bytes] = []
    while protocol.transport.get_write_buffer_size() < 1000:
        sent.append(b"%d" % len(sent))
        assert protocol.send(sent[-1])
    return sent


async def opened(sock: socket.socket, **limits: int) -> Recorder:
    protocol = Recorder(low_limit=limits.pop("low_limit", None), high_limit=None)
    for name, value in limits.items():
        setattr(protocol, name, value)
    await open_datagram_transport(sock, protocol)
    return protocol


# Reading


async def test_a_burst_is_read_in_few_turns_and_leaves_turns_to_others() -> None:
    with peer() as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        sock.bind(("127.0.0.1", 0))
        protocol = await opened(sock)
        for number in range(150):
            one.send(b"%d" % number, sock.getsockname())
        sizes = []
        while len(protocol.got) < 150:
            before = len(protocol.got)
            await asyncio.sleep(0)
            if len(protocol.got) > before:
                sizes.append(len(protocol.got) - before)
        assert protocol.got == [b"%d" % number for number in range(150)]
        assert max(sizes) <= 64
        assert len(sizes) <= 10
        await protocol.close()


async def test_reading_can_be_paused_and_what_arrives_waits() -> None:
    with peer() as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        protocol = await opened(sock)
        transport = protocol.transport
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        one.send(b"later", sock.getsockname())
        await asyncio.sleep(0.02)
        assert protocol.got == []
        transport.resume_reading()
        transport.resume_reading()
        await until(lambda: protocol.got)
        await protocol.close()
        transport.resume_reading()
        assert not transport.is_reading()


# A system that takes no more


@linux
async def test_what_the_system_does_not_take_waits_in_order_and_writing_pauses_i36(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """I36: sending respects `pause_writing`; nothing is lost, nothing overtakes."""
    near, far = pair
    protocol = await opened(near, max_queued=10**6)
    protocol.transport.set_write_buffer_limits(high=20_000, low=5_000)
    sent: list[bytes] = []
    waiter: Any = None
    while waiter is None:
        sent.append(b"%05d" % len(sent) + b"x" * 1000)
        waiter = protocol.write(sent[-1])
    assert protocol.log == ["pause"]
    assert protocol.writing_paused
    assert 20_000 < protocol.transport.get_write_buffer_size() < 24_000
    assert not protocol.is_reusable
    draining = asyncio.ensure_future(waiter)
    got: list[bytes] = []
    while len(got) < len(sent):
        got += read_all(far)
        await asyncio.sleep(0)
    await draining
    assert got == sent
    assert protocol.log == ["pause", "resume"]
    assert protocol.transport.get_write_buffer_size() == 0
    assert protocol.is_reusable
    await protocol.close()


@linux
async def test_the_queue_is_bounded_and_counts_what_it_drops_u6(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """U6: a sender that never waits loses the newest, not the memory."""
    near, far = pair
    protocol = await opened(near, max_queued=10_000)
    taken = [number for number in range(200) if protocol.send(b"%d" % number + b" " * 500)]
    assert protocol.transport.get_write_buffer_size() <= 10_000
    counts = protocol.datagrams()
    assert counts["sent"] == len(taken)
    assert counts["send_dropped"] == 200 - len(taken) > 0
    got: list[bytes] = []
    while len(got) < len(taken):
        got += read_all(far)
        await asyncio.sleep(0)
    assert [int(data) for data in got] == taken
    await protocol.close()


@linux
async def test_a_request_that_finds_the_queue_full_fails_at_once(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, _ = pair

    class Narrow(DatagramProtocol):
        max_queued = 2000

    protocol = Narrow(consumer_factory=Keyed)
    await open_datagram_transport(near, protocol)
    protocol._peer = "unix"
    while protocol.send(b"x" * 500):
        pass
    with pytest.raises(OSError, match="too many datagrams wait"):
        await protocol.request(b"x" * 600)
    protocol.abort()
    await protocol.close()


@linux
async def test_close_sends_what_is_queued_and_abort_does_not(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    protocol = await opened(near)
    sent = fill(protocol)
    closing = protocol.close()
    assert protocol.closed
    assert not protocol.send(b"after")
    got: list[bytes] = []
    while len(got) < len(sent):
        got += read_all(far)
        await asyncio.sleep(0)
    await closing
    assert got == sent
    assert near.fileno() == -1


@linux
async def test_abort_drops_the_queue_and_wakes_who_waits(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, _ = pair
    protocol = await opened(near)
    protocol.transport.set_write_buffer_limits(high=0)
    waiter: Any = None
    while waiter is None:
        waiter = protocol.write(b"x")
    waiting = asyncio.ensure_future(waiter)
    await turns(1)
    protocol.close()
    protocol.abort()
    protocol.abort()
    with pytest.raises(ConnectionClosed):
        await waiting
    await protocol.close()
    assert near.fileno() == -1


@linux
async def test_a_closing_endpoint_whose_peer_takes_nothing_is_cut(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, _ = pair
    protocol = await opened(near)
    protocol.close_grace = 0.02
    fill(protocol)
    async with asyncio.timeout(20):
        await protocol.close()


@linux
async def test_a_server_reads_no_more_while_its_replies_wait_i36(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """I36: what arrives then stays with the system, which bounds it."""
    near, far = pair
    protocol = await opened(near)
    protocol.server_side = True
    protocol.transport.set_write_buffer_limits(high=0)
    while protocol.write(b"x") is None:
        pass
    assert not protocol.transport.is_reading()
    while protocol.writing_paused:
        read_all(far)
        await asyncio.sleep(0)
    assert protocol.transport.is_reading()
    await protocol.close()


@linux
async def test_errors_while_the_queue_drains_lose_their_datagram_only(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    protocol = await opened(near)
    fill(protocol)
    far.close()
    await until(lambda: protocol.transport.get_write_buffer_size() == 0)
    counts = protocol.datagrams()
    assert counts["send_failed"] or protocol.errors
    await protocol.close()


def test_limits_of_the_queue_are_checked() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        loop = asyncio.new_event_loop()
        try:
            transport = DatagramSocketTransport(
                loop, sock, DatagramProtocol(), max_datagram=100, max_queued=100
            )
            for limits, marks in (
                ({"high": 100}, (25, 100)),
                ({"low": 10}, (10, 40)),
                ({}, (16384, 65536)),
            ):
                transport.set_write_buffer_limits(**limits)
                assert transport.get_write_buffer_limits() == marks
            with pytest.raises(ValueError, match="high is 1 and low 2"):
                transport.set_write_buffer_limits(high=1, low=2)
            assert "paused" in repr(transport)
            assert transport.get_extra_info("peername") is None
            assert transport.get_extra_info("nothing", 3) == 3
        finally:
            loop.close()


# Errors


async def test_the_socket_is_read_after_errors_on_every_loop_i36() -> None:
    """I36: uvloop stops watching a socket that had an error."""
    dead = dead_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(dead)
        protocol = await opened(sock)
        for number in range(1, 4):
            protocol.send(b"?")
            await until(partial(has_failed, protocol, number))
        with peer(dead) as back:
            protocol.send(b"?")
            _, source = await back.receive()
            back.send(b"!", source)
            await until(lambda: protocol.got == [b"!"])
        await protocol.close()


@linux
async def test_an_error_found_while_sending_is_of_an_earlier_datagram_i36() -> None:
    """I36: the datagram that brings the news is still sent."""
    dead = dead_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(dead)
        protocol = await opened(sock)
        protocol.send(b"refused")
        with peer(dead) as back:  # before the loop could read the refusal
            protocol.send(b"second")
            assert (await back.receive())[0] == b"second"
            assert len(protocol.errors) == 1
            back.send(b"!", sock.getsockname())
            await until(lambda: protocol.got == [b"!"])
        await protocol.close()


async def test_what_the_system_refuses_is_raised_or_counted() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        protocol = await opened(sock)
        protocol.max_payload = 70_000
        with pytest.raises(OSError, match="too long"):
            protocol.write(b"x" * 65_536, ("127.0.0.1", 9))
        assert not protocol.send(b"x" * 65_536, ("127.0.0.1", 9))
        assert protocol.datagrams()["send_failed"] == 1
        await protocol.close()


# Another port


async def test_a_renewed_socket_keeps_its_peer_and_its_buffer() -> None:
    async with served() as server, endpoint(server.address, Plain) as client:
        assert await client.request(b"?") == b"?"
        old = client.sock
        assert old is not None
        name, size = old.getsockname(), old.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert client.transport.renew()
        new = client.sock
        assert new is not None
        assert old.fileno() == -1
        assert new.getsockname()[0] == name[0]
        assert new.getsockname()[1] != name[1]
        assert new.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
        assert await client.request(b"again") == b"again"
        await client.close()
        assert not client.transport.renew()
        assert new.fileno() == -1


# Loops without add_reader


class NoReaders(asyncio.SelectorEventLoop):
    """A loop as it is on other systems: it has transports, and no readers."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize("consumer", [Keyed, Plain])
def test_the_loops_own_endpoint_is_used_where_there_are_no_readers(consumer: Any) -> None:
    async def main() -> None:
        async with served() as server:
            [serving] = server._protocols
            assert not isinstance(serving.transport, DatagramSocketTransport)
            async with endpoint(server.address, consumer) as client:
                results = await asyncio.gather(*(client.request(b"%d" % n) for n in range(20)))
                assert results == [b"%d" % n for n in range(20)]
                assert client.send(b"forgotten")
                assert client.is_reusable
                await client.close()
            numbers = server.info()["datagrams"]
            assert numbers["received"] >= 20
        async with endpoint(dead_address(), consumer) as client:
            with pytest.raises(ConnectionRefusedError):
                await client.request(b"?")

    with asyncio.Runner(loop_factory=NoReaders) as runner:
        runner.run(main())


@linux
async def test_a_queue_is_sent_after_an_error_while_reading_is_paused_i36() -> None:
    """I36: uvloop stops watching for room too, when the socket has an error."""
    dead = dead_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, peer() as one:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        protocol = await opened(sock)
        transport = protocol.transport
        transport.pause_reading()
        transport._enqueue(b"refused", dead)
        transport._enqueue(b"first", one.address)
        await until(lambda: transport.get_write_buffer_size() == 0)
        for number in range(200):  # longer than a burst, with the error behind its last
            transport._enqueue(b"%d" % number, dead if number == 63 else one.address)
        await until(lambda: transport.get_write_buffer_size() == 0)
        assert (await one.receive())[0] == b"first"
        got = [int((await one.receive())[0]) for _ in range(199)]
        assert got == [number for number in range(200) if number != 63]
        await protocol.close()
