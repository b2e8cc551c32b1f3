"""Events that fire once: awaiting, late binding, coroutine callbacks, failures (A2)."""

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest

from pulsar_client import AbortEvent, AbortRequest, OneTime


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_awaiting_gives_what_it_was_fired_with_before_and_after() -> None:
    event = OneTime("made")
    assert not event.fired()
    assert not event.done()
    task = asyncio.ensure_future(event)
    await turns()
    assert not task.done()
    event.fire("me")
    assert event.fired()
    assert event.done()
    assert await task == "me"
    assert await event == "me"
    assert event.result() == "me"
    assert event.exception() is None


async def test_the_exception_reaches_early_late_and_repeated_waiters() -> None:
    """A2: also after a waiter was cancelled."""
    event = OneTime("made")
    early = asyncio.ensure_future(event)
    cancelled = asyncio.ensure_future(event)
    await turns()
    cancelled.cancel()
    await turns()
    assert cancelled.cancelled()
    oops = ValueError("oops")
    event.fire("me", exc=oops)
    for waiter in (early, event, event):
        with pytest.raises(ValueError, match="oops"):
            await waiter
    assert event.exception() is oops
    with pytest.raises(ValueError, match="oops"):
        event.result()


async def test_a_waiter_cancelled_in_the_turn_of_the_firing_leaves_the_others_alone() -> None:
    event = OneTime("made")
    first, second = asyncio.ensure_future(event), asyncio.ensure_future(event)
    await turns()
    event.fire("me", exc=ValueError("oops"))
    first.cancel()
    with pytest.raises(ValueError, match="oops"):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_abandoned_waits_cost_no_memory() -> None:
    event = OneTime("made")
    for _ in range(200):
        task = asyncio.ensure_future(event)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
    gc.collect()
    assert len(event._waiters or ()) < 50
    event.fire(None)


def test_result_and_exception_of_a_pending_event() -> None:
    event = OneTime("made")
    for look in (event.result, event.exception):
        with pytest.raises(asyncio.InvalidStateError, match="'made'"):
            look()


def test_a_callback_bound_after_the_firing_runs_at_once_with_the_same_arguments() -> None:
    """Late binding: the sender, not the result, and the keywords."""
    early: list[Any] = []
    late: list[Any] = []
    event = OneTime("done")
    event.bind(lambda sender, exc=None, **kw: early.append((sender, exc, kw)))
    event.complete("sender", "result", None, more=1)
    event.bind(lambda sender, exc=None, **kw: late.append((sender, exc, kw)))
    assert early == late == [("sender", None, {"more": 1})]


def test_a_late_callback_gets_the_exception() -> None:
    seen: list[Any] = []
    event = OneTime("done")
    oops = ValueError()
    event.fire("me", exc=oops)
    event.bind(lambda sender, exc=None: seen.append((sender, exc)))
    assert seen == [("me", oops)]


def test_firing_twice_is_logged_and_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    event = OneTime("made")
    event.bind(lambda sender, exc=None: seen.append(sender))
    event.fire(1)
    event.fire(2)
    assert seen == [1]
    assert event.result() == 1
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "'made' was fired twice" in record.getMessage()


def test_binding_twice_is_one_binding_and_unbinding_counts() -> None:
    seen: list[Any] = []

    def callback(sender: object, exc: object = None) -> None:
        seen.append(sender)

    event = OneTime("made")
    event.bind(callback)
    event.bind(callback)
    event.bind(print)
    assert event.callbacks == (callback, print)
    assert event.unbind(print) == 1
    assert event.unbind(print) == 0
    event.fire(1)
    assert seen == [1]
    assert event.unbind(callback) == 0
    with pytest.raises(TypeError, match="None"):
        event.bind(None)  # type: ignore[arg-type]


