"""Exchanges that are made again: if that is safe, by one deadline, never over a cancellation."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from scripted_peer import Client, Line, MemoryClient, Peer, fill, open_client, peer, until

from pulsar_client import (
    AbstractClient,
    Connection,
    ConnectionClosed,
    Pool,
    PoolClosed,
    PoolTimeout,
    PoolUnavailable,
    ProtocolError,
    RequestTimeout,
)
from pulsar_client.testing import VirtualClockLoop, explore_cancellation, settled

__all__ = ["peer"]  # a fixture


# -- what a user sees --------------------------------------------------------------------------


async def test_a_request(peer: Peer) -> None:
    async with open_client(peer) as client:
        assert await client.request(b"one") == b"ONE"
        assert client.pool.stats().available == 1
        assert client.retries == 0
        assert client.info()["producer"]["retries"] == 0


async def test_an_operation_gets_the_lease_and_its_arguments(peer: Peer) -> None:
    async def twice(lease: Any, first: bytes, second: bytes) -> Any:
        assert lease.connection in lease.pool
        return await lease.request(first) + await lease.request(second)

    async with open_client(peer) as client:
        assert await client.perform(twice, b"a", b"b") == b"AB"
        other = Pool(client.connect, 1)
        async with other:
            assert await client.perform(twice, b"c", b"d", pool=other) == b"CD"
            assert other.available == 1


async def test_i21_the_server_has_closed_every_idle_connection(peer: Peer) -> None:
    """All ends are known to the system, none to the loop yet: no caller sees an error."""
    async with open_client(peer) as client:
        await fill(client, 10)
        peer.close_idle()
        # No turn of the loop in between: the pool can't have heard of it.
        assert await client.request(b"first", idempotent=True) == b"FIRST"
        assert client.retries >= 1
        answers = await asyncio.gather(
            *(client.request(b"%d" % n, idempotent=True) for n in range(30))
        )
        assert answers == [b"%d" % n for n in range(30)]


async def test_i21_ends_that_the_loop_has_seen_need_no_repetition(peer: Peer) -> None:
    """A stale connection leaves the pool by itself: not even an unsafe request fails."""
    async with open_client(peer) as client:
        await fill(client, 10)
        peer.close_idle()
        await until(lambda: not client.pool.available)
        assert await client.request(b"x") == b"X"
        assert client.retries == 0


async def test_i21_a_request_that_was_sent_is_not_repeated(peer: Peer) -> None:
    async with open_client(peer) as client:
        peer.plan = ["drop"]
        with pytest.raises(ConnectionClosed) as info:
            await client.request(b"pay")
        assert info.value.sent
        assert peer.lines == [b"pay"]
        assert client.retries == 0


async def test_i21_an_idempotent_one_is(peer: Peer) -> None:
    async with open_client(peer) as client:
        peer.plan = ["drop", "drop"]
        assert await client.request(b"look", idempotent=True) == b"LOOK"
        assert peer.lines == [b"look"] * 3
        assert client.retries == 2


async def test_i21_the_attempts_are_limited(peer: Peer) -> None:
    """The last error is the caller's, and says that it was not the first."""
    async with open_client(peer) as client:
        peer.plan = ["drop"] * 10
        with pytest.raises(ConnectionClosed) as info:
            await client.request(b"look", idempotent=True)
        assert len(peer.lines) == client.attempts == 3
        assert "attempt 3; the one before ended with ConnectionClosed" in info.value.__notes__[-1]
        with pytest.raises(ConnectionClosed):
            await client.request(b"look", idempotent=True, attempts=5)
        assert len(peer.lines) == 8


@pytest.mark.parametrize("how", ["call", "client", "class"])
async def test_i21_it_can_be_switched_off(peer: Peer, how: str) -> None:
    async with open_client(peer) as client:
        peer.plan = ["drop"]
        if how == "client":
            client.attempts = 1
        elif how == "class":
            client.__class__ = type("Once", (Client,), {"attempts": 1})
        with pytest.raises(ConnectionClosed):
            await client.request(b"x", idempotent=True, attempts=1 if how == "call" else None)
        assert peer.lines == [b"x"]


# -- what was sent -----------------------------------------------------------------------------


