"""The short way of a server's datagrams: what happens on it when something is not as usual."""

import asyncio
import contextlib
import errno
import gc
import logging
import select
import socket
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datagram_kit import (
    EchoDatagram,
    Peer,
    Plain,
    dead_address,
    endpoint,
    factory,
    keeping,
    peer,
    served,
    until,
)

from pulsar_client import DatagramProtocol, DatagramServer, ProtocolConsumer


def only_protocol(server: Any) -> Any:
    [protocol] = server._protocols
    return protocol


@contextlib.asynccontextmanager
async def serving(*args: Any, **kw: Any) -> AsyncIterator[tuple[DatagramServer, Peer]]:
    """A server and somebody to ask it."""
    async with served(*args, **kw) as server:
        with peer() as one:
            yield server, one


async def test_a_reply_that_finds_no_room_is_queued_and_sent_in_order() -> None:
    async with serving() as (server, one):
        protocol = only_protocol(server)
        at_once = protocol.send_now

        def full(data: bytes, address: Any) -> None:
            raise BlockingIOError(errno.EAGAIN, "no room")

        protocol.send_now = full
        for number in range(3):
            one.send(b"%d" % number, server.address)
        assert [(await one.receive())[0] for _ in range(3)] == [b"0", b"1", b"2"]
        assert protocol.send_now == at_once  # the queue is empty
        assert protocol.counts.sent == 3
        assert protocol.counts.send_failed == protocol.counts.send_dropped == 0


async def test_a_reply_behind_a_full_queue_is_dropped_and_counted() -> None:
    class Small(DatagramProtocol):
        max_queued = 0

    async with serving(protocol=Small) as (server, one):
        protocol = only_protocol(server)
        at_once = protocol.send_now

        def full(data: bytes, address: Any) -> None:
            protocol.send_now = at_once
            raise BlockingIOError(errno.EAGAIN, "no room")

        protocol.send_now = full
        one.send(b"dropped", server.address)
        one.send(b"sent", server.address)
        assert (await one.receive())[0] == b"sent"
        assert protocol.counts.send_dropped == protocol.counts.sent == 1


async def test_news_of_an_earlier_datagram_do_not_cost_the_next_its_reply_i36() -> None:
    """I36: the refusal is told, and the reply that met it is sent again."""
    async with serving() as (server, one):
        protocol = only_protocol(server)
        at_once = protocol.send_now

        def refused(data: bytes, address: Any) -> None:
            protocol.send_now = at_once
            raise ConnectionRefusedError(errno.ECONNREFUSED, "somebody else")

        protocol.send_now = refused
        one.send(b"hello", server.address)
        assert (await one.receive())[0] == b"hello"
        assert protocol.counts.refused == protocol.counts.sent == 1


async def test_a_reply_that_the_system_refuses_is_counted() -> None:
    async with serving() as (server, one):
        protocol = only_protocol(server)
        at_once = protocol.send_now

        def wrong(data: bytes, address: Any) -> None:
            protocol.send_now = at_once
            raise PermissionError(errno.EPERM, "a firewall")

        protocol.send_now = wrong
        one.send(b"?", server.address)
        one.send(b"sent", server.address)
        assert (await one.receive())[0] == b"sent"
        assert protocol.counts.send_failed == protocol.counts.sent == 1


async def test_nothing_is_sent_at_once_when_the_socket_closes() -> None:
    async with served() as server:
        protocol = only_protocol(server)
        assert protocol.send_now is not None
        protocol.transport.close()
        assert protocol.send_now is None
    async with served() as server:
        protocol = only_protocol(server)
        protocol.close()
        assert protocol.send_now is None


