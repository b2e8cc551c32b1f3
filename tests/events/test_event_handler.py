"""Named events of an object."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest

from pulsar_client import Event, EventHandler, OneTime


class Handler(EventHandler):
    ONE_TIME_EVENTS = ("start", "stop")
    MANY_TIMES_EVENTS = ("data",)


def test_events_are_created_when_first_asked_for() -> None:
    handler = Handler()
    assert handler._one_time is None
    assert handler._many_times is None
    start, data = handler.event("start"), handler.event("data")
    assert isinstance(start, OneTime)
    assert isinstance(data, Event)
    assert handler.event("start") is start
    assert handler.event("data") is data
    assert handler.event("nonsense") is None
    assert handler.events == {"start": start, "stop": handler.event("stop"), "data": data}
    with pytest.raises(KeyError):
        handler.events["nonsense"]


def test_names_given_to_the_constructor_belong_to_that_object_only() -> None:
    handler = Handler(None, ["ready"], ["tick"])
    assert set(handler.events) == {"start", "stop", "ready", "data", "tick"}
    assert set(Handler().events) == {"start", "stop", "data"}
    plain = EventHandler(one_time_events=("a",), many_times_events=("b",))
    assert set(plain.events) == {"a", "b"}
    assert isinstance(plain.event("a"), OneTime)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    handler = Handler()
    for attempt in (
        lambda: handler.bind_event("nonsense", print),
        lambda: handler.fire_event("nonsense"),
    ):
        with pytest.raises(ValueError, match=r"'nonsense'.*start, stop, data"):
            attempt()
    with pytest.raises(ValueError, match="none"):
        EventHandler().bind_event("start", print)


def test_bind_events_ignores_unknown_names() -> None:
    seen: list[Any] = []
    handler = Handler()
    handler.bind_events(
        start=lambda sender, exc=None: seen.append("start"),
        data=lambda sender, exc=None, data=None: seen.append(data),
        nonsense=lambda sender: seen.append("nonsense"),
    )
    handler.fire_event("data", data=b"x")
    handler.fire_event("start")
    assert seen == [b"x", "start"]


def test_remove_callback_tells_how_many() -> None:
    handler = Handler()
    handler.bind_event("data", print)
    handler.bind_event("start", print)
    assert handler.remove_callback("data", print) == 1
    assert handler.remove_callback("data", print) == 0
    assert handler.remove_callback("start", print) == 1
    assert handler.remove_callback("nonsense", print) is None


async def test_fire_event_sends_the_handler_or_what_is_given() -> None:
    seen: list[Any] = []
    handler = Handler()
    handler.bind_event("data", lambda sender, exc=None, **kw: seen.append((sender, kw)))
    assert handler.fire_event("data") is handler.event("data")
    handler.fire_event("data", None, data=1)
    assert seen == [(handler, {}), (None, {"data": 1})]
    event = handler.fire_event("start", 5)
    assert event is handler.event("start")
    assert await handler.events["start"] == 5  # type: ignore[misc]
    handler.fire_event("stop", exc=ValueError("oops"))
    with pytest.raises(ValueError, match="oops"):
        await handler.event("stop")  # type: ignore[misc]


def test_copy_many_times_events() -> None:
    seen: list[Any] = []
    source, target = Handler(), Handler()
    source.bind_event("data", lambda sender, exc=None: seen.append(sender))
    source.bind_event("start", lambda sender, exc=None: seen.append("start"))
    target.copy_many_times_events(source)
    target.copy_many_times_events(source)
    target.copy_many_times_events(Handler())
    EventHandler().copy_many_times_events(source)  # knows none of them
    target.fire_event("data")
    target.fire_event("start")
    assert seen == [target]


def test_the_loop_is_checked_and_may_be_left_out() -> None:
    with pytest.raises(TypeError, match="'loop'"):
        EventHandler("loop")  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    try:
        EventHandler(loop)
    finally:
        loop.close()


def test_the_last_firing_costs_what_the_first_did() -> None:
    """A1."""
    handler = Handler()
    count = 0

    def callback(sender: object, exc: object = None, **kw: object) -> None:
        nonlocal count
        count += 1

    handler.bind_event("data", callback)
    callbacks = len(handler.events["data"].callbacks)

    def batch() -> float:
        started = time.perf_counter()
        for _ in range(10_000):
            handler.fire_event("data", data=b"x")
        return time.perf_counter() - started

    times = [batch() for _ in range(30)]
    assert count == 300_000
    assert len(handler.events["data"].callbacks) == callbacks
    assert min(times[-5:]) < 5 * min(times[:5])


def test_a_class_need_not_call_the_constructor_of_its_base() -> None:
    class Own(EventHandler):
        MANY_TIMES_EVENTS = ("tick",)

        def __init__(self) -> None:
            pass

    @dataclass(eq=False)
    class Late(EventHandler):
        MANY_TIMES_EVENTS = ("tick",)
        number: int = 1

    for handler in (Own(), Late()):
        seen: list[object] = []
        handler.bind_event("tick", lambda sender, exc=None, seen=seen: seen.append(sender))
        handler.fire_event("tick")
        assert seen == [handler]
    assert not EventHandler().events