class Broken(Connection):
    """Closes before the first so many of its requests are written."""

    to_break = 0

    def write(self, data: Any) -> Any:
        if Broken.to_break:
            Broken.to_break -= 1
            self.close()
        return super().write(data)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setattr(Client, "protocol_factory", partial(Broken, Line))
    return lambda count: monkeypatch.setattr(Broken, "to_break", count)


async def test_i21_a_request_of_which_nothing_was_sent_is_repeated(
    peer: Peer, breaking: Callable[[int], None]
) -> None:
    """Also if twice would do harm: it was never made."""
    async with open_client(peer) as client:
        breaking(2)
        assert await client.request(b"pay") == b"PAY"
        assert peer.lines == [b"pay"]
        assert client.retries == 2


async def test_i21_so_is_an_operation_of_one_request(
    peer: Peer, breaking: Callable[[int], None]
) -> None:
    async def pay(lease: Any) -> Any:
        return await lease.request(b"pay")

    async with open_client(peer) as client:
        breaking(2)
        assert await client.perform(pay) == b"PAY"
        assert (peer.lines, client.retries) == ([b"pay"], 2)


async def test_i21_an_operation_whose_first_request_was_sent_is_not_repeated(
    peer: Peer, breaking: Callable[[int], None]
) -> None:
    """The error says that nothing was sent, and speaks of the second request only."""

    async def transfer(lease: Any) -> None:
        await lease.request(b"take")
        breaking(1)
        await lease.request(b"give")

    async with open_client(peer) as client:
        with pytest.raises(ConnectionClosed) as info:
            await client.perform(transfer)
        assert not info.value.sent
        assert peer.lines == [b"take"]
        assert client.retries == 0
        # Somebody else's requests, made before on the same connection, do not count.
        await fill(client, 1)
        breaking(1)
        assert await client.perform(lambda lease: lease.request(b"pay")) == b"PAY"
        assert client.retries == 1


async def test_i21_bytes_written_without_a_request_count_as_sent(peer: Peer) -> None:
    async def raw(lease: Any) -> None:
        lease.write(b"raw\n")
        lease.connection.close()
        lease.write(b"more\n")

    async with open_client(peer) as client:
        with pytest.raises(ConnectionClosed) as info:
            await client.perform(raw)
        assert not info.value.sent
        assert client.retries == 0


class Bare:
    """A pooled object that is none of the library's."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("idempotent", [False, True])
async def test_i21_an_object_that_can_not_tell_is_asked_again_only_if_that_is_safe(
    idempotent: bool,
) -> None:
    used = []

    async def connect() -> Bare:
        return Bare()

    async def ask(lease: Any) -> str:
        used.append(lease.connection)
        if len(used) == 1:
            raise ConnectionClosed("somebody else's word", sent=False)
        return "answer"

    async with AbstractClient() as client, Pool(connect) as pool:
        if idempotent:
            assert await client.perform(ask, pool=pool, idempotent=True) == "answer"
            assert used[0] is not used[1]  # the first came to a bad end and did not go back
        else:
            with pytest.raises(ConnectionClosed):
                await client.perform(ask, pool=pool)
            assert len(used) == 1


@pytest.mark.parametrize("idempotent", [False, True])
async def test_i21_many_requests_in_flight_on_one_connection(peer: Peer, idempotent: bool) -> None:
    """The connection is lost with all of them: none that was sent is made twice unasked (I16)."""
    async with open_client(peer) as client:
        client.protocol_factory = partial(Connection, Line, pipeline=50)
        client.pool = Pool(client.connect, 2, share=50)
        for round_ in range(20):
            peer.lines.clear()
            peer.plan = ["answer"] * round_ + ["drop"]
            messages = [b"%d/%d" % (round_, number) for number in range(40)]
            answers = await asyncio.gather(
                *(client.request(message, idempotent=idempotent) for message in messages),
                return_exceptions=True,
            )
            for message, answer in zip(messages, answers, strict=True):
                if isinstance(answer, BaseException):
                    assert isinstance(answer, ConnectionClosed), answer
                    assert answer.sent, answer
                    assert not idempotent
                else:
                    assert answer == message
                assert peer.lines.count(message) <= (client.attempts if idempotent else 1)
        assert client.retries >= 20 * idempotent


# -- what is never repeated --------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ProtocolError("garbage"),
        PoolTimeout("another pool's"),
        PoolUnavailable("another pool's"),
        PoolClosed("another pool's"),
        FileNotFoundError(2, "no such file"),
        ValueError("a bug"),
        KeyError("the key is missing"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_i21_other_errors_are_the_callers(peer: Peer, error: Exception) -> None:
    calls = []

    async def fail(lease: Any) -> None:
        calls.append(lease)
        raise error

    async with open_client(peer) as client:
        with pytest.raises(type(error)) as info:
            await client.perform(fail, idempotent=True)
        assert info.value is error
        assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "reset"),
        BrokenPipeError(32, "pipe"),
        TimeoutError("of the operation's own"),
        RequestTimeout("of the operation's own"),
        ConnectionClosed("sent", sent=True),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("idempotent", [False, True])
async def test_i21_lost_connections_and_time_outs_only_if_idempotent(
    peer: Peer, error: Exception, idempotent: bool
) -> None:
    calls = []

    async def fail(lease: Any) -> str:
        calls.append(lease)
        if len(calls) == 1:
            raise error
        return "done"

    async with open_client(peer) as client:
        if idempotent:
            assert await client.perform(fail, idempotent=True) == "done"
        else:
            with pytest.raises(type(error)):
                await client.perform(fail)
        assert len(calls) == 1 + idempotent


async def test_i21_garbage_is_not_asked_for_again(peer: Peer) -> None:
    async with open_client(peer) as client:
        peer.plan = ["garbage"]
        with pytest.raises(ProtocolError):
            await client.request(b"x", idempotent=True)
        assert peer.lines == [b"x"]


async def test_i21_a_server_that_is_down_is_the_pools_business(free_port: int) -> None:
    """The pool's backoff holds for everybody: no second dial for this caller."""
    dials = 0

    async def connect() -> Any:
        nonlocal dials
        dials += 1
        raise ConnectionRefusedError(111, "refused")

    async with AbstractClient() as client, Pool(connect) as pool:
        with pytest.raises(PoolUnavailable):
            await client.perform(lambda lease: lease.request(b"x"), pool=pool, idempotent=True)
        assert dials == 1
        assert client.retries == 0


