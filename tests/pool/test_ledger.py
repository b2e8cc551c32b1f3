"""The book of the pool: every decision, without a loop."""

from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pulsar_client.pool.ledger import CLOSING, GONE, IDLE, LEASED, Dial, Entry, Ledger


class Waiter:
    """Somebody who waits; what an asyncio future is to the ledger."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.entry: Entry | None = None
        self.left = False

    def __repr__(self) -> str:
        return f"w{self.number}"

    def done(self) -> bool:
        return self.left or self.entry is not None

    def set_result(self, entry: Entry, /) -> None:
        assert not self.done(), f"{self} is served twice, or after it left"
        self.entry = entry


class Connection:
    pass


def opened(ledger: Ledger) -> Entry:
    """Let somebody ask, dial, and give the leased entry."""
    waiter = Waiter()
    ledger.wait(waiter, inf)
    assert ledger.next_dial() is not None
    entry = ledger.dial_succeeded(Connection())
    ledger.hand_over(entry)
    assert waiter.entry is entry
    return entry


def test_an_empty_book() -> None:
    ledger = Ledger(2)
    assert (ledger.size, ledger.leased, ledger.closing, ledger.dialling) == (0, 0, 0, 0)
    assert ledger.take_idle() is None
    assert ledger.next_dial() is None
    assert ledger.late(1e9) == ([], inf)
    assert ledger.leave_all() == []
    assert not ledger.leave(Waiter())


def test_the_connection_released_last_is_leased_first() -> None:
    ledger = Ledger(3)
    entries = [opened(ledger) for _ in range(3)]
    for entry in entries:
        ledger.hand_over(entry)
        assert entry.state == IDLE
    assert [ledger.take_idle() for _ in range(4)] == [*reversed(entries), None]
    assert ledger.leased == 3
    assert ledger.leases == 6


def test_a_waiter_is_told_whether_a_slot_is_free() -> None:
    ledger = Ledger(1)
    assert ledger.wait(Waiter(), inf)
    assert ledger.next_dial()
    assert not ledger.wait(Waiter(), inf)


def test_never_more_dials_than_waiters_or_slots() -> None:
    ledger = Ledger(3)
    waiters = [Waiter(number) for number in range(5)]
    ledger.wait(waiters[0], 7.0)
    dial = ledger.next_dial()
    assert dial is not None
    assert (dial.asker, dial.deadline) == (waiters[0], 7.0)
    assert ledger.next_dial() is None
    for waiter in waiters[1:]:
        ledger.wait(waiter, inf)
    askers = []
    while (dial := ledger.next_dial()) is not None:
        askers.append(dial.asker)
    assert askers == waiters[1:3]
    assert (ledger.size, ledger.dialling) == (3, 3)


def test_a_second_dial_for_one_whose_first_went_to_another() -> None:
    """I5, I14: everybody had a dial, one of them served somebody else."""
    ledger = Ledger(2)
    first, second = Waiter(1), Waiter(2)
    ledger.wait(first, inf)
    assert ledger.next_dial()
    ledger.wait(second, inf)
    assert ledger.next_dial()
    ledger.hand_over(ledger.dial_succeeded(Connection()))
    assert first.entry is not None
    ledger.dial_failed()
    dial = ledger.next_dial()
    assert dial is not None
    assert dial.asker is second


def test_a_closed_book_dials_no_more() -> None:
    ledger = Ledger(1)
    ledger.wait(Waiter(), inf)
    ledger.closed = True
    assert ledger.next_dial() is None


def test_the_late_are_taken_out_and_the_next_deadline_is_told() -> None:
    ledger = Ledger(1)
    waiters = {deadline: Waiter() for deadline in (3.0, 1.0, inf, 2.0)}
    for deadline, waiter in waiters.items():
        ledger.wait(waiter, deadline)
    assert ledger.late(0.5) == ([], 1.0)
    assert ledger.late(1.0) == ([waiters[1.0]], 2.0)
    assert ledger.late(5.0) == ([waiters[3.0], waiters[2.0]], inf)
    assert list(ledger.waiters) == [waiters[inf]]


def test_one_who_got_a_dead_connection_is_first() -> None:
    """I7."""
    ledger = Ledger(1)
    entry = opened(ledger)
    for number in range(3):
        ledger.wait(Waiter(number), inf)
    again = Waiter(9)
    ledger.wait(again, inf, first=True)
    ledger.hand_over(entry)
    assert again.entry is entry


def test_those_who_left_are_passed_over() -> None:
    """I6."""
    ledger = Ledger(1)
    entry = opened(ledger)
    waiters = [Waiter(number) for number in range(4)]
    for waiter in waiters:
        ledger.wait(waiter, inf)
    waiters[0].left = waiters[1].left = True
    ledger.hand_over(entry)
    assert waiters[2].entry is entry
    assert list(ledger.waiters) == [waiters[3]]


def test_a_connection_keeps_its_slot_until_it_is_gone() -> None:
    """I2."""
    ledger = Ledger(1)
    entry = opened(ledger)
    ledger.begin_close(entry)
    assert (entry.state, ledger.size, ledger.closing, ledger.leased) == (CLOSING, 1, 1, 0)
    assert not ledger.wait(Waiter(), inf)
    assert ledger.next_dial() is None
    ledger.end_close(entry)
    assert (entry.state, ledger.size, ledger.closing, ledger.retired) == (GONE, 0, 0, 1)
    assert ledger.next_dial() is not None


def test_a_detached_connection_frees_its_slot() -> None:
    ledger = Ledger(1)
    entry = opened(ledger)
    ledger.detach(entry)
    assert (entry.state, ledger.size, ledger.retired) == (GONE, 0, 1)


def test_impossible_steps_are_refused() -> None:
    ledger = Ledger(2)
    entry = opened(ledger)
    with pytest.raises(AssertionError, match="end of close in state"):
        ledger.end_close(entry)
    ledger.hand_over(entry)
    with pytest.raises(AssertionError, match="detaching an entry in state"):
        ledger.detach(entry)
    ledger.begin_close(entry)
    with pytest.raises(AssertionError, match="closing an entry in state"):
        ledger.begin_close(entry)


@pytest.mark.parametrize("error", [AttributeError, ValueError])
def test_whether_a_connection_judges_itself(error: type[Exception]) -> None:
    """I17: an attribute that fails is one that can't say yes."""

    class Failing:
        @property
        def is_reusable(self) -> bool:
            raise error

    assert not Entry(Connection()).judges_itself
    assert Entry(Failing()).judges_itself is (error is ValueError)


