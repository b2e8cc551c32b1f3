"""The bridge between a transport and consumers: left-over bytes, upgrade, reuse, back-pressure."""

import asyncio
import time
from functools import cached_property, partial
from typing import Any

import pytest
from protocol_kit import (
    Answers,
    EchoLine,
    Factory,
    Line,
    Peer,
    Silent,
    SlowLine,
    connected,
    dialled,
    lost,
    raw_client,
    raw_server,
    served,
    turns,
    until,
)

from examples.echo.protocol import EchoProtocol, EchoServerProtocol
from pulsar_client import (
    Connection,
    ConnectionClosed,
    DelimitedDecoder,
    MessageTooLarge,
    Producer,
    ProtocolConsumer,
)
from pulsar_client.testing import Link, VirtualClockLoop, memory_pair


async def answered(server: Connection, *pieces: bytes) -> bytes:
    """Send pieces to a server's connection, one a turn; give what it has answered."""
    got = bytearray()

    class Collect(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            got.extend(data)

    client, _ = memory_pair(Collect(), server)
    await turns(1)
    for piece in pieces:
        client.write(piece)
        await turns(2)
    await turns(10)
    client.abort()
    await turns()
    return bytes(got)


def server_connection(consumer: Factory = EchoLine, **kw: Any) -> Connection:
    return Connection(consumer, producer=Answers(), **kw)


# -- construction ----------------------------------------------------------------------------


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="'nonsense'"):
        Connection("nonsense")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nonsense"):
        Connection(Line, nonsense=1)
    with pytest.raises(ValueError, match="timeout is -1"):
        Connection(Line, -1)
    with pytest.raises(ValueError, match="timeout is 'soon'"):
        Connection(Line, "soon")  # type: ignore[arg-type]


def test_nothing_needs_a_running_loop() -> None:
    connection = Connection(Line, 5)
    assert connection.timeout == 5
    assert connection.closed
    assert not connection.is_reusable
    assert connection.requests_processed == 0
    assert repr(connection) == "<pending> session 1"


def test_a_missing_or_wrong_consumer_factory_is_named() -> None:
    with pytest.raises(TypeError, match="no consumer_factory"):
        Connection().current_consumer()
    with pytest.raises(TypeError, match="expected a ProtocolConsumer"):
        Connection(lambda: 5).current_consumer()  # type: ignore[arg-type,return-value]


def test_the_producer_builds_the_consumers() -> None:
    built: list[Any] = []

    class Builder(Producer):
        def build_consumer(self, consumer_factory: Any) -> ProtocolConsumer:
            built.append(consumer_factory)
            return super().build_consumer(consumer_factory)

    connection = Connection(Line, producer=Builder())
    consumer = connection.current_consumer()
    assert isinstance(consumer, Line)
    assert connection.current_consumer() is consumer
    assert built == [Line]


async def test_info_and_repr() -> None:
    async with served() as server, dialled(server.address) as connection:
        await connection.request(b"x")
        info = connection.info()["connection"]
        assert info["requests_processed"] == 1
        assert info["session"] == 1
        assert info["closed"] is False
        assert info["address"] in repr(connection)
        host, port = server.address
        assert repr(connection) == f"{host}:{port} session 1"
        connection.abort()
        await connection.close()
        assert repr(connection) == f"{host}:{port} session 1"
        assert connection.address == server.address


# -- many-times callbacks of the producer ----------------------------------------------------


async def test_callbacks_bound_to_the_producer_later_reach_existing_connections() -> None:
    seen: list[str] = []
    async with served() as server, dialled(server.address) as connection:
        await connection.request(b"before")
        for name in ("connection_made", "pre_request", "post_request", "connection_lost"):
            for producer in (connection.producer, server):
                producer.bind_event(
                    name,
                    lambda sender, exc=None, side=producer.server_side, name=name: seen.append(
                        f"{'server' if side else 'client'} {name}"
                    ),
                )
        await connection.request(b"x")
        assert sorted(seen) == [
            "client post_request",
            "client pre_request",
            "server post_request",
            "server pre_request",
        ]
        seen.clear()
        connection.abort()
        await connection.close()
        await until(lambda: len(seen) == 2)
        assert sorted(seen) == ["client connection_lost", "server connection_lost"]
        seen.clear()
        async with dialled(server.address):
            await until(lambda: seen)
            assert seen == ["server connection_made"]


async def test_a_callback_bound_in_both_places_runs_once_for_a_request() -> None:
    seen: list[Any] = []

    def note(sender: Any, exc: object = None) -> None:
        seen.append(sender)

    producer = Producer()
    near, far = await connected(client_kw={"producer": producer})
    producer.bind_event("post_request", note)
    consumer = near.current_consumer()
    consumer.bind_event("post_request", note)
    consumer.start(b"x")
    await consumer.on_finished
    assert seen == [consumer]
    producer.remove_callback("post_request", note)
    await near.request(b"y")
    assert len(seen) == 1
    await lost(near, far)


async def test_the_last_request_costs_what_the_first_did() -> None:
    """A1: with events that somebody uses, on both sides."""
    near, far = await connected()
    count = 0

    def note(sender: object, exc: object = None, data: bytes = b"") -> None:
        nonlocal count
        count += 1

    for connection in (near, far):
        connection.bind_event("data_received", note)
        connection.bind_event("before_write", note)

    async def batch() -> float:
        started = time.process_time()
        for _ in range(150):
            await near.request(b"x")
        return time.process_time() - started

    times = [await batch() for _ in range(10)]
    assert count == 4 * 1500
    assert min(times[-3:]) < 4 * min(times[:3])
    await lost(near, far)


# -- left-over bytes -------------------------------------------------------------------------

MESSAGES = [b"one", b"", b"three " * 5, b"4"]
STREAM = b"".join(message + b"\n" for message in MESSAGES)


@pytest.mark.parametrize("position", range(len(STREAM) + 1))
async def test_a_server_does_not_care_where_the_bytes_are_split(position: int) -> None:
    server = server_connection()
    assert await answered(server, STREAM[:position], STREAM[position:]) == STREAM
    assert server.requests_processed == len(MESSAGES)


async def test_a_server_takes_bytes_one_by_one() -> None:
    server = server_connection()
    pieces = [STREAM[i : i + 1] for i in range(len(STREAM))]
    assert await answered(server, *pieces) == STREAM
    assert server.requests_processed == len(MESSAGES)


async def test_two_messages_in_one_segment_are_two_requests() -> None:
    order: list[str] = []
    producer = Answers()
    producer.bind_event("pre_request", lambda sender, exc=None: order.append("pre"))
    producer.bind_event("post_request", lambda sender, exc=None: order.append("post"))
    server = Connection(EchoLine, producer=producer)
    assert await answered(server, b"a\nb\n") == b"a\nb\n"
    assert order == ["pre", "post"] * 2
    assert server.requests_processed == producer.requests_processed == 2


@pytest.mark.slow
def test_three_megabytes_byte_by_byte() -> None:
    """The work is linear in the bytes, however they are cut."""

    async def main() -> None:
        message = bytes(3_000_000)
        near = Connection(EchoProtocol)
        far = Connection(EchoServerProtocol, producer=Answers())
        memory_pair(near, far)
        await turns(1)
        far.transport.incoming.pause()
        task = asyncio.create_task(near.request(message))
        await turns(1)
        started = time.process_time()
        for i in range(len(message)):
            far.data_received(message[i : i + 1])
        far.data_received(b"\r\n\r\n")
        assert time.process_time() - started < 30
        assert await task == message
        assert far.requests_processed == 1
        near.abort()
        far.abort()
        await turns()

    asyncio.run(main())


async def test_left_over_bytes_close_a_client() -> None:
    """I18: in that turn, before anybody could lease it."""
    near, far = await connected()
    far.transport.write(b"unasked\n")
    await turns(2)
    assert near.closed
    assert near.requests_processed == 0
    await lost(near, far)


async def test_bytes_and_eof_on_an_idle_client_connection_evict_it_at_once() -> None:
    """I18: the closing callbacks run in the turn of the byte, on real sockets."""
    async with raw_server() as (address, accept):
        for unasked in (b"x", b""):
            async with dialled(address) as connection:
                evicted: list[Any] = []
                connection.add_closing_callback(evicted.append)
                connection.add_closing_callback(print)
                connection.remove_closing_callback(print)
                peer = await accept()
                assert connection.is_reusable
                if unasked:
                    await peer.send(unasked)
                else:
                    peer.sock.close()
                await until(lambda: evicted)  # noqa: B023
                assert evicted == [connection]
                assert connection.closed
                assert not connection.is_reusable
                late: list[Any] = []
                connection.add_closing_callback(late.append)
                assert late == [connection]


async def test_an_unfinished_consumer_keeps_what_it_returns() -> None:
    """It is fed again with the next bytes, and never loops."""
    calls: list[bytes] = []

    class Whole(ProtocolConsumer):
        def data_received(self, data: bytes) -> bytes | None:
            calls.append(data)
            if len(data) < 4:
                return data
            self.write(data[:4])
            self.finished()
            return data[4:]

    server = server_connection(Whole)
    assert await answered(server, b"a", b"bc", b"defgh", b"i") == b"abcdefgh"
    assert calls == [b"a", b"abc", b"abcdefgh", b"efgh", b"i"]


async def test_what_is_kept_goes_on_when_the_request_is_finished_elsewhere() -> None:
    consumers: list[SlowLine] = []

    def make() -> SlowLine:
        consumers.append(SlowLine())
        return consumers[-1]

    near, far = await connected(Silent, make)
    near.current_consumer().start(b"a\nb\nc\n")
    await turns()
    assert len(consumers) == 1
    assert not far.is_reusable
    for number in range(3):
        assert len(consumers) == number + 1
        consumers[number].answer()
        await turns()
    assert near.current_consumer().received == b"a\nb\nc\n"  # type: ignore[attr-defined]
    await lost(near, far)


async def test_what_is_kept_has_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    class Hoards(ProtocolConsumer):
        def data_received(self, data: bytes) -> bytes:
            return data

    errors: list[Any] = []
    producer = Answers()
    producer.bind_event("post_request", lambda sender, exc=None: errors.append(exc))
    near, far = await connected(Silent, Hoards, server_kw={"producer": producer})
    far.max_buffered = 100
    near.current_consumer().start(b"x" * 100)
    await turns()
    assert not far.closed
    near.write(b"x")
    await turns()
    assert far.closed
    assert isinstance(errors[0], MessageTooLarge)
    assert not caplog.records
    await lost(near, far)


