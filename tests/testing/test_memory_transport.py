"""The memory pair: what asyncio's socket transport promises, and each fault.

The tests of the contract run over a real socket pair as well, so that the memory transport can't
drift away from what it stands for.
"""

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing import Link, MemoryTransport, VirtualClockLoop, memory_pair

pytestmark = pytest.mark.time_limit(20)


class Recorder(asyncio.Protocol):
    """Writes down every call and lets a test wait for what it expects."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.calls: list[tuple[str, object]] = []
        self.data = b""
        self.keep_open = keep_open
        self.changed = asyncio.Event()
        self.transport: asyncio.Transport | None = None

    def note(self, name: str, value: object = None) -> None:
        self.calls.append((name, value))
        self.changed.set()

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def pieces(self) -> list[object]:
        return [value for name, value in self.calls if name == "data"]

    def lost_with(self) -> list[object]:
        return [value for name, value in self.calls if name == "lost"]

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def until_lost(self) -> None:
        await self.until(lambda: "lost" in self.names())

    async def until_data(self, data: bytes) -> None:
        await self.until(lambda: self.data == data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        self.note("made", transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.note("data", data)

    def eof_received(self) -> bool:
        self.note("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("lost", exc)


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """A protocol of both kinds: the buffered one counts."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.buffer = bytearray(size)
        self.hints: list[int] = []

    def get_buffer(self, sizehint: int) -> bytearray:
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        super().data_received(bytes(self.buffer[:nbytes]))
        self.buffer = self.buffer * 1  # a protocol may do with it what it likes
        del self.hints[:-1]

    def data_received(self, data: bytes) -> None:
        raise AssertionError("a BufferedProtocol is given no data")


Pair = tuple[asyncio.Transport, asyncio.Transport]
Join = Callable[[Recorder, Recorder], Awaitable[Pair]]


async def join_in_memory(client: Recorder, server: Recorder) -> Pair:
    return memory_pair(client, server)


async def join_by_sockets(client: Recorder, server: Recorder) -> Pair:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("the contract is that of asyncio's selector transport")
    left, right = socket.socketpair()
    server_end, _ = await loop.create_connection(lambda: server, sock=right)
    client_end, _ = await loop.create_connection(lambda: client, sock=left)
    return client_end, server_end


@pytest.fixture(params=[join_in_memory, join_by_sockets], ids=["memory", "sockets"])
def join(request: pytest.FixtureRequest) -> Join:
    found: Join = request.param
    return found


async def end(*protocols: Recorder) -> None:
    for protocol in protocols:
        if protocol.transport is not None:
            protocol.transport.abort()
            await protocol.until_lost()


async def turns(n: int = 10) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


# The contract, over memory and over sockets


async def test_bytes_travel_both_ways_in_order(join: Join) -> None:
    client, server = Recorder(), Recorder()
    a, b = await join(client, server)
    a.write(b"he")
    a.writelines([b"l", bytearray(b"l"), memoryview(b"o")])
    b.write(b"world")
    await server.until_data(b"hello")
    await client.until_data(b"world")
    assert client.calls[0] == ("made", a)
    assert server.calls[0] == ("made", b)
    await end(client, server)


async def test_close_delivers_first_and_the_peer_sees_the_end(join: Join) -> None:
    client, server = Recorder(), Recorder()
    a, b = await join(client, server)
    a.write(b"bye")
    a.close()
    assert a.is_closing()
    assert "lost" not in client.names()  # never inside close()
    a.close()
    await client.until_lost()
    a.abort()
    await server.until_lost()
    assert server.names() == ["made", "data", "eof", "lost"]
    assert server.data == b"bye"
    assert server.lost_with() == client.lost_with() == [None]
    assert b.is_closing()


async def test_abort_is_not_synchronous_and_ends_once(join: Join) -> None:
    client, server = Recorder(), Recorder()
    a, _b = await join(client, server)
    await turns()
    a.abort()
    assert client.names() == ["made"]
    a.abort()
    a.close()
    await client.until_lost()
    await server.until_lost()
    await turns()
    assert client.lost_with() == server.lost_with() == [None]
    a.write(b"into the void")
    await turns()
    assert server.data == b""


@pytest.mark.parametrize("keep_open", [True, False])
async def test_eof_is_answered_or_closes(join: Join, keep_open: bool) -> None:
    client, server = Recorder(), Recorder(keep_open=keep_open)
    a, b = await join(client, server)
    assert a.can_write_eof()
    a.write(b"request")
    a.write_eof()
    a.write_eof()
    with pytest.raises(RuntimeError):
        a.write(b"more")
    await server.until(lambda: "eof" in server.names())
    assert server.data == b"request"
    assert b.is_closing() is not keep_open
    if keep_open:
        b.write(b"reply")
        await client.until_data(b"reply")
        assert not a.is_closing()
        b.close()
    await client.until_lost()
    await server.until_lost()
    assert server.names().count("eof") == 1
    assert client.lost_with() == server.lost_with() == [None]


async def test_pause_and_resume_reading(join: Join) -> None:
    client, server = Recorder(), Recorder()
    a, b = await join(client, server)
    await server.until(lambda: "made" in server.names())
    b.pause_reading()
    b.pause_reading()
    assert not b.is_reading()
    a.write(b"held")
    a.write_eof()
    await turns()
    assert server.names() == ["made"]
    b.resume_reading()
    b.resume_reading()
    await server.until_lost()
    assert server.names() == ["made", "data", "eof", "lost"]
    await end(client)


async def test_write_limits_pause_and_resume_the_protocol(join: Join) -> None:
    client, server = Recorder(), Recorder()
    a, b = await join(client, server)
    await server.until(lambda: "made" in server.names())
    assert a.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
    a.set_write_buffer_limits(low=10)
    assert a.get_write_buffer_limits() == (10, 40)
    a.set_write_buffer_limits(high=100)
    assert a.get_write_buffer_limits() == (25, 100)
    with pytest.raises(ValueError, match="must be >="):
        a.set_write_buffer_limits(high=1, low=2)
    b.pause_reading()
    size = 8 * 1024 * 1024  # more than kernels take
    a.write(bytes(size))
    await client.until(lambda: "pause" in client.names())
    assert a.get_write_buffer_size() > 100
    a.write(b"!")
    assert client.names().count("pause") == 1
    b.resume_reading()
    await client.until(lambda: "resume" in client.names())
    assert a.get_write_buffer_size() <= 25
    await server.until(lambda: len(server.data) == size + 1)
    await end(client, server)


async def test_a_buffered_protocol_comes_first(join: Join) -> None:
    client, server = Recorder(), BufferedRecorder(4)
    a, _b = await join(client, server)
    a.write(b"0123456789")
    await server.until_data(b"0123456789")
    assert server.pieces() == [b"0123", b"4567", b"89"]
    await end(client, server)


async def test_the_protocol_can_be_changed(join: Join) -> None:
    client, server = Recorder(), Recorder()
    a, b = await join(client, server)
    other = BufferedRecorder(64)
    assert b.get_protocol() is server
    b.set_protocol(other)
    assert b.get_protocol() is other
    a.write(b"for the other")
    await other.until_data(b"for the other")
    a.close()
    await other.until_lost()
    assert other.names() == ["data", "eof", "lost"]
    assert server.data == b""


@pytest.mark.allow_loop_errors
@pytest.mark.parametrize("step", ["data_received", "eof_received"])
async def test_a_failing_protocol_loses_its_connection(
    join: Join, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    error = ZeroDivisionError("in the protocol")
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: reports.append(context.get("exception"))
    )
    client, server = Recorder(), Recorder()
    monkeypatch.setattr(server, step, fail)
    a, _b = await join(client, server)
    a.write(b"x")
    a.write_eof()
    await server.until_lost()
    await client.until_lost()
    assert server.lost_with() == [error]
    assert error in reports


async def test_only_bytes_can_be_written(join: Join) -> None:
    client, server = Recorder(), Recorder()
    a, _b = await join(client, server)
    with pytest.raises(TypeError):
        a.write("text")  # type: ignore[arg-type]
    a.write(b"")
    assert a.get_write_buffer_size() == 0
    await turns()
    assert server.data == b""
    await end(client, server)


