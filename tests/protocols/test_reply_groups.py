"""Replies to requests that left together come in two turns, so that peer and client both work."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from line_codec import LineCodec
from protocol_kit import Line, lost, turns
from virtual_clock import virtual

from pulsar_client import (
    Connection,
    ConnectionClosed,
    DelimitedDecoder,
    Producer,
    Protocol,
    ProtocolError,
)
from pulsar_client.testing import memory_pair


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def as_data(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


class Scripted(Protocol):
    """A peer that keeps what it gets, and answers when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def take(self) -> list[bytes]:
        """The lines of all that has arrived."""
        lines = b"".join(self.pieces).splitlines()
        self.pieces.clear()
        return lines

    def answer(self, *more: bytes) -> None:
        """Echo them, in one piece."""
        self.write(as_data((*self.take(), *more)))


#: The second is so long that both do.
LEAVES_AT_ONCE = [b"short", b"long" * 20_000]


class Long(LineCodec):
    """Of long lines."""

    def __init__(self) -> None:
        DelimitedDecoder.__init__(self, b"\n", max_size=1_000_000)


@asynccontextmanager
async def joined(
    codec: Any = LineCodec, producer: Producer | None = None
) -> AsyncIterator[tuple[Connection, Scripted]]:
    near, far = Connection(codec=codec, pipeline=1000, producer=producer), Scripted()
    memory_pair(near, far)
    await turns()
    waiters = ask(near, 3)  # the very first would leave alone
    await turns()
    far.answer()
    await asyncio.gather(*waiters)
    try:
        yield near, far
    finally:
        near.abort()
        far.abort()
        await lost(near)


def ask(near: Connection, count: int, name: bytes = b"") -> "list[asyncio.Future[Any]]":
    made = [near.begin_request(b"%s%d" % (name, number), None) for number in range(count)]
    assert None not in made
    return made  # type: ignore[return-value]


async def half_given(near: Connection, far: Scripted) -> "list[asyncio.Future[Any]]":
    """Ten requests in the turn in which all their replies have arrived: five have theirs."""
    waiters = ask(near, 10)
    await turns()
    near.data_received(as_data(far.take()))
    assert sum(waiter.done() for waiter in waiters) == 5
    return waiters


async def replied(waiters: "list[asyncio.Future[Any]]") -> list[int]:
    """How many are done, in each turn in which there are more."""
    seen: list[int] = []
    for _ in range(12):
        done = sum(waiter.done() for waiter in waiters)
        if done and (not seen or done != seen[-1]):
            seen.append(done)
        await asyncio.sleep(0)
    return seen


@pytest.mark.parametrize(("count", "expected"), [(3, [3]), (4, [2, 4]), (51, [25, 51])])
async def test_half_of_those_that_left_together_in_each_of_two_turns(
    count: int, expected: list[int]
) -> None:
    async with joined() as (near, far):
        waiters = ask(near, count)
        await turns()
        assert len(far.pieces) == 1  # one write
        far.answer()
        assert await replied(waiters) == expected
        assert [waiter.result() for waiter in waiters] == numbers(count)
        assert near.is_reusable


async def test_two_groups_take_turns_and_each_turn_is_one_write() -> None:
    """Tasks that ask again and again: the peer has something to do at every time but the first."""
    async with joined() as (near, far):

        async def work() -> None:
            for number in range(20):
                assert await near.request(b"%d" % number) == b"%d" % number

        tasks = [asyncio.ensure_future(work()) for _ in range(50)]
        sizes: list[int] = []
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            sizes += (piece.count(b"\n") for piece in far.pieces)
            if far.pieces:
                far.answer()
        await asyncio.gather(*tasks)
        assert sum(sizes) == 50 * 20
        assert sizes[0] == 50
        assert sizes[1:] == [25] * 38


async def test_groups_are_not_divided() -> None:
    """Others are in flight, or are about to be: the peer has something to do."""
    async with joined() as (near, far):
        first = ask(near, 6)
        await turns()
        lines = far.take()
        second = ask(near, 5)
        await turns()
        near.data_received(as_data(lines))
        assert all(waiter.done() for waiter in first)
        third = ask(near, 4)
        near.data_received(as_data(far.take()))
        assert all(waiter.done() for waiter in second)
        await turns()
        far.answer()
        await asyncio.gather(*third)


async def test_what_arrives_in_part_is_given_out_as_it_comes() -> None:
    async with joined() as (near, far):
        waiters = ask(near, 10)
        await turns()
        lines = far.take()
        for line in lines:
            far.write(line[:-1])
            await turns()
            far.write(line[-1:] + b"\n")
            await turns()
            assert waiters.pop(0).result() == line


async def test_other_replies_that_come_before_the_next_turn_are_in_their_order() -> None:
    async with joined() as (near, far):
        waiters = ask(near, 10)
        await turns()
        lines = far.take()
        near.data_received(as_data(lines[:7]))
        assert sum(waiter.done() for waiter in waiters) == 5
        near.data_received(as_data(lines[7:]))
        assert [waiter.result() for waiter in waiters] == lines
        await turns()
        assert near.is_reusable


async def test_a_reply_that_nobody_asked_for_is_not_that_of_a_request_sent_meanwhile() -> None:
    """I16: what has arrived is given out before anything else is sent."""
    async with joined(Long) as (near, _):
        waiters = ask(near, 10)
        await turns()
        near.data_received(as_data(numbers(11)))
        assert sum(waiter.done() for waiter in waiters) == 5
        late = [near.begin_request(line, None) for line in LEAVES_AT_ONCE]
        for end in await asyncio.gather(*late, return_exceptions=True):  # type: ignore[arg-type]
            assert isinstance(end, ConnectionClosed)
            assert not end.sent
            assert isinstance(end.__cause__, ProtocolError)
        assert [waiter.result() for waiter in waiters] == numbers(10)


async def test_who_asks_at_once_is_sent_behind_what_has_arrived() -> None:
    async with joined(Long) as (near, far):
        waiters = await half_given(near, far)
        late = [near.begin_request(line, None) for line in LEAVES_AT_ONCE]
        assert [waiter.result() for waiter in waiters] == numbers(10)
        await turns()
        far.answer()
        assert await asyncio.gather(*late) == LEAVES_AT_ONCE  # type: ignore[arg-type]


async def test_an_abort_between_the_two_turns_fails_those_that_have_no_reply_yet() -> None:
    async with joined() as (near, far):
        waiters = await half_given(near, far)
        near.abort()
        await turns()
        assert [waiter.result() for waiter in waiters[:5]] == numbers(5)
        for waiter in waiters[5:]:
            with pytest.raises(ConnectionClosed) as caught:
                waiter.result()
            assert caught.value.sent


async def test_a_peer_that_closes_behind_its_replies_has_given_all_of_them() -> None:
    async with joined() as (near, far):
        waiters = ask(near, 10)
        await turns()
        far.answer()
        far.close()
        assert await asyncio.gather(*waiters) == numbers(10)


async def test_some_were_cancelled_between_the_two_turns() -> None:
    async with joined() as (near, far):
        waiters = await half_given(near, far)
        near.end_request(waiters[8], waiters[8])
        await turns()
        left = waiters[:8] + waiters[9:]
        assert [waiter.result() for waiter in left] == [b"%d" % n for n in range(10) if n != 8]
        assert near.is_reusable


async def test_a_codec_that_gives_a_list_loses_nothing_in_between() -> None:
    class Listing(LineCodec):
        def __iter__(self) -> Iterator[bytes]:
            return iter(list(super().__iter__()))

    async with joined(Listing) as (near, far):
        for name in (b"a", b"b"):
            waiters = ask(near, 10, name)
            await turns()
            lines = far.take()
            near.data_received(as_data(lines[:8]))
            near.data_received(as_data(lines[8:9]))
            await turns()
            near.data_received(lines[9] + b"\n")
            assert [waiter.result() for waiter in waiters] == lines