async def test_i21_a_server_that_goes_down_meanwhile(peer: Peer) -> None:
    """The error of the second attempt tells how the first one ended."""
    async with open_client(peer) as client:
        await fill(client, 1)
        peer.plan = ["drop"]
        await peer.stop_listening()
        with pytest.raises(PoolUnavailable) as info:
            await client.request(b"x", idempotent=True)
        assert "attempt 2; the one before ended with ConnectionClosed" in info.value.__notes__[-1]


# -- cancellation ------------------------------------------------------------------------------


async def test_i11_a_cancelled_request_is_not_repeated(peer: Peer) -> None:
    async with open_client(peer) as client:
        peer.plan = ["stay silent"]
        asking = asyncio.ensure_future(client.request(b"x", idempotent=True))
        await until(lambda: peer.lines)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert peer.lines == [b"x"]
        assert client.pool.in_use == 0


async def test_i11_nor_one_that_is_cancelled_as_its_connection_ends(peer: Peer) -> None:
    """The loss is known and the cancellation asked for, in whichever order: nothing is resent."""
    async with open_client(peer) as client:
        for turns in range(6):
            await fill(client, 1)
            peer.lines.clear()
            peer.plan = ["stay silent"]
            asking = asyncio.ensure_future(client.request(b"x", idempotent=True))
            await until(lambda: peer.lines)
            peer.plan = ["answer"]
            connection = peer.connections[-1]
            connection.shutdown(socket.SHUT_RDWR)
            for _ in range(turns):
                await asyncio.sleep(0)
            if asking.cancel():
                await asyncio.wait([asking])
                assert asking.cancelled() or asking.result() == b"X"
                if len(peer.lines) > 1:
                    assert turns >= 3  # it had been resent before
            client.pool.stats()
            assert client.pool.in_use == 0


async def test_i11_a_cancel_between_two_attempts_ends_the_call() -> None:
    """Cancelled by the operation itself, in the moment in which it fails."""
    calls = 0

    async def connect() -> Bare:
        return Bare()

    async def fail(lease: Any) -> None:
        nonlocal calls
        calls += 1
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        raise ConnectionResetError

    async with AbstractClient() as client, Pool(connect) as pool:
        running = asyncio.ensure_future(client.perform(fail, pool=pool, idempotent=True))
        await asyncio.wait([running])
        assert running.cancelled()
        assert calls == 1
        assert client.retries == 0
        assert pool.in_use == 0