async def test_streams_work_on_top() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    server = Recorder()
    a, b = memory_pair(protocol, server, to_client=Link(split=1))
    writer = asyncio.StreamWriter(a, protocol, reader, loop)
    writer.write(b"ping\n")
    await writer.drain()
    await server.until_data(b"ping\n")
    b.write(b"pong\n")
    assert await reader.readline() == b"pong\n"
    writer.close()
    await writer.wait_closed()
    await server.until_lost()


# What only the memory transport promises


async def test_extra_info() -> None:
    client, server = Recorder(), Recorder()
    a, b = memory_pair(
        client, server, client_address="here", server_address=("::1", 1), extra={"x": 7}
    )
    assert a.get_extra_info("sockname") == b.get_extra_info("peername") == "here"
    assert a.get_extra_info("peername") == b.get_extra_info("sockname") == ("::1", 1)
    assert a.get_extra_info("x") == b.get_extra_info("x") == 7
    assert a.get_extra_info("socket", "none") == "none"
    assert repr(a) == "<MemoryTransport to ('::1', 1) open: 0 bytes to write>"
    a.write(b"abc")
    a.close()
    assert repr(a) == "<MemoryTransport to ('::1', 1) closing: 3 bytes to write>"
    await client.until_lost()
    await server.until_lost()
    assert repr(a) == "<MemoryTransport to ('::1', 1) closed: 0 bytes to write>"


async def test_writes_of_one_turn_arrive_together_and_are_copied() -> None:
    client, server = Recorder(), Recorder()
    a, _b = memory_pair(client, server)
    data = bytearray(b"one")
    a.write(data)
    data[:] = b"XXX"
    a.write(b"two")
    assert a.get_write_buffer_size() == 6
    await server.until_data(b"onetwo")
    assert server.pieces() == [b"onetwo"]
    assert a.get_write_buffer_size() == 0
    await end(client, server)


async def test_split_gives_each_piece_a_turn_of_its_own() -> None:
    client, server = Recorder(), Recorder()
    link = Link(split=1)
    a, _b = memory_pair(client, server, to_server=link)
    a.write(b"abc")
    a.write(b"d")
    seen = []
    while server.data != b"abcd":
        await asyncio.sleep(0)
        seen.append(len(server.data))
    assert max(later - earlier for earlier, later in itertools.pairwise(seen)) == 1
    assert server.pieces() == [b"a", b"b", b"c", b"d"]
    link.split = 3
    a.write(b"efgh")
    await server.until_data(b"abcdefgh")
    assert server.pieces()[4:] == [b"efg", b"h"]
    link.split = None
    a.write(b"ijkl")
    await server.until_data(b"abcdefghijkl")
    assert server.pieces()[6:] == [b"ijkl"]
    assert link.delivered == 12
    await end(client, server)


def test_delay_is_time_on_the_clock_of_the_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        client, server = Recorder(), Recorder()
        a, b = memory_pair(client, server, to_server=Link(delay=5.0))
        a.write(b"slow")
        b.write(b"quick")
        await client.until_data(b"quick")
        assert loop.time() == 0.0
        await server.until_data(b"slow")
        assert loop.time() == 5.0
        a.write(b"1")
        a.outgoing.delay = 1.0
        a.write(b"2")  # does not overtake
        await server.until_data(b"slow12")
        assert loop.time() == 10.0
        assert server.pieces() == [b"slow", b"12"]
        a.close()
        await server.until_lost()
        assert loop.time() == 11.0

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


async def test_delay_on_a_real_clock() -> None:
    loop = asyncio.get_running_loop()
    client, server = Recorder(), Recorder()
    a, _b = memory_pair(client, server, to_server=Link(delay=0.02))
    start = loop.time()
    a.write(b"x")
    await server.until_data(b"x")
    assert loop.time() - start > 0.015
    await end(client, server)


