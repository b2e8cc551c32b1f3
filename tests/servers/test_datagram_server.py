"""The datagram server: addresses, life, graceful stop, limits, arguments, whence it replies."""

import asyncio
import errno
import logging
import socket
import sys
from functools import partial
from typing import Any

import pytest
from datagram_kit import (
    EchoDatagram,
    Keyed,
    endpoint,
    factory,
    has_ipv6,
    keeping,
    peer,
    served,
    until,
)

from pulsar_client import (
    Connection,
    DatagramProtocol,
    DatagramServer,
    ProtocolConsumer,
    ProtocolError,
)


def more_than(things: list[Any], number: int) -> bool:
    return len(things) > number


linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's socket options")


async def test_one_consumer_answers_each_datagram_a12() -> None:
    """A12: the server can reply, and peers share nothing."""
    async with served() as server:
        with peer() as one, peer() as other:
            one.send(b"first", server.address)
            other.send(b"second", server.address)
            one.send(b"", server.address)
            assert await one.receive() == (b"first", server.address)
            assert await other.receive() == (b"second", server.address)
            assert await one.receive() == (b"", server.address)
        assert server.requests_processed == 3


async def test_its_addresses_sockets_and_numbers() -> None:
    server: Any = DatagramServer(factory(EchoDatagram), address=("127.0.0.1", 0), name="echo")
    assert server.addresses == []
    assert server.sockets is None
    assert not server.address
    assert "not serving 127.0.0.1:0" in repr(server)
    async with server:
        sock: socket.socket
        [sock] = server.sockets or []
        assert server.addresses == [server.address] == [sock.getsockname()]
        async with endpoint(server.address) as client:
            assert await client.request(b"?") == b"?"
        info = server.info()
        assert info["server"]["sockets"][0]["address"] == f"127.0.0.1:{server.address[1]}"
        assert {"uptime_in_seconds", "max_requests", "keep_alive"} <= info["server"].keys()
        assert info["clients"] == {
            "processed_clients": 1,
            "connected_clients": 1,
            "requests_processed": 1,
        }
        assert info["datagrams"]["received"] == info["datagrams"]["sent"] == 1
        assert repr(server).endswith(": 1 requests>")
    assert server.addresses == []
    assert server.sockets is None
    assert sock.fileno() == -1


async def test_its_events() -> None:
    log: list[str] = []
    server = DatagramServer(factory(EchoDatagram), address=("127.0.0.1", 0))
    for name in server.events:
        server.bind_event(name, lambda sender, exc=None, name=name: log.append(name))
    async with server, endpoint(server.address) as client:
        assert await client.request(b"?") == b"?"
    assert log == [
        "connection_made",  # the endpoint's
        "start",
        "pre_request",
        "post_request",
        "connection_lost",
        "stop",
    ]


async def test_a_bind_that_fails_is_raised_a12() -> None:
    """A12: the ancestor swallowed it."""
    with peer() as taken:
        server = DatagramServer(factory(EchoDatagram), address=taken.address)
        with pytest.raises(OSError, match=rf"can't bind 127.0.0.1:{taken.address[1]}") as caught:
            await server.create_endpoint()
        assert caught.value.errno == errno.EADDRINUSE
        assert server.addresses == []
        await server.close()


async def test_both_families_have_one_port() -> None:
    async with served(address=("", 0)) as server:
        assert len({address[1] for address in server.addresses}) == 1
        assert len(server.addresses) == (2 if has_ipv6() else 1)
        for address in server.addresses:
            host = "::1" if ":" in address[0] else "127.0.0.1"
            async with endpoint((host, address[1])) as client:
                assert await client.request(b"?") == b"?"


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.3.2.1", "::1"])
async def test_replies_leave_from_the_address_that_was_asked_u8(host: str) -> None:
    """U8: on a socket that is bound to every interface too, with connected and other clients."""
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 here")
    async with served(address=("", 0)) as server:
        asked = (host, server.address[1])
        with peer(("::1" if ":" in host else "127.0.0.1", 0)) as one:
            one.send(b"who?", asked)
            data, source = await one.receive()
            assert data == b"who?"
            assert source[:2] == asked
        async with endpoint(asked) as client:
            assert await client.request(b"connected") == b"connected"