async def test_bytes_behind_the_last_message_of_a_closed_connection_are_dropped() -> None:
    class Last(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            rest = super().data_received(data)
            self.connection.close()
            return rest

    server = server_connection(Last)
    assert await answered(server, b"a\nb\n") == b"a\n"
    assert server.requests_processed == 1


async def test_a_consumer_may_return_any_bytes_like_object() -> None:
    class Views(EchoLine):
        def data_received(self, data: bytes) -> Any:
            return bytearray(super().data_received(data))

    server = server_connection(Views)
    assert await answered(server, b"a\nb\n") == b"a\nb\n"


async def test_a_consumer_is_never_given_no_bytes() -> None:
    pieces: list[bytes] = []

    class Pieces(Line):
        def data_received(self, data: bytes) -> bytes:
            pieces.append(data)
            return super().data_received(data)

    near, far = await connected(client=Pieces, server=Silent)
    waiter = near.begin_request(b"x", None)
    assert waiter is not None
    near.data_received(b"")
    near.data_received(b"y\n")
    assert await waiter == b"y"
    assert pieces == [b"y\n"]
    near.abort()
    await lost(near, far)


async def test_data_handed_over_from_inside_is_fed_afterwards() -> None:
    class Wraps(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            if data.startswith(b"("):
                self.finished()
                self.connection.data_received(data.strip(b"()"))
                return b""
            return super().data_received(data)

    assert await answered(server_connection(Wraps), b"(x\n)") == b"x\n"


# -- a request in flight on a connection -----------------------------------------------------


async def test_the_states_in_which_a_connection_is_reusable() -> None:
    """I17."""
    gate = Link()
    near, far = await connected(server=SlowLine, to_server=gate)
    assert near.is_reusable  # fresh
    consumer = near.current_consumer()
    assert not near.is_reusable  # somebody has a consumer
    gate.pause()
    consumer.start(b"x")
    assert not near.is_reusable  # in flight
    consumer.finished(b"made up")
    assert not near.is_reusable  # the request is still in the write buffer
    gate.resume()
    await turns()
    assert near.is_reusable
    near.close()
    assert not near.is_reusable
    await lost(near, far)
    assert not near.is_reusable

    near, far = await connected(client_kw={"high_limit": 10, "low_limit": 0})
    near.transport.outgoing.pause()
    near.write(b"x" * 11)
    assert near.writing_paused
    assert not near.is_reusable
    near.abort()
    await lost(near, far)

    for end in ("cancel", "error"):
        near, far = await connected(server=Silent)
        task = asyncio.create_task(near.request(b"x"))
        await turns()
        if end == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            near._current_consumer.data_received = None
            far.write(b"y\n")
            with pytest.raises(TypeError):
                await task
        assert not near.is_reusable
        await lost(near, far)

    near, far = await connected()
    near.upgrade(Line)
    assert not near.is_reusable
    await lost(near, far)

    near, far = await connected()
    near.close_when_idle()
    assert not near.is_reusable
    await lost(near, far)


async def test_one_request_at_a_time() -> None:
    near, far = await connected(server=Silent)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    with pytest.raises(RuntimeError):
        await near.request(b"y")
    near.abort()
    with pytest.raises(ConnectionClosed):
        await task
    await lost(near, far)


async def test_many_requests_on_one_connection() -> None:
    async with served() as server, dialled(server.address) as connection:
        for number in range(200):
            assert await connection.request(b"%d" % number) == b"%d" % number
            assert connection.is_reusable
        assert connection.requests_processed == 200
        assert server.requests_processed == 200


async def test_close_when_idle_waits_for_the_request() -> None:
    near, far = await connected(server=SlowLine)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    event = near.close_when_idle()
    far.close_when_idle()
    await turns()
    assert not near.closed
    far.current_consumer().answer()  # type: ignore[attr-defined]
    assert await task == b"x"
    await event
    assert near.closed
    await lost(near, far)
    near, far = await connected()
    near.close_when_idle()
    assert near.closed
    await lost(near, far)


# -- upgrade ---------------------------------------------------------------------------------


class Shout(EchoLine):
    """Server: what the connection is upgraded to."""

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.write(line.upper() + b"\n")
            self.finished()
        return rest


class Upgrades(EchoLine):
    """Server: the line ``up`` upgrades, before or after it is answered."""

    after = False
    to: Factory = Shout

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            if line == b"up" and not self.after:
                self.connection.upgrade(type(self).to)
            self.write(line + b"\n")
            self.finished()
            if line == b"up" and self.after:
                self.connection.upgrade(type(self).to)
        return rest


class UpgradesAfter(Upgrades):
    after = True


STEPS = b"one\nup\ntwo\nthree\n"


@pytest.mark.parametrize("consumer", [Upgrades, UpgradesAfter])
@pytest.mark.parametrize("position", range(len(STEPS) + 1))
async def test_bytes_behind_the_upgrade_go_to_the_new_consumer(
    consumer: Factory, position: int
) -> None:
    """On a server, wherever the bytes are split."""
    server = server_connection(consumer)
    got = await answered(server, STEPS[:position], STEPS[position:])
    assert got == b"one\nup\nTWO\nTHREE\n"


async def test_upgrades_can_be_chained() -> None:
    class Reverse(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            line, rest = self.decoder.decode(data)
            if line is not None:
                self.write(line[::-1] + b"\n")
                self.finished()
            return rest

    class Second(Upgrades):
        to = Reverse

    class First(Upgrades):
        to = Second

    server = server_connection(First)
    assert await answered(server, b"a\nup\nab\nup\ncd\n") == b"a\nup\nab\nup\ndc\n"


async def test_upgrade_at_once_when_there_is_no_request() -> None:
    server = server_connection()
    server.upgrade(Shout)
    assert isinstance(server.current_consumer(), Shout)
    assert await answered(server, b"a\nb\n") == b"A\nB\n"
    assert server.requests_processed == 2


class Push(ProtocolConsumer):
    """Client: takes whatever comes, without a request of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data


@pytest.mark.parametrize("when", ["before start", "after start", "in pre_request", "on_finished"])
async def test_a_client_upgrades(when: str) -> None:
    """A7: also before ``start``."""
    near, far = await connected(server=Silent)
    consumer = near.current_consumer()
    if when == "before start":
        near.upgrade(Push)
    elif when == "in pre_request":
        consumer.bind_event("pre_request", lambda sender, exc=None: near.upgrade(Push))
    consumer.start(b"up")
    if when == "after start":
        near.upgrade(Push)
    elif when == "on_finished":
        consumer.bind_event("post_request", lambda sender, exc=None: near.upgrade(Push))
    await turns()
    far.write(b"yes\nbehind")
    assert await consumer.on_finished == b"yes"
    push = near.current_consumer()
    assert isinstance(push, Push)
    assert push.received == b"behind"
    far.write(b" and more")
    await turns()
    assert push.received == b"behind and more"
    assert not near.closed
    assert not near.is_reusable
    await lost(near, far)


async def test_a_client_upgrades_twice_and_back() -> None:
    near, far = await connected(server=Silent)
    consumer = near.current_consumer()
    near.upgrade(partial(Line, None))
    consumer.start(b"a")
    await turns()
    far.write(b"1\n")
    assert await consumer.on_finished == b"1"
    second = near.current_consumer()
    near.upgrade(Push)
    second.start(b"b")
    await turns()
    far.write(b"2\nrest")
    assert await second.on_finished == b"2"
    assert near.current_consumer().received == b"rest"  # type: ignore[attr-defined]
    assert not near.is_reusable
    await lost(near, far)


async def test_an_upgrade_to_nonsense_is_refused() -> None:
    near, far = await connected()
    with pytest.raises(TypeError, match="None"):
        near.upgrade(None)  # type: ignore[arg-type]
    await lost(near, far)


async def test_an_upgrade_whose_factory_fails_hangs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A2: the request is told its result; the connection is cut and the failure logged."""

    def broken() -> ProtocolConsumer:
        raise LookupError("oops")

    near, far = await connected()
    consumer = near.current_consumer()
    near.upgrade(broken)
    consumer.start(b"x")
    assert await consumer.on_finished == b"x"
    assert near.closed
    assert "oops" in caplog.text
    await lost(near, far)


# -- back-pressure ---------------------------------------------------------------------------

REPLY = 50_000


class Large(EchoLine):
    """Server: a large answer to a short line."""

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.write(b"x" * (REPLY - 1) + b"\n")
            self.finished()
        return rest


@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_server_stops_reading_requests_while_its_writes_pause(upgraded: bool) -> None:
    """P25: a client that pipelines and does not read; afterwards all is answered."""
    got = 0

    class Count(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            nonlocal got
            got += len(data)

    server = server_connection(Large)
    client, far = memory_pair(Count(), server)
    await turns(1)
    if upgraded:
        server.upgrade(Large)
    client.pause_reading()
    most = 0
    for _ in range(50):
        client.write(b"go\n" * 20)
        await turns(2)
        most = max(most, far.get_write_buffer_size())
    assert most <= 65536 + REPLY
    assert server.requests_processed <= 3
    assert client.get_write_buffer_size() > 0  # the requests wait with the client
    client.resume_reading()
    await until(lambda: got == 1000 * REPLY)
    assert server.requests_processed == 1000
    client.abort()
    await lost(server)


async def test_a_server_stops_reading_on_real_sockets() -> None:
    """P25."""
    async with served(Large) as server, raw_client(server.address, buffers=65536) as client:
        count = 300
        sending = asyncio.create_task(client.send(b"go\n" * count))
        await until(lambda: server._protocols)
        (connection,) = server._protocols
        await until(lambda: connection.writing_paused)
        processed = -1
        while processed != connection.requests_processed:
            processed = connection.requests_processed
            await asyncio.sleep(0.02)
        assert connection.transport.get_write_buffer_size() <= 65536 + REPLY
        assert processed < count
        await client.receive_exactly(REPLY * count)
        await sending
        assert connection.requests_processed == count


async def test_a_client_that_never_reads_is_closed_with_the_server() -> None:
    """P25, A11."""
    async with served(Large) as server, raw_client(server.address, buffers=4096) as client:
        await client.send(b"go\n" * 200)
        await until(lambda: server._protocols and next(iter(server._protocols)).writing_paused)
        await server.close(grace=0.05)
        assert not server._protocols


class Stream(ProtocolConsumer):
    """Writes a lot, and takes a lot."""

    size = 8_000_000

    def __init__(self) -> None:
        super().__init__()
        self.received = 0

    def start_request(self) -> None:
        self.write(bytes(self.size))

    def data_received(self, data: bytes) -> None:
        if not self.received and self.connection.server_side:
            self.write(bytes(self.size))
        self.received += len(data)
        if self.received == self.size:
            self.finished(self.received)


async def test_two_peers_that_stream_at_each_other_do_not_deadlock() -> None:
    """A4."""
    async with served(Stream) as server, dialled(server.address, Stream) as connection:
        (peer,) = await asyncio.gather(until_peer(server))
        peer.throttle_reading = False  # the server streams, it does not answer requests
        async with asyncio.timeout(20):
            assert await connection.request(None) == Stream.size


async def until_peer(server: Any) -> Connection:
    await until(lambda: server._protocols)
    connection: Connection = next(iter(server._protocols))
    return connection


async def test_a_client_never_stops_reading_because_its_writes_pause() -> None:
    """A4."""
    near, far = await connected(Silent, Silent, client_kw={"high_limit": 10, "low_limit": 0})
    consumer = near.current_consumer()
    near.transport.outgoing.pause()
    consumer.start(b"x" * 100)
    assert near.writing_paused
    assert near.transport.is_reading()
    far.write(b"y" * 100)
    await turns()
    assert consumer.received == b"y" * 100  # type: ignore[attr-defined]
    near.abort()
    with pytest.raises(ConnectionClosed):
        await consumer.on_finished
    await lost(near, far)


async def test_a_relay_can_switch_it_off_and_couple_its_sides() -> None:
    """A4: ``throttle_reading``, ``pause_reading`` and ``resume_reading``."""
    near, far = await connected(Silent, Silent, server_kw={"high_limit": 10, "low_limit": 0})
    assert far.throttle_reading
    assert not near.throttle_reading
    far.throttle_reading = False
    far.transport.outgoing.pause()
    far.write(b"x" * 11)
    assert far.writing_paused
    assert far.transport.is_reading()
    far.pause_reading()
    far.pause_reading()
    assert not far.transport.is_reading()
    far.transport.outgoing.resume()
    await turns()
    assert not far.writing_paused
    assert not far.transport.is_reading()  # the relay's hold is its own
    far.resume_reading()
    far.resume_reading()
    assert far.transport.is_reading()
    await lost(near, far)


# -- half-close (A10) ------------------------------------------------------------------------


async def test_a_reply_due_when_the_client_half_closes_is_sent() -> None:
    """A10."""
    consumers: list[SlowLine] = []

    def make() -> SlowLine:
        consumers.append(SlowLine())
        return consumers[-1]

    async with served(make) as server, raw_client(server.address) as client:
        await client.send(b"one\ntwo\n")
        client.sock.shutdown(1)
        connection = await until_peer(server)
        await until(lambda: connection._eof_handle)
        assert not connection.closed
        consumers[0].answer()
        await until(lambda: len(consumers) == 2 and consumers[1].line)
        consumers[1].answer()
        assert await client.receive_all() == b"one\ntwo\n"
        await until(lambda: not server._protocols)


async def test_a_large_reply_is_sent_whole_after_a_half_close() -> None:
    """A10, with pauses."""
    async with served(Large) as server, raw_client(server.address, buffers=4096) as client:
        await client.send(b"go\n" * 100)
        client.sock.shutdown(1)
        await until_peer(server)
        assert len(await client.receive_all()) == 100 * REPLY
        await until(lambda: not server._protocols)


async def test_half_a_message_and_a_half_close_end_within_a_bound() -> None:
    class Impatient(Connection):
        eof_grace = 0.02

    server = Impatient(EchoLine, producer=Answers())
    client, _ = memory_pair(asyncio.Protocol(), server)
    await turns(1)
    client.write(b"half")
    client.write_eof()
    await until(lambda: server.closed)
    client.abort()
    await lost(server)


async def test_an_idle_server_connection_ends_with_the_clients_half_close() -> None:
    async with served() as server, raw_client(server.address) as client:
        await client.send(b"x\n")
        assert await client.receive() == b"x\n"
        client.sock.shutdown(1)
        assert await client.receive_all() == b""
        await until(lambda: not server._protocols)


async def test_a_half_closed_peer_that_does_not_read_is_cut_off() -> None:
    """A11: the grace of ``close`` also holds when the peer closes first."""

    class Impatient(Connection):
        close_grace = 0.05

    server = Impatient(Silent, producer=Answers())
    client, _ = memory_pair(asyncio.Protocol(), server)
    await turns(1)
    client.pause_reading()
    server.write(b"x" * 100)
    client.write_eof()
    await until(lambda: server._lost)
    client.abort()
    await turns()


def test_eof_twice_arms_one_timer() -> None:
    """A transport that reads again after the end of file tells it again."""

    async def main() -> None:
        server = server_connection(SlowLine)
        client, _ = memory_pair(asyncio.Protocol(), server)
        await turns(1)
        client.write(b"x\n")
        await turns()
        assert server.eof_received() is True
        first = server._eof_handle
        assert server.eof_received() is True
        assert server._eof_handle is first
        client.abort()
        await lost(server)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


# -- errors of a server's handlers (A8) ------------------------------------------------------


async def test_a_handler_that_raises_is_logged_once_and_its_connection_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A8: what was answered before is still sent."""

    class Broken(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            if data.startswith(b"bad"):
                raise LookupError("oops")
            return super().data_received(data)

    async with served(Broken) as server, raw_client(server.address) as client:
        await client.send(b"good\nbad\n")
        assert await client.receive_all() == b"good\n"
    (record,) = [r for r in caplog.records if r.levelname != "DEBUG"]
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert "oops" in caplog.text


async def test_a_handler_that_closes_and_then_raises_is_logged_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A8."""

    class Broken(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            self.connection.close()
            raise LookupError("oops")

    async with served(Broken) as server, raw_client(server.address) as client:
        await client.send(b"bad\n")
        assert await client.receive_all() == b""
    assert [r.levelname for r in caplog.records if r.levelname != "DEBUG"] == ["ERROR"]


@pytest.mark.parametrize("kind", ["factory", "hook", "type"])
async def test_a_failing_factory_or_hook_of_a_server(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Hook(EchoLine):
        def connection_made(self, connection: Any) -> None:
            raise LookupError("oops")

    def fails() -> ProtocolConsumer:
        raise LookupError("oops")

    factory: Any = {"factory": fails, "hook": Hook, "type": object}[kind]
    async with served(factory) as server, raw_client(server.address) as client:
        await client.send(b"x\n")
        assert await client.receive_all() == b""
    assert [r.levelname for r in caplog.records if r.levelname != "DEBUG"] == ["ERROR"]


@pytest.mark.parametrize("peer", ["garbage", "reset", "half", "writes to a reset peer"])
async def test_what_bad_peers_do_is_below_info(
    peer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="pulsar_client")

    class Strict(EchoLine):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = DelimitedDecoder(b"\n", max_size=10)

    async with (
        served(Strict if peer == "garbage" else Large) as server,
        raw_client(server.address) as client,
    ):
        if peer == "garbage":
            await client.send(b"x" * 100)
            assert await client.receive_all() == b""
        else:
            await client.send(b"go\n" * 500 if peer == "writes to a reset peer" else b"half")
            await until_peer(server)
            if peer == "half":
                client.sock.close()
            else:
                client.reset()
        if peer == "half":  # it might have been a half-close
            await until(lambda: any(protocol._eof for protocol in server._protocols))
        else:
            await until(lambda: not server._protocols)
        # The close says that it cut what was half a message, and should.
        assert not [r for r in caplog.records if r.levelname not in ("DEBUG",)]
    lines = [r for r in caplog.records if "closing" in r.getMessage()]
    assert len(lines) <= 1
    assert all(r.exc_info is None for r in caplog.records)


async def test_a_peer_is_only_a_peer() -> None:
    """The kit's raw ends talk to each other."""
    async with raw_server() as (address, accept), raw_client(address) as client:
        peer: Peer = await accept()
        await client.send(b"x")
        assert await peer.receive_exactly(1) == b"x"


def test_a_class_may_make_the_parser_in_its_own_way() -> None:
    class Fixed(Connection):
        @property
        def parser(self) -> str:
            return "fixed"

    class Lazy(Connection):
        def __init__(self, consumer_factory: Factory) -> None:
            super().__init__(consumer_factory)
            self.limit = 3

        @cached_property
        def parser(self) -> int:
            return self.limit

    class Shared(Connection):
        parser = "shared"

    assert Fixed(Line).parser == "fixed"
    assert Lazy(Line).parser == 3
    assert Shared(Line).parser == "shared"
    assert Connection(Line).parser is None