async def test_pause_stalls_one_direction() -> None:
    client, server = Recorder(), Recorder()
    a, b = memory_pair(client, server)
    a.outgoing.pause()
    a.write(b"x" * 65537)
    assert client.names() == ["pause"]  # at once, inside write(), as asyncio does
    a.close()
    b.write(b"thrown away")  # the client is closing: nobody reads
    await turns()
    assert server.data == b""
    assert client.names() == ["pause", "made"]
    assert a.outgoing.paused
    assert repr(a.outgoing) == "<Link paused: 65537 bytes pending, 0 delivered>"
    a.outgoing.resume()
    await server.until_lost()
    assert len(server.data) == 65537
    assert client.names() == ["pause", "made", "resume", "lost"]
    assert client.data == b""
    assert server.lost_with() == [None]


async def test_abort_throws_the_write_buffer_away() -> None:
    client, server = Recorder(), Recorder()
    a, _b = memory_pair(client, server, to_server=Link(capacity=5))
    a.outgoing.pause()
    a.write(b"0123456")
    a.write(b"789")
    assert a.get_write_buffer_size() == 5
    a.set_write_buffer_limits(high=4)
    a.write_eof()
    a.abort()
    await client.until_lost()
    assert a.get_write_buffer_size() == 0
    a.outgoing.resume()
    await server.until_lost()
    assert server.data == b"01234"
    assert server.names() == ["made", "data", "eof", "lost"]
    assert client.names() == ["pause", "made", "lost"]  # the end is no reason to resume


async def test_flow_control_to_the_byte() -> None:
    class Sizes(Recorder):
        def pause_writing(self) -> None:
            sizes.append(a.get_write_buffer_size())

        resume_writing = pause_writing

    sizes: list[int] = []
    client, server = Sizes(), Recorder()
    a, _b = memory_pair(client, server, to_server=Link(split=1))
    a.set_write_buffer_limits(high=10, low=4)
    a.write(bytes(10))
    assert sizes == []
    a.write(b"!")
    assert sizes == [11]
    await server.until(lambda: len(server.data) == 11)
    assert sizes == [11, 4]
    await end(client, server)


async def test_a_closing_end_throws_away_what_it_held() -> None:
    client, server = Recorder(), Recorder()
    a, b = memory_pair(client, server)
    b.pause_reading()
    b.outgoing.pause()
    b.write(b"stalled, so that the close of this end can't complete")
    a.write(b"nobody reads this")
    a.close()
    await turns()
    assert client.names() == ["made"]
    b.close()
    await client.until_lost()
    assert client.lost_with() == [None]
    assert server.names() == ["made"]
    b.abort()
    await server.until_lost()


async def test_capacity_lets_the_sender_close_before_delivery() -> None:
    client, server = Recorder(), Recorder()
    a, _b = memory_pair(client, server, to_server=Link(capacity=100))
    a.outgoing.pause()
    a.write(b"in the kernel")
    assert a.get_write_buffer_size() == 0
    a.close()
    await client.until_lost()
    assert server.names() == ["made"]
    a.outgoing.resume()
    await server.until_lost()
    assert server.data == b"in the kernel"
    assert server.lost_with() == [None]


@pytest.mark.parametrize("exc", [None, ConnectionResetError("cut")])
@pytest.mark.parametrize("after", [0, 1, 4, 5, 9])
async def test_cut_after_n_bytes(after: int, exc: Exception | None) -> None:
    client, server = Recorder(), Recorder()
    link = Link(split=4, cut_after=after, cut_exc=exc)
    a, b = memory_pair(client, server, to_server=link)
    a.write(b"0123456789")
    await server.until_lost()
    await client.until_lost()
    assert server.data == b"0123456789"[:after]
    assert server.lost_with() == client.lost_with() == [exc]
    assert "eof" not in server.names()
    assert a.is_closing()
    assert b.is_closing()
    assert link.pending == 0


async def test_cut_at_run_time_counts_from_now() -> None:
    client, server = Recorder(), Recorder()
    _a, b = memory_pair(client, server)
    b.write(b"whole")
    await client.until_data(b"whole")
    b.outgoing.cut(after=2)
    b.write(b"half")
    await client.until_lost()
    assert client.data == b"wholeha"
    await server.until_lost()


