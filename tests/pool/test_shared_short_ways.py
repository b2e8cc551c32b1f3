"""The short ways of leases that are shared decide what the long ones do.

Two pools get the same calls; one of them never takes a short way.
"""

import asyncio
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pool_kit import Source, Watched, at_rest, task, turns, virtual

from pulsar_client import AbstractClient, Pool
from pulsar_client.pool.ledger import LEASED


class Begun(Watched):
    """Begins requests, and says itself when it takes none, as a connection with a codec does."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(number)
        self.asked: list[asyncio.Future[None]] = []

    @property
    def begins_requests(self) -> Any:
        return self.begin_request

    @property
    def is_shareable(self) -> bool:
        return not self.closed

    @property
    def is_reusable(self) -> bool:  # type: ignore[override]
        return not self.closed

    def begin_request(self, message: object, timeout: float | None) -> Any:
        if self.closed:
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked.append(waiter)
        return waiter

    def end_request(self, waiter: Any, request: Any) -> None:
        waiter.cancel()

    def die(self) -> None:
        for waiter in self.asked:
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("lost"))
        super().die()


class Twin:
    """A pool, and the leases that were begun in it."""

    def __init__(self, size: int, share: int, *, short: bool) -> None:
        self.pool = Pool(Source(Begun), size, share=share, timeout=None)
        self.pool._ledger.leases = 50  # soon one is measured
        if not short:
            self.pool._leases.look_closely()
        self.client = AbstractClient()
        self.client.pool = self.pool
        self.borrowed: list[Any] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.ends: list[asyncio.Event] = []

    def request(self) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self.client.request(b"x")))

    def reply(self, number: int) -> None:
        asked = [
            waiter
            for entry in self.pool._ledger.entries.values()
            for waiter in entry.connection.asked
            if not waiter.done()
        ]
        if asked:
            asked[number % len(asked)].set_result(None)

    def borrow(self) -> None:
        """What code does that makes its own requests."""
        entry = self.pool.borrow()
        if entry is not None and entry.connection.closed:
            entry.owner.give_back(entry, False, False)
            entry = self.pool._leases.take_now()
        if entry is not None:
            self.borrowed.append(entry)

    def give_back(self, number: int, discard: bool) -> None:
        if self.borrowed:
            entry = self.borrowed.pop(number % len(self.borrowed))
            entry.owner.give_back(entry, discard, False)

    def connect(self, exclusive: bool) -> None:
        end = asyncio.Event()
        self.ends.append(end)

        async def hold() -> None:
            async with self.pool.connect(exclusive=exclusive):
                await end.wait()

        self.tasks.append(asyncio.get_running_loop().create_task(hold()))

    def release(self, number: int) -> None:
        if self.ends:
            self.ends[number % len(self.ends)].set()

    def cancel(self, number: int) -> None:
        if self.tasks:
            self.tasks[number % len(self.tasks)].cancel()

    def lose(self, number: int) -> None:
        entries = list(self.pool._ledger.entries.values())
        if entries:
            entries[number % len(entries)].connection.die()

    def picture(self) -> Any:
        ledger: Any = self.pool._ledger
        ready = ledger.ready
        if ready is not None:
            assert ready is next(iter(ledger.roomy))
            assert ready.state == LEASED
            assert 0 < ready.users < ledger.share
            assert not any((ready.sealed, ready.exclusive, ledger.waiters, ledger.reserved))
        return (
            [
                (entry.connection.number, entry.state, entry.users, entry.exclusive, entry.sealed)
                for entry in ledger.entries.values()
            ],
            [entry.connection.number for entry in ledger.shelf],
            [entry.connection.number for entry in ledger.roomy],
            [entry.connection.number for entry in ledger.reserved],
            (len(ledger.waiters), ledger.waiting, ledger.dialling, ledger.closing, ledger.leases),
            [entry.connection.number for entry in self.borrowed],
            [task.done() for task in self.tasks],
        )

    async def end(self) -> None:
        for entry in self.borrowed:
            entry.owner.give_back(entry, False, False)
        for one in self.tasks:
            one.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.pool.close()
        at_rest(self.pool)


NUMBERS = st.integers(0, 11)
CALLS = st.one_of(
    st.tuples(st.just("borrow")),
    st.tuples(st.just("request")),
    st.tuples(st.just("request")),
    st.tuples(st.just("reply"), NUMBERS),
    st.tuples(st.just("reply"), NUMBERS),
    st.tuples(st.just("give_back"), NUMBERS, st.just(False)),
    st.tuples(st.just("give_back"), NUMBERS, st.booleans()),
    st.tuples(st.just("connect"), st.just(False)),
    st.tuples(st.just("connect"), st.just(True)),
    st.tuples(st.just("release"), NUMBERS),
    st.tuples(st.just("cancel"), NUMBERS),
    st.tuples(st.just("lose"), NUMBERS),
    st.tuples(st.just("turns"), st.sampled_from([1, 2, 6])),
)


@example(
    size=2,
    share=2,
    calls=[("borrow",), ("connect", True), ("turns", 1), ("give_back", 0, False)],
)
@example(  # one is reserved, and another has room
    size=3,
    share=3,
    calls=[
        *[("request",)] * 3,
        ("turns", 1),
        *[("connect", False)] * 4,
        ("turns", 6),
        ("turns", 6),
        ("connect", True),
        ("turns", 1),
        *[("reply", 0)] * 2,
        ("turns", 6),
        ("request",),
        ("turns", 1),
    ],
)
@settings(max_examples=600, deadline=None)
@given(
    size=st.integers(1, 3), share=st.integers(2, 4), calls=st.lists(CALLS, min_size=5, max_size=60)
)
def test_the_short_ways_decide_as_the_long_ones(
    size: int, share: int, calls: list[tuple[Any, ...]]
) -> None:
    @virtual
    async def run() -> None:
        short = Twin(size, share, short=True)
        long = Twin(size, share, short=False)
        try:
            for call, *arguments in [("connect", False), ("turns", 6), ("release", 0), *calls]:
                if call == "turns":
                    for _ in range(arguments[0]):
                        await asyncio.sleep(0)
                else:
                    getattr(short, call)(*arguments)
                    getattr(long, call)(*arguments)
                assert short.picture() == long.picture(), (call, *arguments)
        finally:
            await short.end()
            await long.end()

    run()


@virtual
async def test_nothing_stays_reserved_for_those_who_gave_up_in_the_same_turn() -> None:
    """I33: a connection that is idle is reserved for nobody."""
    pool = Pool(Source(Begun), 3, share=2, timeout=None)
    leases = [await pool.connect() for _ in range(6)]
    loners = [task(pool.connect(exclusive=True)) for _ in range(2)]
    await turns(2)
    ledger: Any = pool._ledger
    kept = [entry.connection for entry in ledger.reserved]
    assert len(kept) == 2
    for loner in loners:
        loner.cancel()
    for lease in leases:
        if lease.connection in kept:
            lease.close()
    await turns(2)
    assert not ledger.reserved
    alone = [await pool.connect(exclusive=True, timeout=1.0) for _ in range(2)]
    for lease in (*leases, *alone):
        lease.close()
    stats = pool.stats()
    assert (stats.available, stats.in_use) == (3, 0)
    await pool.close()
    at_rest(pool)