@pytest.mark.parametrize("listened", [False, True])
@virtual
async def test_what_arrives_in_the_turn_of_a_deadline_is_not_late(listened: bool) -> None:
    """As after a turn that took long: what is there to be read is read before timers end."""
    seen: list[object] = []
    producer, loop = Producer(), asyncio.get_running_loop()
    async with joined(producer=producer) as (near, _):
        if listened:
            producer.event("post_request").bind(lambda *args, **kw: seen.append(args))  # type: ignore[union-attr]
        # In the turn of the deadlines, and before they are looked at.
        loop.call_later(1.0, near.data_received, as_data(numbers(10)))
        ends = await asyncio.gather(
            *(near.request(b"%d" % number, 1.0) for number in range(10)),
            return_exceptions=True,
        )
        assert ends == numbers(10)
        assert near.is_reusable
    assert len(seen) == 10 * listened


class Parsing:
    """A codec that finds the replies, and what is none, when it is fed."""

    def __init__(self) -> None:
        self._lines = LineCodec()
        self._found: list[bytes] = []

    @property
    def pending(self) -> int:
        return self._lines.pending

    def encode(self, message: Any) -> bytes:
        return self._lines.encode(message)

    def feed(self, data: bytes) -> None:
        self._lines.feed(data)
        for line in self._lines:
            if line == b"bad":
                raise ValueError(line)
            self._found.append(line)

    def __iter__(self) -> Iterator[bytes]:
        while self._found:
            yield self._found.pop(0)


async def test_what_is_wrong_behind_replies_does_not_cost_those_that_have_arrived() -> None:
    async with joined(Parsing) as (near, _):
        waiters = ask(near, 10)
        await turns()
        near.data_received(as_data(numbers(8)))
        assert sum(waiter.done() for waiter in waiters) == 5
        near.data_received(b"bad\n")
        ends = await asyncio.gather(*waiters, return_exceptions=True)
        assert ends[:8] == numbers(8)
        assert isinstance(ends[8], ProtocolError)
        assert isinstance(ends[9], ConnectionClosed)


@pytest.mark.parametrize("lines", [LEAVES_AT_ONCE[:1], LEAVES_AT_ONCE])
async def test_what_a_callback_asks_is_not_answered_by_what_had_arrived(
    lines: list[bytes],
) -> None:
    """I16: a request that a reply makes is sent when all that came with the reply is given out."""
    asked: list[Any] = []
    async with joined(Long) as (near, far):
        alone = ask(near, 1)
        await turns()
        far.answer()
        await asyncio.gather(*alone)
        consumer = near.current_consumer()
        consumer.on_finished.bind(
            lambda *args, **kw: asked.extend(near.begin_request(line, None) for line in lines)
        )
        consumer.start(b"first")
        await turns()
        near.data_received(b"first\nunasked\n")
        for end in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(end, ConnectionClosed)
            assert not end.sent
            assert isinstance(end.__cause__, ProtocolError)
    assert len(asked) == len(lines)


@pytest.mark.parametrize("others", [0, 9])
@pytest.mark.parametrize("more", [b"unasked\n", b"unasked"])
async def test_nor_is_what_it_sends_at_once(others: int, more: bytes) -> None:
    """I16: whoever gets the transport from a callback comes behind what was asked before."""
    asked: list[Any] = []

    def callback(*args: object, **kw: object) -> None:
        asked.append(near.begin_request(b"second", None))
        assert near.transport is not None

    async with joined() as (near, far):
        consumer = near.current_consumer()
        consumer.on_finished.bind(callback)
        consumer.start(b"first")
        waiters = ask(near, others)
        await turns()
        near.data_received(as_data(far.take()) + more)
        (end,) = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(end, ConnectionClosed | ProtocolError)
        assert [waiter.result() for waiter in waiters] == numbers(others)


async def test_an_upgrade_between_the_two_turns_comes_behind_the_rest() -> None:
    async with joined() as (near, far):
        waiters = await half_given(near, far)
        near.upgrade(Listening)
        near.data_received(b"behind")
        assert [waiter.result() for waiter in waiters] == numbers(10)
        consumer = near.current_consumer()
        assert isinstance(consumer, Listening)
        assert consumer.heard == [b"behind"]


class Listening(Line):
    """What comes behind the upgrade."""

    def connection_made(self, connection: Any) -> None:
        super().connection_made(connection)
        self.heard: list[bytes] = []
        self.start()

    def start_request(self) -> None:
        pass

    def data_received(self, data: bytes) -> bytes:
        self.heard.append(data)
        return b""