@linux
async def test_a_late_reply_leaves_from_the_address_that_was_asked_u8() -> None:
    """U8: the reply knows by itself, also when other datagrams have come since."""
    consumer, kept = keeping()
    async with served(consumer, address=("", 0)) as server:
        with peer() as one:
            for host in ("127.0.0.3", "127.0.0.4"):
                one.send(host.encode(), (host, server.address[1]))
            await until(lambda: len(kept) == 2)
            for late in reversed(kept):
                late.answer()
                data, source = await one.receive()
                assert source[0].encode() == data == late.data


@linux
async def test_a_protocol_that_keeps_the_address_answers_from_the_one_asked_u8() -> None:
    """U8: also for those who handle datagrams themselves."""
    kept: list[Any] = []

    class Own(DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            kept.append((data, addr))

    async with served(None, ("", 0), protocol=Own) as server:
        with peer() as one:
            one.send(b"?", ("127.0.0.5", server.address[1]))
            await until(lambda: kept)
            data, addr = kept[0]
            assert addr == one.address
            [protocol] = [p for p in server._protocols if p._family == 2]
            protocol.write(data, addr)
            assert (await one.receive())[1] == ("127.0.0.5", server.address[1])


async def test_the_receive_buffer_is_asked_for_and_logged_u8(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """U8: what is granted may be less, or twice as much; the log and `info` say."""

    class Small(DatagramServer):
        receive_buffer = 300_000

    with caplog.at_level(logging.INFO, "pulsar_client.servers"):
        async with Small(factory(EchoDatagram), address=("127.0.0.1", 0)) as server:
            [sock] = server.sockets or []
            granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert granted >= 200_000
            assert server.info()["server"]["sockets"][0]["receive_buffer"] == granted
    assert f"is {granted} bytes, 300000 were asked for" in caplog.text


@linux
async def test_drops_of_the_system_are_counted_u8() -> None:
    """U8: what the receive buffer can't hold is dropped by the system, and seen."""

    class Small(DatagramServer):
        receive_buffer = 1

    async with Small(factory(EchoDatagram), address=("127.0.0.1", 0)) as server:
        [sock] = server.sockets or []
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with peer() as one:
            for _ in range(100):
                one.send(b"x" * 1000, server.address)
        await until(lambda: server.info()["datagrams"]["received"])
        numbers = server.info()["datagrams"]
        assert numbers["kernel_drops"] > 0
        await until(
            lambda: (
                sum(server.info()["datagrams"][name] for name in ("received", "kernel_drops"))
                == 100
            )
        )


# Handlers that wait


async def test_a_slow_exchange_holds_up_no_other() -> None:
    consumer, kept = keeping()
    async with served(consumer) as server:
        with peer() as one, peer() as other:
            one.send(b"slow", server.address)
            await until(lambda: kept)
            other.send(b"quick", server.address)
            await until(lambda: len(kept) == 2)
            kept[1].answer()
            assert (await other.receive())[0] == b"quick"
            kept[0].answer()
            assert (await one.receive())[0] == b"slow"


async def test_the_queue_of_slow_exchanges_is_bounded_and_counts_drops_u8() -> None:
    """U8: so many in flight, so many more waiting, the rest dropped and counted."""
    consumer, kept = keeping()

    class Narrow(DatagramProtocol):
        max_in_flight = 3
        max_waiting = 2

    async with served(consumer, protocol=Narrow) as server:
        with peer() as one:
            for number in range(9):
                one.send(b"%d" % number, server.address)
            await until(lambda: server.info()["datagrams"]["received"] == 9)
            assert server.info()["datagrams"]["busy"] == 4
            assert len(kept) == 3
            for number in range(5):
                await until(partial(more_than, kept, number))
                kept[number].answer()
                assert (await one.receive())[0] == b"%d" % number
            one.send(b"again", server.address)
            await until(lambda: len(kept) == 6)
            kept[5].answer()
            assert (await one.receive())[0] == b"again"


async def test_an_exchange_that_never_finishes_is_given_up() -> None:
    consumer, kept = keeping()
    async with served(consumer, ("127.0.0.1", 0)) as server:
        [protocol] = server._protocols
        protocol.exchange_timeout = 0.01
        with peer() as one:
            one.send(b"?", server.address)
            await until(lambda: kept and kept[0].done())
        assert server.info()["datagrams"]["expired"] == 1


async def test_a_task_answers_and_is_cancelled_with_its_exchange() -> None:
    ended: list[str] = []

    class Later(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.create_task(self.answer(data))

        async def answer(self, data: bytes) -> None:
            try:
                await asyncio.sleep(0 if data == b"now" else 3600)
                self.write(data)
                self.finished()
            finally:
                ended.append(data.decode())

    async with served(Later, grace=0.01) as server:
        with peer() as one:
            one.send(b"now", server.address)
            assert (await one.receive())[0] == b"now"
            one.send(b"never", server.address)
            await until(lambda: server.requests_processed == 2)
            await asyncio.sleep(0)
    await until(lambda: ended == ["now", "never"])


# What handlers and peers do


async def test_a_peers_garbage_is_counted_and_no_more_than_a_debug_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Strict(EchoDatagram):
        def data_received(self, data: bytes) -> None:
            if not data.startswith(b"!"):
                raise ProtocolError(f"no '!': {data[:20]!r}")
            super().data_received(data)

    async with served(Strict) as server:
        with peer() as one:
            one.send(b"garbage", server.address)
            one.send(b"!", server.address)
            assert (await one.receive())[0] == b"!"
        assert server.info()["datagrams"]["malformed"] == 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_bug_of_a_handler_is_logged_and_ends_its_exchange_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Buggy(EchoDatagram):
        def data_received(self, data: bytes) -> None:
            if data == b"bug":
                raise KeyError("bug")
            super().data_received(data)

    async with served(Buggy) as server:
        with peer() as one:
            one.send(b"bug", server.address)
            one.send(b"fine", server.address)
            assert (await one.receive())[0] == b"fine"
    [record] = [record for record in caplog.records if record.levelno > logging.INFO]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


async def test_closing_the_connection_of_an_exchange_leaves_the_socket_open() -> None:
    class Quitting(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(data)
            self.connection.close()

    async with served(Quitting) as server:
        with peer() as one:
            for data in (b"one", b"two"):
                one.send(data, server.address)
                assert (await one.receive())[0] == data


async def test_a_reply_that_is_too_long_is_an_error_of_the_handler_u5(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """U5: payloads stay below 1400 bytes, unless somebody asks for more."""

    class Long(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(data * 200)
            self.finished()

    async with served(Long) as server:
        with peer() as one:
            one.send(b"1234567", server.address)
            await until(lambda: server.requests_processed == 1)
    assert "at most max_payload (1399)" in caplog.text
    server = DatagramServer(factory(Long, max_payload=1400), address=("127.0.0.1", 0))
    async with server:
        with peer() as one:
            one.send(b"1234567", server.address)
            assert len((await one.receive())[0]) == 1400


async def test_a_datagram_that_is_too_long_is_dropped_and_counted_u5() -> None:
    """U5: truncation is detected: half a message is never taken for a whole one."""

    class Short(DatagramProtocol):
        max_datagram = 10

    async with served(protocol=Short) as server:
        with peer() as one:
            one.send(b"x" * 11, server.address)
            one.send(b"y" * 10, server.address)
            assert (await one.receive())[0] == b"y" * 10
        assert server.info()["datagrams"]["truncated"] == 1


async def test_a_peer_that_is_gone_loses_its_exchange_at_once() -> None:
    """The refusal of one reply ends what is still being done for that peer, and for no other."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells an unconnected socket")
    consumer, kept = keeping()
    async with served(consumer) as server:
        with peer() as one:
            with peer() as gone:
                for data in (b"one", b"two"):
                    gone.send(data, server.address)
                one.send(b"other", server.address)
                await until(lambda: len(kept) == 3)
            kept[0].answer()
            await until(lambda: kept[1].done())
            with pytest.raises(ConnectionError):
                await kept[1].on_finished
            assert not kept[2].done()
            kept[2].answer()
            assert (await one.receive())[0] == b"other"
        # and the socket still reads, on every loop
        async with endpoint(server.address, Keyed) as client:
            waiting = asyncio.create_task(client.request(b"more"))
            await until(lambda: len(kept) == 4)
            kept[3].answer()
            assert await waiting == b"more"


# Life


async def test_what_has_arrived_is_answered_before_the_end() -> None:
    async with served() as server:
        with peer() as one:
            one.send(b"last", server.address)
            await server.close()
            assert (await one.receive())[0] == b"last"


async def test_all_that_has_arrived_is_answered_before_the_end_however_much() -> None:
    async with served() as server:
        with peer() as one:
            for number in range(150):
                one.send(b"%d" % number, server.address)
            await server.close()
            assert [int((await one.receive())[0]) for _ in range(150)] == list(range(150))


async def test_a_close_reads_no_longer_than_its_grace() -> None:
    async with served() as server:
        with peer() as one:
            for number in range(250):
                one.send(b"%d" % number, server.address)
            await server.close(grace=0.0)
            assert 64 <= server.requests_processed < 250


async def test_close_waits_for_exchanges() -> None:
    consumer, kept = keeping()
    async with served(consumer) as server:
        with peer() as one:
            for data in (b"one", b"two"):
                one.send(data, server.address)
            await until(lambda: len(kept) == 2)
            closing = asyncio.create_task(server.close(grace=60.0))
            await asyncio.sleep(0)
            for exchange in kept:
                assert not closing.done()
                exchange.answer()
                assert (await one.receive())[0] == exchange.data
            await closing


async def test_close_gives_exchanges_up_after_the_grace() -> None:
    consumer, kept = keeping()
    async with served(consumer) as server:
        with peer() as one:
            for data in (b"finishes", b"does not"):
                one.send(data, server.address)
            await until(lambda: len(kept) == 2)
            kept[0].answer()
            assert (await one.receive())[0] == b"finishes"
            await server.close(grace=0.1)
        with pytest.raises(ConnectionError, match="lost its connection"):
            await kept[1].on_finished
        with pytest.raises(ConnectionError):
            kept[1].write(b"too late")


async def test_close_is_idempotent_and_survives_cancellation() -> None:
    stopped: list[Any] = []
    server = DatagramServer(factory(EchoDatagram), address=("127.0.0.1", 0))
    server.bind_event("stop", lambda sender, exc=None: stopped.append(sender))
    await server.create_endpoint()
    closing = asyncio.create_task(server.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(server.close(), server.close())
    assert stopped == [server]
    with pytest.raises(RuntimeError, match="closed: a server serves once"):
        await server.create_endpoint()


async def test_max_requests_stops_the_server() -> None:
    async with served(max_requests=3) as server:
        with peer() as one:
            for number in range(3):
                one.send(b"%d" % number, server.address)
            await server.event("stop")  # type: ignore[misc]
            for number in range(3):
                assert (await one.receive())[0] == b"%d" % number
        assert server.requests_processed >= 3


async def test_sockets_that_are_given_are_served_and_closed() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    server = DatagramServer(factory(EchoDatagram), sockets=[sock])
    async with server, endpoint(sock.getsockname()) as client:
        assert await client.request(b"given") == b"given"
    assert sock.fileno() == -1
    unused = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await DatagramServer(factory(EchoDatagram), sockets=[unused]).close()
    assert unused.fileno() == -1


# Arguments


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"address": "unix:/tmp/x"}, "unix:/tmp/x"),
        ({"address": ("127.0.0.1", -1)}, "-1"),
        ({"sockets": 3}, "sockets is 3"),
        ({"sockets": ["x"]}, "sockets has 'x'"),
        ({"max_requests": -1}, "max_requests is -1"),
    ],
)
def test_bad_arguments_are_named(kw: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DatagramServer(factory(EchoDatagram), **kw)


async def test_what_can_not_be_served_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither an address nor sockets"):
        await DatagramServer(factory(EchoDatagram)).create_endpoint()
    with pytest.raises(TypeError, match="no protocol_factory"):
        await DatagramServer(address=("127.0.0.1", 0)).create_endpoint()
    server = DatagramServer(partial(Connection, EchoDatagram), address=("127.0.0.1", 0))
    with pytest.raises(TypeError, match="expected a DatagramProtocol"):
        await server.create_endpoint()
    async with served() as running:
        with pytest.raises(RuntimeError, match="serving already"):
            await running.create_endpoint()