async def test_an_error_of_datagram_received_is_not_one_of_the_socket(
    loop_errors: list[logging.LogRecord],
) -> None:
    """Neither does it end the burst: the datagrams behind are taken in the same turn."""

    class Wrong(DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            if data != b"right":
                raise BlockingIOError(data.decode())
            super().datagram_received(data, addr)

    async with serving(protocol=Wrong) as (server, one):
        for data in (b"wrong", b"wrong too", b"right"):
            one.send(data, server.address)
        assert (await one.receive())[0] == b"right"
        assert only_protocol(server).counts.refused == 0
    errors = [str(record.exc_info[1]) for record in loop_errors if record.exc_info]
    assert errors == ["wrong", "wrong too"]
    assert all("datagram_received() failed" in record.getMessage() for record in loop_errors)


async def test_an_error_of_finished_is_not_one_of_the_socket(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unfinished(EchoDatagram):
        def data_received(self, data: bytes) -> None:
            if data == b"wrong":
                raise ValueError(data)
            super().data_received(data)

        def finished(self, result: Any = None, exc: BaseException | None = None) -> None:
            if exc is not None:
                raise ConnectionRefusedError("its own")
            super().finished(result)

    async with serving(Unfinished) as (server, one):
        one.send(b"wrong", server.address)
        one.send(b"right", server.address)
        assert (await one.receive())[0] == b"right"
        assert only_protocol(server).counts.refused == 0
        await until(lambda: server.requests_processed == 2)
    assert "Unfinished" in caplog.text
    assert "its own" in caplog.text


async def test_a_consumer_need_not_call_the_constructor_of_its_base() -> None:
    class Own(EchoDatagram):
        def __init__(self) -> None:
            self.mine = True

    class Heir(Own):
        pass

    @dataclass(eq=False)
    class Late(EchoDatagram):
        mine: bool = True

    for consumer in (Own, Heir, Late):
        async with serving(consumer) as (server, one):
            one.send(b"hello", server.address)
            assert (await one.receive())[0] == b"hello"
    assert not consumer().done()
    assert consumer().connection is None


def test_what_a_request_reads_hides_nothing_of_its_class() -> None:
    """Since Python 3.12 such an attribute is found several times slower."""
    assert not vars(EchoDatagram()).keys() & vars(ProtocolConsumer).keys()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs unix sockets")
async def test_a_peer_without_an_address_is_counted_and_no_error_of_the_handler(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a unix socket a peer need not have a name, and then there is no way to answer."""
    path = str(tmp_path / "server")
    with contextlib.ExitStack() as stack:
        ours, nameless, named = (
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(3)
        )
        ours.bind(path)
        named.bind(str(tmp_path / "named"))
        named.settimeout(20)
        async with DatagramServer(factory(EchoDatagram), sockets=[ours]) as server:
            counts = only_protocol(server).counts
            nameless.sendto(b"nobody", path)
            named.sendto(b"somebody", path)
            await until(lambda: counts.sent)
            assert named.recv(100) == b"somebody"
            assert (counts.sent, counts.send_failed) == (1, 1)
    assert not caplog.records


async def test_an_error_told_to_a_handler_does_not_undo_its_pause_i36() -> None:
    """The handler pauses, and what it sends then meets the refusal of an earlier datagram."""
    dead = dead_address()
    seen = []

    class Pausing(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            seen.append(data)
            if data == b"0":
                protocol = self.connection.protocol
                protocol.write(b"?", dead)
                wait_for_error(protocol.sock)
                protocol.transport.pause_reading()
            self.write(data)
            self.finished()

    async with serving(Pausing) as (server, one):
        protocol = only_protocol(server)
        for number in range(3):
            one.send(b"%d" % number, server.address)
        assert (await one.receive())[0] == b"0"
        assert protocol.counts.refused == 1
        assert seen == [b"0"]
        protocol.transport.resume_reading()
        assert [(await one.receive())[0] for _ in range(2)] == [b"1", b"2"]
        assert seen == [b"0", b"1", b"2"]


def wait_for_error(sock: Any) -> None:
    """Until the network has refused what was sent; the error stays where it is."""
    poll = select.poll()
    poll.register(sock, 0)
    assert poll.poll(20_000)


async def test_a_server_that_ends_reads_no_more_when_its_replies_have_drained() -> None:
    consumer, kept = keeping()
    async with serving(consumer) as (server, one):
        protocol = only_protocol(server)
        one.send(b"slow", server.address)
        await until(lambda: kept)
        protocol.close_when_idle()
        protocol.pause_writing()
        protocol.resume_writing()
        assert not protocol.transport.is_reading()
        kept[0].answer()
        assert (await one.receive())[0] == b"slow"


async def test_those_that_wait_are_served_before_those_that_come() -> None:
    """A place becomes free, and before anybody who waits has it the next datagram is there."""
    consumer, kept = keeping()

    class One(DatagramProtocol):
        max_in_flight = 1

    async with serving(consumer, protocol=One) as (server, one):
        protocol = only_protocol(server)
        for data in (b"0", b"1", b"2"):
            protocol.datagram_received(data, one.address)
        kept[0].answer()
        protocol.datagram_received(b"3", one.address)
        for number in range(1, 4):
            await until(lambda: len(kept) > number)  # noqa: B023
            kept[number].answer()
        assert [(await one.receive())[0] for _ in range(4)] == [b"0", b"1", b"2", b"3"]
        assert protocol.counts.received == server.requests_processed == 4


async def test_an_error_of_one_that_waited_does_not_hold_up_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept: list[ProtocolConsumer] = []

    class Wrong(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            if data == b"first":
                kept.append(self)
                return
            self.write(data)
            self.finished()

        def finished(self, result: Any = None, exc: BaseException | None = None) -> None:
            super().finished(result, exc)
            if not caplog.records and self is not kept[0]:
                raise ValueError("its own")

    class One(DatagramProtocol):
        max_in_flight = 1

    async with serving(Wrong, protocol=One) as (server, one):
        for data in (b"first", b"wrong", b"right"):
            one.send(data, server.address)
        await until(lambda: server.info()["datagrams"]["received"] == 3)
        kept[0].finished()
        assert [(await one.receive())[0] for _ in range(2)] == [b"wrong", b"right"]
    assert "its own" in caplog.text


async def test_an_exchange_that_ends_before_its_pre_request_has_does_not_stay() -> None:
    over = asyncio.Event()

    async def slow(consumer: ProtocolConsumer, **kw: Any) -> None:
        await over.wait()

    def ends(consumer: ProtocolConsumer, **kw: Any) -> None:
        consumer.write(b"no")
        consumer.finished()

    async with serving() as (server, one):
        server.bind_event("pre_request", ends)
        server.bind_event("pre_request", slow)
        one.send(b"?", server.address)
        assert (await one.receive())[0] == b"no"
        assert only_protocol(server).is_reusable  # nothing is in flight
        over.set()


async def test_a_slow_pre_request_gives_no_exchange_more_time() -> None:
    """Neither its own nor one that came later."""
    consumer, kept = keeping()
    over = asyncio.Event()
    ended = []

    class Short(DatagramProtocol):
        exchange_timeout = 1.0

    async def slow(consumer: ProtocolConsumer, **kw: Any) -> None:
        if not over.is_set():
            await over.wait()

    async with serving(consumer, protocol=Short) as (server, one):
        protocol = only_protocol(server)
        server.bind_event("pre_request", slow)
        server.bind_event("post_request", lambda consumer, **kw: ended.append(consumer))
        one.send(b"0", server.address)
        await until(lambda: server.requests_processed == 1)
        [(first, deadline)] = protocol._in_flight.items()
        over.set()
        one.send(b"1", server.address)
        await until(lambda: len(kept) == 2)
        assert protocol._in_flight[first] == deadline
        assert list(protocol._in_flight.values()) == sorted(protocol._in_flight.values())
        await until(lambda: len(ended) == 2)
        assert protocol.counts.expired == 2


async def test_an_exchange_ended_by_the_end_of_another_has_not_expired() -> None:
    consumer, kept = keeping()

    def ends_all(sender: ProtocolConsumer, **kw: Any) -> None:
        for each in kept:
            each.finished()

    class Short(DatagramProtocol):
        exchange_timeout = 0.05

    async with serving(consumer, protocol=Short) as (server, one):
        server.bind_event("post_request", ends_all)
        protocol = only_protocol(server)
        for data in (b"0", b"1"):
            protocol.datagram_received(data, one.address)
        for each in protocol._in_flight:
            protocol._in_flight[each] = 0.0  # both are late when it looks
        await until(lambda: not protocol._in_flight)
        assert protocol.counts.expired == 1


async def test_a_coroutine_for_data_received_is_refused_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Waiting(Plain):
        async def data_received(self, data: bytes) -> None:  # type: ignore[override]
            raise AssertionError("nobody awaits it")

    async with serving(Waiting) as (server, one):
        one.send(b"?", server.address)
        await until(lambda: server.requests_processed)
        assert not only_protocol(server)._in_flight
    assert "data_received() is a coroutine function" in caplog.text
    async with served() as server, endpoint(server.address, Waiting) as client:
        with pytest.raises(TypeError, match=r"data_received\(\) is a coroutine function"):
            await client.request(b"?")


async def test_a_reply_that_is_refused_leaves_nothing_to_the_garbage_collector() -> None:
    class Long(DatagramProtocol):
        max_payload = 100_000

    class Wrong(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(bytes(70_000))
            self.finished()
            made.append(weakref.ref(self))

    made: list[weakref.ref[Wrong]] = []
    gc.collect()
    gc.disable()
    try:
        async with serving(Wrong, protocol=Long) as (server, one):
            one.send(b"?", server.address)
            await until(lambda: only_protocol(server).counts.send_failed)
            assert made[0]() is None
    finally:
        gc.enable()


async def test_a_consumer_may_keep_what_it_likes_on_its_connection() -> None:
    """As on any other connection: a consumer need not know that it speaks over datagrams."""
    found = []

    class Marking(EchoDatagram):
        def data_received(self, data: bytes) -> None:
            self.connection.mine = data
            found.append(weakref.ref(self.connection)().mine)  # type: ignore[union-attr]
            super().data_received(data)

    async with serving(Marking) as (server, one):
        one.send(b"hello", server.address)
        assert (await one.receive())[0] == b"hello"
    assert found == [b"hello"]


async def test_a_consumer_that_asks_a_cancelled_future_fails_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither in a burst nor among those that wait does it hold up what is behind it."""
    kept: list[ProtocolConsumer] = []

    class Asking(EchoDatagram):
        def data_received(self, data: bytes) -> None:
            if data == b"keep":
                kept.append(self)
                return
            if data == b"ask":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                future.result()
            super().data_received(data)

    class One(DatagramProtocol):
        max_in_flight = 1

    async with serving(Asking, protocol=One) as (server, one):
        protocol = only_protocol(server)
        protocol.serve_burst([(data, one.address) for data in (b"ask", b"0")])
        assert (await one.receive())[0] == b"0"
        for data in (b"keep", b"ask", b"1"):
            protocol.datagram_received(data, one.address)
        kept[0].finished()
        assert (await one.receive())[0] == b"1"
    errors = [type(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert errors == [asyncio.CancelledError] * 2


async def test_a_class_of_consumers_keeps_its_own_connection() -> None:
    given = []

    class Watching(EchoDatagram):
        def __init__(self) -> None:
            self.where: Any = None

        @property
        def connection(self) -> Any:
            return self.where

        @connection.setter
        def connection(self, connection: Any) -> None:
            given.append(connection)
            self.where = connection

    async with serving(Watching) as (server, one):
        one.send(b"hello", server.address)
        assert (await one.receive())[0] == b"hello"
    assert len(given) == 1