async def test_cut_at_once_works_on_a_stalled_link() -> None:
    client, server = Recorder(), Recorder()
    a, _b = memory_pair(client, server)
    a.outgoing.pause()
    a.write(b"never")
    await turns()
    error = TimeoutError("gone")
    a.outgoing.cut(exc=error)
    assert "lost" not in client.names()
    await client.until_lost()
    await server.until_lost()
    assert client.lost_with() == server.lost_with() == [error]
    assert server.data == b""


async def test_bytes_to_a_closed_peer_are_answered_by_a_reset() -> None:
    client, server = Recorder(), Recorder(keep_open=True)
    a, b = memory_pair(client, server)
    a.close()
    await server.until(lambda: "eof" in server.names())
    assert not b.is_closing()
    b.write(b"too late")
    await server.until_lost()
    [error] = server.lost_with()
    assert isinstance(error, ConnectionResetError)
    assert client.names() == ["made", "lost"]


async def test_both_sides_close_with_bytes_on_their_way() -> None:
    client, server = Recorder(), Recorder()
    a, b = memory_pair(client, server)
    a.write(b"quit")
    b.write(b"bye")
    a.close()
    b.close()
    await client.until_lost()
    await server.until_lost()
    assert client.lost_with() == server.lost_with() == [None]


async def test_what_a_protocol_does_while_it_is_called() -> None:
    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            assert self.transport is not None
            self.transport.write(b"last words")
            self.transport.close()

    client, server = Recorder(), Closing()
    a, _b = memory_pair(client, server, to_server=Link(split=1))
    a.write(b"abc")
    await client.until_lost()
    await server.until_lost()
    assert server.data == b"a"
    assert client.data == b"last words"
    [error] = client.lost_with()  # part of "abc" was never read
    assert isinstance(error, ConnectionResetError)


async def test_a_pair_can_be_lost_before_it_starts() -> None:
    client, server = Recorder(), Recorder()
    a, _b = memory_pair(client, server)
    a.abort()
    await client.until_lost()
    await server.until_lost()
    assert client.names() == ["made", "lost"]
    assert server.names() == ["made", "eof", "lost"]


@pytest.mark.allow_loop_errors
async def test_failing_flow_control_is_reported_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise error

    error = ZeroDivisionError("in the protocol")
    messages: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: messages.append(context["message"])
    )
    client, server = Recorder(), Recorder()
    monkeypatch.setattr(client, "pause_writing", fail)
    monkeypatch.setattr(client, "resume_writing", fail)
    a, _b = memory_pair(client, server)
    a.set_write_buffer_limits(high=0)
    a.write(b"x")
    await server.until_data(b"x")
    await turns()
    assert messages == ["protocol.pause_writing() failed", "protocol.resume_writing() failed"]
    await end(client, server)


@pytest.mark.allow_loop_errors
async def test_an_empty_buffer_is_an_error() -> None:
    messages: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: messages.append(context["message"])
    )
    client, server = Recorder(), BufferedRecorder(0)
    a, _b = memory_pair(client, server)
    a.write(b"x")
    await server.until_lost()
    await client.until_lost()
    assert messages == ["Fatal error: protocol.get_buffer() call failed."]
    assert isinstance(server.lost_with()[0], RuntimeError)


def test_a_loop_can_be_given() -> None:
    with asyncio.Runner() as runner:
        client, server = Recorder(), Recorder()
        a, _b = memory_pair(client, server, loop=runner.get_loop())
        assert isinstance(a, MemoryTransport)
        a.write(b"early")
        runner.run(server.until_data(b"early"))
        runner.run(end(client, server))


def test_without_a_loop_there_is_no_pair() -> None:
    with pytest.raises(RuntimeError):
        memory_pair(asyncio.Protocol(), asyncio.Protocol())


async def test_a_link_serves_one_pair() -> None:
    link = Link()
    with pytest.raises(RuntimeError, match="pair already"):
        memory_pair(Recorder(), Recorder(), to_server=link, to_client=link)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="-1"):
        Link(delay=-1)
    with pytest.raises(ConfigError, match="nan"):
        Link(delay=float("nan"))
    with pytest.raises(ConfigError, match="0"):
        Link(split=0)
    with pytest.raises(ConfigError, match="-2"):
        Link(capacity=-2)
    with pytest.raises(ConfigError, match="-3"):
        Link(cut_after=-3)