async def test_a_failing_callback_is_logged_and_hangs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A2."""
    seen: list[Any] = []

    def fails(sender: object, exc: object = None) -> None:
        raise ValueError("oops")

    async def fails_later(sender: object, exc: object = None) -> None:
        raise KeyError("later")

    event = OneTime("made")
    event.bind(fails)
    event.bind(fails_later)
    event.bind(lambda sender, exc=None: seen.append((sender, exc)))
    event.fire("me")
    assert await event == "me"
    assert seen == [("me", None)]
    assert ["oops" in r.exc_text or "later" in r.exc_text for r in caplog.records if r.exc_text]
    assert len(caplog.records) == 2


@pytest.mark.parametrize("kind", [AbortEvent, AbortRequest])
async def test_abort_event_becomes_the_exception(
    kind: type[AbortEvent], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def aborts(sender: object, exc: object = None) -> None:
        raise kind("no")

    event = OneTime("made")
    event.bind(aborts)
    event.bind(lambda sender, exc=None: seen.append(type(exc)))
    event.fire("me")
    with pytest.raises(kind, match="no"):
        await event
    assert seen == [kind]  # those behind it know
    assert not caplog.records


async def test_abort_event_of_a_coroutine_becomes_the_exception() -> None:
    async def aborts(sender: object, exc: object = None) -> None:
        await asyncio.sleep(0)
        raise AbortEvent("no")

    event = OneTime("made")
    event.bind(aborts)
    event.fire("me")
    with pytest.raises(AbortEvent, match="no"):
        await event


async def test_coroutine_callbacks_run_in_order_and_the_event_waits_for_them() -> None:
    order: list[str] = []
    gate = asyncio.Event()

    async def slow(sender: object, exc: object = None) -> None:
        order.append("slow begins")
        await gate.wait()
        order.append("slow ends")

    async def quick(sender: object, exc: object = None) -> None:
        order.append("quick")

    event = OneTime("made")
    event.bind(lambda sender, exc=None: order.append("sync 1"))
    event.bind(slow)
    event.bind(quick)
    event.bind(lambda sender, exc=None: order.append("sync 2"))
    event.fire("me")
    assert order == ["sync 1"]
    task = asyncio.ensure_future(event)
    await turns()
    assert event.fired()
    assert not event.done()
    assert not task.done()
    # Bound while it fires: behind the others.
    event.bind(lambda sender, exc=None: order.append("sync 3"))
    assert order == ["sync 1", "slow begins"]
    gate.set()
    assert await task == "me"
    assert order == ["sync 1", "slow begins", "slow ends", "quick", "sync 2", "sync 3"]


async def test_a_callback_may_return_a_future() -> None:
    order: list[str] = []
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    event = OneTime("made")
    event.bind(lambda sender, exc=None: future)
    event.bind(lambda sender, exc=None: order.append("behind"))
    event.fire("me")
    await turns()
    assert not event.done()
    assert order == []
    future.set_result(None)
    await event
    assert order == ["behind"]


async def test_what_a_callback_waits_for_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """A2: the callbacks behind it run, and an abort before it is not forgotten."""
    order: list[str] = []
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def aborts(sender: object, exc: object = None) -> None:
        raise AbortEvent("no")

    event = OneTime("made")
    event.bind(aborts)
    event.bind(lambda sender, exc=None: future)
    event.bind(lambda sender, exc=None: order.append("behind"))
    event.fire("me")
    await turns()
    future.cancel()
    with pytest.raises(AbortEvent):
        await event
    assert order == ["behind"]
    assert len(caplog.records) == 1


def test_the_end_of_the_loop_ends_the_wait() -> None:
    async def for_ever(sender: object, exc: object = None) -> None:
        await asyncio.get_running_loop().create_future()

    event = OneTime("made")

    async def main() -> None:
        event.bind(for_ever)
        event.fire("me")
        await turns()

    asyncio.run(main())
    assert event.done()


def open_gate(gate: asyncio.Future[None] | None) -> None:
    assert gate is not None
    gate.set_result(None)


async def test_late_coroutine_callbacks_all_end_and_are_kept_alive() -> None:
    ended: list[int] = []
    gates: list[weakref.ref[asyncio.Future[None]]] = []
    event = OneTime("made")
    event.fire("me")

    def make(number: int) -> Any:
        async def late(sender: object, exc: object = None) -> None:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            gates.append(weakref.ref(gate))  # nobody but this coroutine holds it
            await gate
            ended.append(number)

        return late

    for number in range(3):
        event.bind(make(number))
    await turns()
    gc.collect()
    assert event.done()
    for ref in reversed(gates):
        open_gate(ref())
    await turns()
    assert sorted(ended) == [0, 1, 2]


def test_a_coroutine_callback_without_a_loop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[object] = []

    async def callback(sender: object, exc: object = None) -> None:
        raise AssertionError

    event = OneTime("made")
    event.bind(callback)
    event.bind(lambda sender, exc=None: seen.append(sender))
    event.fire("me")
    assert event.done()
    assert seen == ["me"]
    assert "no loop runs" in caplog.text


async def test_repr_shows_the_state() -> None:
    async def callback(sender: object, exc: object = None) -> None: ...

    event = OneTime("made")
    assert repr(event) == "<OneTime 'made': pending>"
    event.bind(callback)
    event.fire(None)
    assert repr(event) == "<OneTime 'made': firing>"
    await event
    assert repr(event) == "<OneTime 'made': done>"