@pytest.mark.parametrize("timeout", [None, 10.0])
async def test_i11_cancelled_at_every_point(peer: Peer, timeout: float | None) -> None:
    """In a dial, in the wait for a reply, between two attempts: it ends at once."""
    clients: list[Client] = []

    async def exchange() -> None:
        peer.plan = ["drop"]
        clients.append(Client(peer.address, 1))
        assert await clients[-1].request(b"x", idempotent=True, timeout=timeout) == b"X"
        assert clients[-1].retries == 1

    async def check(point: int) -> None:
        client = clients.pop()
        await settled(client.pool)
        peer.plan = []
        assert await client.request(b"again", idempotent=True) == b"AGAIN"
        client.close()
        await client.wait_closed()
        await until(lambda: not peer.connections)

    exploration = await explore_cancellation(exchange, check=check)
    assert exploration.suspensions >= 5  # two dials, two replies, the turns between


async def test_i11_an_operation_cancelled_at_every_point(peer: Peer) -> None:
    clients: list[Client] = []

    async def operation(lease: Any) -> None:
        await asyncio.sleep(0)
        await lease.request(b"one")
        await lease.request(b"two")

    async def exchange() -> None:
        peer.plan = ["answer", "drop"]
        clients.append(Client(peer.address, 1))
        await clients[-1].perform(operation, idempotent=True)

    async def check(point: int) -> None:
        client = clients.pop()
        await settled(client.pool)
        client.close()
        await client.wait_closed()
        await until(lambda: not peer.connections)

    await explore_cancellation(exchange, check=check)


# -- one deadline ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("idle", "text"),
    [(0, "not done within 1 s"), (1, "no reply within 1.0 s")],
    ids=["dial", "idle"],
)
async def test_i12_the_deadline_holds_for_the_reply(peer: Peer, idle: int, text: str) -> None:
    async with open_client(peer, pool_size=1) as client:
        await fill(client, idle)
        peer.lines.clear()
        peer.plan = ["stay silent"]
        with pytest.raises(RequestTimeout, match=text):
            await client.request(b"x", timeout=1.0, idempotent=True)
        await until(lambda: peer.lines)
        assert peer.lines == [b"x"]  # no time left for another attempt
        assert client.pool.in_use == client.pool.available == 0


async def test_i12_the_deadline_holds_for_the_wait_for_a_connection(peer: Peer) -> None:
    async with open_client(peer, pool_size=1) as client, client.pool.connect():
        with pytest.raises(PoolTimeout):
            await client.request(b"x", timeout=0.05)


def test_i12_the_deadline_holds_for_all_attempts_together() -> None:
    attempts = 0

    async def silent(lease: Any) -> Any:
        nonlocal attempts
        attempts += 1
        async with asyncio.timeout(0.05):
            return await lease.request(b"x")

    async def main() -> None:
        async with MemoryClient(answers=False) as client:
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(TimeoutError):
                await client.perform(silent, timeout=0.42, idempotent=True, attempts=1000)
            assert loop.time() - started == pytest.approx(0.42)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())
    assert 2 <= attempts <= 9


async def test_i12_an_answer_in_time(peer: Peer) -> None:
    async with open_client(peer) as client:
        peer.plan = ["drop"]
        assert await client.request(b"x", timeout=10.0, idempotent=True) == b"X"


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [0, -1, 1.5, "3", True])
async def test_attempts_out_of_range(peer: Peer, attempts: Any) -> None:
    async with open_client(peer) as client:
        with pytest.raises(ValueError, match=f"attempts is {attempts!r}, expected an int >= 1"):
            await client.request(b"x", attempts=attempts)
        client.attempts = attempts
        with pytest.raises(ValueError, match=f"attempts is {attempts!r}, expected an int >= 1"):
            await client.request(b"x")


async def test_a_time_out_of_range(peer: Peer) -> None:
    async with open_client(peer) as client:
        with pytest.raises(ValueError, match=r"timeout is -1, expected seconds >= 0"):
            await client.request(b"x", timeout=-1)


async def test_a_client_without_a_pool() -> None:
    async with AbstractClient(name="poolless") as client:
        with pytest.raises(RuntimeError, match=r"'poolless'.* has no pool"):
            await client.request(b"x")