class LedgerMachine(RuleBasedStateMachine):
    """A pool that does everything the ledger asks for, and a model of who must be served.

    `line` is the queue as those who wait see it; `dials` the dials under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.line: list[Waiter] = []
        self.dials: list[Dial] = []
        self.leased: list[Entry] = []
        self.closing: list[Entry] = []
        self.number = 0
        self.given = self.opened = self.gone = 0
        self.now = 0.0

    @initialize(
        size=st.integers(1, 4),
        floor=st.integers(0, 3),
        limit=st.sampled_from([1, 2, inf]),
        lifo=st.booleans(),
    )
    def start(self, size: int, floor: int, limit: float, lifo: bool) -> None:
        self.ledger = Ledger(size, floor=min(size, floor), lifo=lifo)
        self.ledger.dial_limit = limit
        self.largest = size
        self.dial_what_is_due()

    def dial_what_is_due(self) -> None:
        ledger = self.ledger
        while (dial := ledger.next_dial()) is not None:
            if dial.asker is None:  # for the floor
                assert ledger.open - len(ledger.dying) + ledger.dialling - 1 < ledger.floor
            else:
                assert dial.asker in self.line
                assert dial.deadline == ledger.waiters[dial.asker]
            self.dials.append(dial)

    def serve(self, entry: Entry) -> None:
        """Hand over: to the first in line that has not left, else idle."""
        expected = next((waiter for waiter in self.line if not waiter.left), None)
        self.ledger.hand_over(entry)
        if expected is None:
            assert entry.state == IDLE
            self.line.clear()
        else:
            assert expected.entry is entry, "not the first in line"
            del self.line[: self.line.index(expected) + 1]
            self.leased.append(entry)
            self.given += 1

    @rule(wait=st.floats(0, 10) | st.just(inf))
    def ask(self, wait: float) -> None:
        entry = self.ledger.take_idle()
        while entry in self.ledger.dying:  # too old for a lease
            self.ledger.leases -= 1
            self.ledger.begin_close(entry)
            self.closing.append(entry)
            entry = self.ledger.take_idle()
        if entry is not None:
            assert not self.line, "overtakes somebody who waits"
            self.leased.append(entry)
            self.given += 1
            return
        self.number += 1
        waiter = Waiter(self.number)
        self.line.append(waiter)
        self.ledger.wait(waiter, self.now + wait)
        self.dial_what_is_due()

    @precondition(lambda self: self.line)
    @rule(data=st.data(), silently=st.booleans())
    def leave(self, data: Any, silently: bool) -> None:
        waiter = data.draw(st.sampled_from(self.line))
        waiter.left = True
        if not silently:  # else its task has not had its turn yet
            assert self.ledger.leave(waiter)
            assert not self.ledger.leave(waiter)
            self.line.remove(waiter)

    @rule(seconds=st.floats(0, 5))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        expected = [w for w in self.line if self.ledger.waiters[w] <= self.now]
        late, earliest = self.ledger.late(self.now)
        assert late == expected
        self.line = [waiter for waiter in self.line if waiter not in late]
        assert earliest == min(self.ledger.waiters.values(), default=inf)

    @precondition(lambda self: self.dials)
    @rule(data=st.data(), ok=st.booleans())
    def end_dial(self, data: Any, ok: bool) -> None:
        dial = data.draw(st.sampled_from(self.dials))
        self.dials.remove(dial)
        if ok:
            self.opened += 1
            entry = self.ledger.dial_succeeded(Connection())
            assert entry.state == LEASED
            if self.is_surplus():
                self.ledger.begin_close(entry)
                self.closing.append(entry)
            else:
                self.serve(entry)
            self.dial_what_is_due()
        else:
            self.ledger.dial_failed()
            if self.ledger.leave(dial.asker):
                self.line.remove(dial.asker)
            self.dial_what_is_due()

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.leased))
        self.leased.remove(entry)
        if self.is_surplus():
            self.ledger.begin_close(entry)
            self.closing.append(entry)
        else:
            self.serve(entry)

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release_old(self, data: Any) -> None:
        """One that grew old in use stays only if that is for the floor and hurts nobody (I24)."""
        ledger = self.ledger
        entry = data.draw(st.sampled_from(self.leased))
        self.leased.remove(entry)
        needed = ledger.open - len(ledger.dying) <= ledger.floor and not ledger.closed
        if ledger.put_aside(entry):
            assert needed
            assert not self.line
        else:
            assert not needed or self.line or ledger.size >= ledger.max_size
            ledger.begin_close(entry)
            self.closing.append(entry)
        self.dial_what_is_due()

    def is_surplus(self) -> bool:
        """True if a connection that comes back is not kept."""
        return self.ledger.closed or self.ledger.open > self.ledger.max_size

    @rule(size=st.integers(1, 5))
    def resize(self, size: int) -> None:
        ledger = self.ledger
        size = max(size, ledger.floor)
        ledger.resize(size)
        self.largest = max(self.largest, size)
        for entry in ledger.idle:
            if ledger.open <= size:
                break
            ledger.begin_close(entry)
            self.closing.append(entry)
        self.dial_what_is_due()

    @precondition(lambda self: self.ledger.idle and not self.ledger.closed)
    @rule(data=st.data())
    def grow_old(self, data: Any) -> None:
        """What the floor needs stays until its successor is there; the rest goes (I24, I25)."""
        ledger = self.ledger
        entry = data.draw(st.sampled_from(ledger.idle))
        if entry in ledger.dying:
            return
        if ledger.spare or ledger.size >= ledger.max_size:
            ledger.begin_close(entry)
            self.closing.append(entry)
        else:
            ledger.dying.add(entry)
        self.dial_what_is_due()

    @rule(limit=st.sampled_from([0, 1, inf]))
    def back_off(self, limit: float) -> None:
        """The target goes down, is probed, or is up."""
        self.ledger.dial_limit = limit
        self.dial_what_is_due()

    @precondition(lambda self: self.leased or self.ledger.idle)
    @rule(data=st.data())
    def die(self, data: Any) -> None:
        entry = data.draw(st.sampled_from([*self.leased, *self.ledger.idle]))
        if entry in self.leased:
            self.leased.remove(entry)
        self.ledger.begin_close(entry)
        self.closing.append(entry)
        self.dial_what_is_due()

    @precondition(lambda self: self.closing)
    @rule(data=st.data())
    def gone_at_last(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.closing))
        self.closing.remove(entry)
        self.ledger.end_close(entry)
        self.gone += 1
        self.dial_what_is_due()

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def detach(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.leased))
        self.leased.remove(entry)
        self.ledger.detach(entry)
        self.gone += 1
        self.dial_what_is_due()

    @rule(really=st.integers(0, 9))
    def close(self, really: int) -> None:
        if really:
            return  # a closed book is dull: one in ten
        self.ledger.closed = True
        assert self.ledger.leave_all() == self.line
        self.line.clear()
        for entry in tuple(self.ledger.idle):
            self.ledger.begin_close(entry)
            self.closing.append(entry)

    @invariant()
    def the_books_balance(self) -> None:
        """I1, I2."""
        ledger = self.ledger
        assert ledger.size == len(ledger.entries) + ledger.dialling <= self.largest
        assert ledger.dialling == len(self.dials)
        assert ledger.closing == len(self.closing)
        assert ledger.leased == len(self.leased)
        assert len(ledger.entries) == len(ledger.idle) + len(self.leased) + len(self.closing)
        assert (ledger.leases, ledger.opened, ledger.retired) == (
            self.given,
            self.opened,
            self.gone,
        )
        for key, entry in ledger.entries.items():
            assert key == id(entry.connection)
            assert (entry.state == IDLE) == (entry in ledger.idle)
            assert (entry.state == CLOSING) == (entry in self.closing)

    @invariant()
    def the_line_is_kept(self) -> None:
        """I7, I8, I9."""
        assert list(self.ledger.waiters) == self.line
        assert self.ledger._dialled <= set(self.line)
        holders = [entry.connection for entry in self.leased]
        assert len({id(connection) for connection in holders}) == len(holders)

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        """I5, I10."""
        ledger = self.ledger
        if any(not waiter.left for waiter in self.line) and not ledger.closed:
            assert not ledger.idle
        free = ledger.size < ledger.max_size and ledger.dialling < ledger.dial_limit
        if free and not ledger.closed:
            assert ledger.dialling >= len(self.line), "a free slot and nobody dials for them"
            assert not ledger.below_floor, "a free slot and nobody dials for the floor (I25)"
        assert ledger.dying <= set(ledger.idle)


def test_any_sequence_of_steps() -> None:
    """I1, I2, I5 to I10."""
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=250,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )
