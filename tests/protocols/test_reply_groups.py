"""Replies to requests that left together come in two turns, so that peer and client both work."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from line_codec import LineCodec
from protocol_kit import lost, turns

from pulsar_client import Connection, ConnectionClosed, DelimitedDecoder, Protocol, ProtocolError
from pulsar_client.testing import memory_pair


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
        self.write(b"".join(line + b"\n" for line in (*self.take(), *more)))


#: The second is so long that both do.
LEAVES_AT_ONCE = [b"short", b"long" * 20_000]


class Long(LineCodec):
    """Of long lines."""

    def __init__(self) -> None:
        DelimitedDecoder.__init__(self, b"\n", max_size=1_000_000)


@asynccontextmanager
async def joined(codec: Any = LineCodec) -> AsyncIterator[tuple[Connection, Scripted]]:
    near, far = Connection(codec=codec, pipeline=1000), Scripted()
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
        assert [waiter.result() for waiter in waiters] == [b"%d" % n for n in range(count)]
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
        near.data_received(b"".join(line + b"\n" for line in lines))
        assert all(waiter.done() for waiter in first)
        third = ask(near, 4)
        near.data_received(b"".join(line + b"\n" for line in far.take()))
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
        near.data_received(b"".join(line + b"\n" for line in lines[:7]))
        assert sum(waiter.done() for waiter in waiters) == 5
        near.data_received(b"".join(line + b"\n" for line in lines[7:]))
        assert [waiter.result() for waiter in waiters] == lines
        await turns()
        assert near.is_reusable


async def test_a_reply_that_nobody_asked_for_is_not_that_of_a_request_sent_meanwhile() -> None:
    """I16: what has arrived is given out before anything else is sent."""
    async with joined(Long) as (near, _):
        waiters = ask(near, 10)
        await turns()
        near.data_received(b"".join(b"%d\n" % number for number in range(11)))
        assert sum(waiter.done() for waiter in waiters) == 5
        late = [near.begin_request(line, None) for line in LEAVES_AT_ONCE]
        for end in await asyncio.gather(*late, return_exceptions=True):  # type: ignore[arg-type]
            assert isinstance(end, ConnectionClosed)
            assert not end.sent
            assert isinstance(end.__cause__, ProtocolError)
        assert [waiter.result() for waiter in waiters] == [b"%d" % n for n in range(10)]


async def test_who_asks_at_once_is_sent_behind_what_has_arrived() -> None:
    async with joined(Long) as (near, far):
        waiters = ask(near, 10)
        await turns()
        near.data_received(b"".join(line + b"\n" for line in far.take()))
        late = [near.begin_request(line, None) for line in LEAVES_AT_ONCE]
        assert [waiter.result() for waiter in waiters] == [b"%d" % n for n in range(10)]
        await turns()
        far.answer()
        assert await asyncio.gather(*late) == LEAVES_AT_ONCE  # type: ignore[arg-type]


async def test_an_abort_between_the_two_turns_fails_those_that_have_no_reply_yet() -> None:
    async with joined() as (near, far):
        waiters = ask(near, 10)
        await turns()
        near.data_received(b"".join(line + b"\n" for line in far.take()))
        near.abort()
        await turns()
        assert [waiter.result() for waiter in waiters[:5]] == [b"%d" % n for n in range(5)]
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
        assert await asyncio.gather(*waiters) == [b"%d" % number for number in range(10)]


async def test_some_were_cancelled_between_the_two_turns() -> None:
    async with joined() as (near, far):
        waiters = ask(near, 10)
        await turns()
        near.data_received(b"".join(line + b"\n" for line in far.take()))
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
            near.data_received(b"".join(line + b"\n" for line in lines[:8]))
            near.data_received(b"".join(line + b"\n" for line in lines[8:9]))
            await turns()
            near.data_received(lines[9] + b"\n")
            assert [waiter.result() for waiter in waiters] == lines
