"""The client's side of datagrams: matching, deadlines, sending again, refusals, purity."""

import asyncio
import contextlib
import logging
import sys
from typing import Any

import pytest
import tenacity
from datagram_kit import (
    KEY,
    Keyed,
    Patient,
    Plain,
    dead_address,
    endpoint,
    factory,
    has_ipv6,
    peer,
    served,
    turns,
    until,
)

from pulsar_client import (
    AbortRequest,
    AbstractUdpClient,
    Connection,
    ConnectionClosed,
    DatagramProtocol,
    MessageTooLarge,
    Pool,
    ProtocolConsumer,
    ProtocolError,
    RequestTimeout,
    TcpServer,
)
from pulsar_client.testing import UdpFaultProxy


class Quick(DatagramProtocol):
    """Sends again after a short while."""

    retry = tenacity.Retrying(
        wait=tenacity.wait_fixed(0.01) + tenacity.wait_random(0, 0.005),
        stop=tenacity.stop_after_attempt(50),
    )


def numbers(protocol: DatagramProtocol) -> dict[str, int]:
    return protocol.datagrams()


# The contract of consumers


async def test_the_consumer_of_a_stream_serves_datagrams_too() -> None:
    """One class, over TCP and UDP, on both sides."""

    class Shout(ProtocolConsumer):
        def start_request(self) -> None:
            self.write(self.request)

        def data_received(self, data: bytes) -> None:
            if self.connection.server_side:
                self.write(data.upper())
                self.finished()
            else:
                self.finished(data)

    tcp = TcpServer(lambda **kw: Connection(Shout, **kw), address=("127.0.0.1", 0))
    async with tcp, served(Shout) as udp:
        client = AbstractUdpClient()
        async with client:
            stream = await client.create_connection(
                tcp.address, lambda **kw: Connection(Shout, **kw)
            )
            datagrams = await client.create_datagram_endpoint(
                factory(Shout), remote_addr=udp.address
            )
            assert await stream.request(b"both") == b"BOTH"
            assert await datagrams.request(b"both") == b"BOTH"
            consumer = datagrams.current_consumer()
            assert datagrams.current_consumer() is consumer
            assert await consumer.start(b"by hand") is consumer
            assert consumer.address == udp.address
            assert consumer.producer is client
            assert consumer.transport is datagrams.transport
            assert await consumer.on_finished == b"BY HAND"
            assert datagrams.requests_processed == 2
            assert client.requests_processed == 3
            assert not consumer.connection.closed


async def test_the_order_of_events() -> None:
    log: list[str] = []

    class Logged(Plain):
        def connection_made(self, connection: Any) -> None:
            log.append("made")
            for name in self.events:
                self.bind_event(name, lambda sender, exc=None, name=name, **kw: log.append(name))

        def start_request(self) -> None:
            log.append("start_request")
            super().start_request()

        def data_received(self, data: bytes) -> None:
            log.append("data_received()")
            super().data_received(data)

    async with served() as server, endpoint(server.address, Logged) as client:
        for name in ("data_received", "data_processed", "before_write", "after_write"):
            client.bind_event(
                name, lambda sender, exc=None, name=name, **kw: log.append(f"endpoint {name}")
            )
        assert await client.request(b"?") == b"?"
    assert log == [
        "made",
        "pre_request",
        "start_request",
        "endpoint before_write",
        "endpoint after_write",
        "endpoint data_received",
        "data_received",
        "data_received()",
        "post_request",
        "data_processed",
        "endpoint data_processed",
    ]


async def test_coroutine_callbacks_of_pre_request_run_before_on_both_sides() -> None:
    log: list[str] = []

    async def slowly(consumer: Any, exc: BaseException | None = None) -> None:
        await asyncio.sleep(0)
        log.append("server" if consumer.connection.server_side else "client")

    async def refuse(consumer: Any, exc: BaseException | None = None) -> None:
        consumer.abort_request()

    async with served() as server:
        server.bind_event("pre_request", slowly)
        client = AbstractUdpClient(protocol_factory=factory(Keyed))
        client.bind_event("pre_request", slowly)
        async with client:
            protocol = await client.create_datagram_endpoint(remote_addr=server.address)
            assert await protocol.request(b"?") == b"?"
            assert log == ["client", "server"]
            client.bind_event("pre_request", refuse)
            with pytest.raises(AbortRequest):
                await protocol.request(b"?")
            assert numbers(protocol)["sent"] == 1
            assert protocol.is_reusable


async def test_exceptions_of_a_consumer_end_its_request_only() -> None:
    class Odd(Keyed):
        def start_request(self) -> None:
            if self.request == b"start":
                raise KeyError("start")
            super().start_request()

        def data_received(self, data: bytes) -> None:
            if data[KEY:] == b"data":
                raise ProtocolError("data")
            super().data_received(data)

    async with served() as server, endpoint(server.address, Odd) as client:
        results: Any = await asyncio.gather(
            *(client.request(message) for message in (b"start", b"data", b"fine")),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [KeyError, ProtocolError, bytes]
        assert client.is_reusable


async def test_use_of_a_closed_endpoint_and_wrong_use() -> None:
    async with served() as server, endpoint(server.address) as client:
        with pytest.raises(ValueError, match="timeout is -1"):
            await client.request(b"?", timeout=-1)
        with pytest.raises(ValueError, match="connected to"):
            await client.request(b"?", addr=("127.0.0.1", 1))
        assert await client.request(b"?", addr=server.address) == b"?"
        await client.close()
        with pytest.raises(ConnectionClosed):
            await client.request(b"?")
        with pytest.raises(ConnectionClosed):
            client.write(b"?")
        [serving] = server._protocols
        with pytest.raises(RuntimeError, match="a server makes no requests"):
            serving.current_consumer()
    with pytest.raises(TypeError, match="consumer_factory is 3"):
        DatagramProtocol(consumer_factory=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        DatagramProtocol(wrong=1)
    with pytest.raises(ValueError, match="max_payload is 0"):
        DatagramProtocol(max_payload=0)
    fresh = DatagramProtocol(consumer_factory=Keyed)
    assert fresh.closed
    assert fresh.session == 1
    await fresh.close()


# Matching


async def test_many_requests_are_in_flight_on_one_socket_u1() -> None:
    """U1: answered in the reverse order, each gets its own reply."""
    with peer() as server:
        async with endpoint(server.address) as client:
            waiting = [asyncio.create_task(client.request(b"%d" % n)) for n in range(100)]
            received = [await server.receive() for _ in waiting]
            assert len({data[:KEY] for data, _ in received}) == 100
            assert not client.is_reusable
            for data, source in reversed(received):
                server.send(data, source)
            assert await asyncio.gather(*waiting) == [b"%d" % n for n in range(100)]
            assert client.is_reusable


@pytest.mark.parametrize("connected", [True, False])
async def test_only_the_right_id_from_the_right_address_is_taken_u2(connected: bool) -> None:
    """U2: a wrong id is ignored, and so is what another address sends, connected or not."""
    with peer() as server, peer() as liar:
        where: dict[str, Any] = (
            {"remote_addr": server.address} if connected else {"local_addr": ("127.0.0.1", 0)}
        )
        async with AbstractUdpClient(protocol_factory=factory(Keyed)) as udp:
            client = await udp.create_datagram_endpoint(**where)
            waiting = asyncio.create_task(client.request(b"?", addr=server.address))
            data, source = await server.receive()
            wrong = bytes([data[0] ^ 1]) + data[1:]
            server.send(wrong + b" wrong id", source)
            server.send(b"", source)
            liar.send(data + b" wrong source", source)
            await turns(20)
            assert not waiting.done()
            server.send(data[:KEY] + b"right", source)
            assert await waiting == b"right"
            await until(lambda: numbers(client)["foreign"] == (2 if connected else 3))


async def test_late_and_duplicate_replies_are_dropped_and_counted_u2_i36() -> None:
    """U2, I36: they never reach a newer request."""
    with peer() as server:
        async with endpoint(server.address) as client:
            with pytest.raises(RequestTimeout, match=r"127\.0\.0\.1:\d+: no reply within 0.5 s"):
                await client.request(b"first", timeout=0.5)
            first, source = await server.receive()
            waiting = asyncio.create_task(client.request(b"second"))
            second, _ = await server.receive()
            server.send(first, source)
            server.send(second, source)
            server.send(second, source)
            assert await waiting == b"second"
            await until(lambda: numbers(client)["duplicates"] == 1)
            assert numbers(client)["late"] == 1


async def test_ids_are_not_used_again_within_the_time_out_u2() -> None:
    """U2: an id of the user's own that may still be answered is refused; ours are never such."""

    class Fixed(Keyed):
        def start_request(self) -> None:
            self.write(b"same" + self.request)

    with peer() as server:
        async with endpoint(server.address, Fixed) as client:
            waiting = asyncio.create_task(client.request(b"1", timeout=20.0))
            await server.receive()
            with pytest.raises(ValueError, match="is in use"):
                await client.request(b"2")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(ValueError, match="had no reply"):
                await client.request(b"3")


async def test_without_keys_requests_take_turns() -> None:
    with peer() as server:
        async with endpoint(server.address, Plain) as client:
            waiting = [asyncio.create_task(client.request(b"%d" % n)) for n in range(5)]
            for number in range(5):
                data, source = await server.receive()
                assert data == b"%d" % number
                await turns()
                with pytest.raises(BlockingIOError):
                    server.sock.recvfrom(100)
                server.send(b"answer to " + data, source)
            assert await asyncio.gather(*waiting) == [b"answer to %d" % n for n in range(5)]


@pytest.mark.parametrize("how", ["time-out", "cancelled"])
@pytest.mark.parametrize("port", ["any", "fixed"])
async def test_without_keys_a_late_reply_never_reaches_the_next_request_i36(
    how: str, port: str
) -> None:
    """I36: the next request has another port; with a fixed one it waits for the late reply."""
    with peer() as server, peer() as chosen:
        local = None if port == "any" else chosen.address
        chosen.sock.close()
        async with endpoint(server.address, Plain, local_addr=local) as client:
            if how == "time-out":
                with pytest.raises(RequestTimeout):
                    # For as long again the next one waits: a busy machine needs some of it.
                    await client.request(b"first", timeout=1.5)
            else:
                task = asyncio.create_task(client.request(b"first", timeout=10.0))
                await turns()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            first, source = await server.receive()
            assert client.is_reusable is (port == "any")
            waiting = asyncio.create_task(client.request(b"second", timeout=20.0))
            await turns()
            server.send(b"late", source)
            second, source = await server.receive()
            server.send(b"right", source)
            assert await waiting == b"right"
            assert (first, second) == (b"first", b"second")
            if port == "fixed" and how == "cancelled":
                assert numbers(client)["late"] == 1


async def test_requests_behind_one_that_times_out_go_on() -> None:
    with peer() as server:
        async with endpoint(server.address, Plain) as client:
            first = asyncio.create_task(client.request(b"first", timeout=0.02))
            rest = [asyncio.create_task(client.request(b"%d" % n)) for n in range(3)]
            await server.receive()
            for number in range(3):
                data, source = await server.receive()
                assert data == b"%d" % number
                server.send(data, source)
            assert await asyncio.gather(*rest) == [b"0", b"1", b"2"]
            with pytest.raises(RequestTimeout):
                await first


async def test_one_socket_talks_to_many_peers() -> None:
    udp = AbstractUdpClient(protocol_factory=factory(Plain))
    async with served() as one, served() as other, udp:
        client = await udp.create_datagram_endpoint(local_addr=("127.0.0.1", 0))
        with pytest.raises(ValueError, match="not connected"):
            await client.request(b"?")
        for wrong in (("localhost", 1), ("::1", 1), "x", 3):
            with pytest.raises(ValueError, match="expected"):
                await client.request(b"?", addr=wrong)
        results = await asyncio.gather(
            *(client.request(b"%d" % n, addr=(one, other)[n % 2].address) for n in range(20))
        )
        assert results == [b"%d" % n for n in range(20)]


async def test_ipv6_addresses_are_matched_in_every_spelling() -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    udp = AbstractUdpClient(protocol_factory=factory(Keyed))
    async with served(address=("::1", 0)) as server, udp:
        client = await udp.create_datagram_endpoint(local_addr=("::", 0))
        port = server.address[1]
        for host in ("::1", "0:0:0:0:0:0:0:1"):
            assert await client.request(b"?", addr=(host, port)) == b"?"


# Time and sending again


async def test_an_idempotent_request_is_sent_again_until_it_is_answered_u3() -> None:
    """U3: with jitter, the same datagram, and only if it does no harm."""
    async with served() as server, UdpFaultProxy(server.address, drop=0.6, seed=5) as proxy:
        async with endpoint(proxy.address, Patient, protocol=Quick) as client:
            results = await asyncio.gather(
                *(client.request(b"%d" % n, timeout=20.0) for n in range(50))
            )
            assert results == [b"%d" % n for n in range(50)]
            assert numbers(client)["retransmitted"] > 0
        async with endpoint(proxy.address, Keyed, protocol=Quick) as client:
            ends = await asyncio.gather(
                *(client.request(b"%d" % n, timeout=0.3) for n in range(50)),
                return_exceptions=True,
            )
            # Which are answered is a matter of chance, and of the time that a machine has for it.
            assert {type(end) for end in ends} - {bytes} == {RequestTimeout}
            assert numbers(client)["retransmitted"] == 0
            assert numbers(client)["sent"] == 50


async def test_the_deadline_is_for_all_tries_u3() -> None:
    """U3: however long the policy would go on."""
    with peer() as server:
        async with endpoint(server.address, Patient, protocol=Quick) as client:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(RequestTimeout, match=r"within 0.4 s \(\d+ tries\)"):
                await client.request(b"?", timeout=0.4)
            assert 0.395 <= loop.time() - began < 5
            tries = {(await server.receive())[0] for _ in range(numbers(client)["sent"])}
            assert len(tries) == 1
            assert 2 <= numbers(client)["sent"] <= 42


async def test_the_policy_limits_the_tries_u3() -> None:
    """U3: after so many tries it is over, before the deadline."""

    class Thrice(DatagramProtocol):
        retry = tenacity.Retrying(
            wait=tenacity.wait_random(0.001, 0.003),
            stop=tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(60),
        )

    with peer() as server:
        async with endpoint(server.address, Patient, protocol=Thrice) as client:
            with pytest.raises(RequestTimeout, match="3 tries"):
                await client.request(b"?", timeout=3600)
            assert numbers(client)["sent"] == 3


async def test_many_deadlines_need_one_timer_and_end_in_their_order() -> None:
    ended: list[float] = []

    async def ask(client: DatagramProtocol, seconds: float) -> None:
        with pytest.raises(RequestTimeout):
            await client.request(b"?", timeout=seconds)
        ended.append(seconds)

    with peer() as server:
        async with endpoint(server.address) as client:
            async with asyncio.TaskGroup() as group:
                for seconds in (0.3, 0.02, 0.16, 0.0):
                    group.create_task(ask(client, seconds))
            assert ended == [0.0, 0.02, 0.16, 0.3]


async def test_cancelling_a_request_abandons_it_at_once() -> None:
    with peer() as server:
        for consumer in (Keyed, Plain):
            async with endpoint(server.address, consumer) as client:
                for awaits in range(3):
                    task = asyncio.create_task(client.request(b"?"))
                    await turns(awaits)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert client.is_reusable


# Refusals


@pytest.mark.parametrize("connected", [True, False])
async def test_a_refusal_fails_the_requests_to_that_peer_at_once_i36(connected: bool) -> None:
    """I36: all of them, no others, not the next caller's; on an unconnected socket too."""
    if not connected and sys.platform != "linux":
        pytest.skip("only Linux tells an unconnected socket")
    dead = dead_address()
    where: dict[str, Any] = (
        {"remote_addr": dead} if connected else {"local_addr": ("127.0.0.1", 0)}
    )
    async with served() as server, AbstractUdpClient(protocol_factory=factory(Keyed)) as udp:
        client = await udp.create_datagram_endpoint(**where)
        for _ in range(3):
            waiting = [
                asyncio.create_task(client.request(b"?", timeout=50, addr=dead)) for _ in range(5)
            ]
            if not connected:
                good = asyncio.create_task(client.request(b"good", addr=server.address))
                assert await good == b"good"
            ends = await asyncio.wait_for(
                asyncio.gather(*waiting, return_exceptions=True), timeout=20
            )
            for end in ends:
                assert isinstance(end, ConnectionRefusedError)
                assert f"127.0.0.1:{dead[1]} can't be reached" in str(end)
            assert client.is_reusable
        assert numbers(client)["refused"] >= 3
        # A peer that is there now is asked without a trace of the refusals.
        with peer(dead) as back:
            task = asyncio.create_task(client.request(b"back", addr=dead))
            data, source = await back.receive()
            back.send(data, source)
            assert await task == b"back"


async def test_a_refusal_of_an_abandoned_request_is_not_the_next_ones_i36() -> None:
    """I36: the report comes while the next request is already in flight."""
    dead = dead_address()
    async with AbstractUdpClient(protocol_factory=factory(Keyed)) as udp:
        client = await udp.create_datagram_endpoint(remote_addr=dead)
        task = asyncio.create_task(client.request(b"first"))
        await asyncio.sleep(0)
        task.cancel()
        # The refusal of the first is there, and nobody has read it.
        with peer(dead) as back:
            waiting = asyncio.create_task(client.request(b"second"))
            data, source = await back.receive()
            assert data[KEY:] == b"second"
            back.send(data, source)
            assert await waiting == b"second"
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_error_of_an_unknown_peer_fails_nobody_i36() -> None:
    """I36: where the system does not say whom it could not reach."""
    with peer() as server:
        async with AbstractUdpClient(protocol_factory=factory(Keyed)) as udp:
            client = await udp.create_datagram_endpoint(local_addr=("127.0.0.1", 0))
            waiting = asyncio.create_task(client.request(b"?", addr=server.address))
            data, source = await server.receive()
            client.error_received(ConnectionResetError("somebody"))
            server.send(data, source)
            assert await waiting == b"?"
            assert numbers(client)["refused"] == 1


async def test_a_burst_that_is_being_read_ends_with_its_socket_i36() -> None:
    """I36: a reply that its consumer refuses takes the port with it, and nothing else."""

    class Refuses(Plain):
        def data_received(self, data: bytes) -> None:
            if data == b"bad":
                raise ProtocolError(data.decode())
            super().data_received(data)

    with peer() as server:
        async with endpoint(server.address, Refuses) as client:
            waiting = [asyncio.create_task(client.request(b"%d" % n)) for n in range(3)]
            data, source = await server.receive()
            for _ in range(3):
                server.send(b"bad", source)
            with pytest.raises(ProtocolError):
                await waiting[0]
            for number in (1, 2):
                data, source = await server.receive()
                server.send(data, source)
                assert await waiting[number] == b"%d" % number
            assert numbers(client)["refused"] == 0
    async with endpoint(dead_address(), Plain) as client:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await client.request(b"?")
        assert numbers(client)["refused"] == 3


async def test_a_request_that_takes_long_keeps_none_of_those_behind_it() -> None:
    async with served() as server, endpoint(server.address) as client:
        with peer() as silent:
            async with AbstractUdpClient(protocol_factory=factory(Keyed)) as udp:
                client = await udp.create_datagram_endpoint(local_addr=("127.0.0.1", 0))
                slow = asyncio.create_task(client.request(b"?", 1000, addr=silent.address))
                for _ in range(40):
                    await asyncio.gather(
                        *(client.request(b"?", 2000, addr=server.address) for _ in range(25))
                    )
                assert client._book is not None
                assert len(client._book._heap) <= 4 * 26 + 256
                assert not slow.done()
                slow.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await slow


async def test_error_received_may_be_overridden() -> None:
    seen: list[Exception] = []

    class Own(DatagramProtocol):
        def error_received(self, exc: Exception) -> None:
            seen.append(exc)
            super().error_received(exc)

    async with endpoint(dead_address(), protocol=Own) as client:
        with pytest.raises(ConnectionRefusedError):
            await client.request(b"?")
    assert isinstance(seen[0], ConnectionRefusedError)


# Sizes


async def test_payloads_stay_below_1400_bytes_by_default_u5() -> None:
    """U5: and more can be asked for."""
    async with served() as server:
        server_protocol = next(iter(server._protocols))
        async with endpoint(server.address, Plain) as client:
            assert len(await client.request(b"x" * 1399)) == 1399
            with pytest.raises(ValueError, match=r"of 1400 bytes, at most max_payload \(1399\)"):
                await client.request(b"x" * 1400)
            assert client.is_reusable
            client.max_payload = server_protocol.max_payload = 65507
            assert len(await client.request(b"x" * 65507)) == 65507


async def test_a_truncated_reply_is_one_clear_error_u5() -> None:
    """U5: of the request it answers; the others go on."""

    class Short(DatagramProtocol):
        max_datagram = 20

    with peer() as server:
        async with endpoint(server.address, protocol=Short) as client:
            waiting = [asyncio.create_task(client.request(b"%d" % n)) for n in range(2)]
            data, source = await server.receive()
            server.send(data + b"x" * 100, source)
            with pytest.raises(MessageTooLarge, match="more than 20 bytes"):
                await waiting[0]
            data, _ = await server.receive()
            server.send(data, source)
            assert await waiting[1] == b"1"
            assert numbers(client)["truncated"] == 1


# The end


async def test_closing_ends_every_request_a12() -> None:
    """A12: `close` works, and nobody waits for ever."""
    with peer() as server:
        for consumer in (Keyed, Plain):
            for end in ("close", "abort"):
                async with endpoint(server.address, consumer) as client:
                    waiting = [asyncio.create_task(client.request(b"?")) for _ in range(3)]
                    await turns()
                    getattr(client, end)()
                    for task in waiting:
                        with pytest.raises(ConnectionClosed) as caught:
                            await task
                        assert isinstance(caught.value.sent, bool)
                    await client.close()
                    assert client.closed


async def test_an_idle_endpoint_closes_and_one_in_use_does_not_a12() -> None:
    """A12: the idle time-out, which the ancestor did not have for datagrams."""
    with peer() as server:
        async with endpoint(server.address) as client:
            waiting = asyncio.create_task(client.request(b"?"))
            data, source = await server.receive()
            client.timeout = 0.05
            await asyncio.sleep(0.15)
            assert not client.closed
            server.send(data, source)
            assert await waiting == b"?"
            await client.event("connection_lost")  # type: ignore[misc]
            assert client.closed


async def test_a_pool_of_endpoints() -> None:
    class Client(AbstractUdpClient):
        address: Any = None

        def create_endpoint(self) -> Any:
            return self.create_datagram_endpoint(remote_addr=self.address)

    async with served() as server:
        client = Client(protocol_factory=factory(Keyed))
        client.address = server.address
        async with client:
            pool = client.pool = Pool(client.connect, pool_size=2)
            for _ in range(5):
                async with pool.connect() as lease:
                    assert await lease.request(b"pooled") == b"pooled"
            assert client.sessions == 1
            async with pool.connect() as lease:
                lease.connection.abort()
            async with pool.connect() as lease:
                assert await lease.request(b"again") == b"again"
            assert client.sessions == 2
            assert pool.available == 1
            await pool.close()
            assert pool.stats().closed == 2


async def test_a_request_in_flight_does_not_go_back_to_a_pool() -> None:
    with peer() as server:
        async with AbstractUdpClient(protocol_factory=factory(Keyed)) as client:
            pool = Pool(
                lambda: client.create_datagram_endpoint(remote_addr=server.address), pool_size=1
            )
            async with pool:
                lease = await pool.connect()
                waiting = asyncio.create_task(lease.request(b"?"))
                await turns()
                lease.close()
                with pytest.raises(ConnectionClosed):
                    await waiting
                assert pool.available == 0


# Sending


async def test_fire_and_forget_never_blocks_and_counts_what_it_drops_u6() -> None:
    """U6: also when the system takes nothing, or the socket is closed."""
    with peer() as server:
        async with endpoint(server.address) as client:
            assert client.send(b"one")
            assert (await server.receive())[0] == b"one"
            with pytest.raises(ValueError, match="max_payload"):
                client.send(b"x" * 1400)
            await client.close()
            assert not client.send(b"late")
            assert numbers(client)["send_dropped"] == 1


async def test_peers_do_no_more_than_a_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Keyed):
        @staticmethod
        def match_key(data: bytes) -> bytes:
            if len(data) < KEY:
                raise ProtocolError("too short")
            return data[:KEY]

    with caplog.at_level(logging.INFO), peer() as server:
        async with endpoint(server.address, Picky) as client:
            waiting = asyncio.create_task(client.request(b"?"))
            data, source = await server.receive()
            for garbage in (b"", b"x", b"x" * 60000, data[::-1]):
                server.send(garbage, source)
            server.send(data, source)
            assert await waiting == b"?"
            assert numbers(client)["malformed"] == 2
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_info_tells_what_became_of_the_datagrams() -> None:
    async with served() as server, endpoint(server.address) as client:
        await client.request(b"?")
        info = client.info()
        assert info["connection"]["requests_processed"] == 1
        assert info["datagrams"]["sent"] == info["datagrams"]["received"] == 1
        assert {"late", "duplicates", "foreign", "refused", "truncated"} <= info[
            "datagrams"
        ].keys()
