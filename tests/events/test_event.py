"""Events that fire many times."""

import logging
from typing import Any

import pytest

from pulsar_client import Event


def test_callbacks_get_the_sender_and_keywords_in_order() -> None:
    calls: list[tuple[Any, ...]] = []
    event = Event("data")
    event.bind(lambda sender, exc=None, **kw: calls.append(("first", sender, exc, kw)))
    event.bind(lambda sender, exc=None, **kw: calls.append(("second", sender, exc, kw)))
    event.fire("me", data=b"x")
    event.fire("me")
    assert calls == [
        ("first", "me", None, {"data": b"x"}),
        ("second", "me", None, {"data": b"x"}),
        ("first", "me", None, {}),
        ("second", "me", None, {}),
    ]


def test_the_same_callback_twice_is_one_binding() -> None:
    calls: list[object] = []
    event = Event("data")
    event.bind(calls.append)
    event.bind(calls.append)
    assert len(event.callbacks) == 1
    event.fire(1)
    assert calls == [1]
    assert event.unbind(calls.append) == 1
    assert event.unbind(calls.append) == 0
    event.fire(2)
    assert calls == [1]


def test_what_cannot_be_called_is_refused_with_its_value() -> None:
    with pytest.raises(TypeError, match="'data' is 'nonsense'"):
        Event("data").bind("nonsense")  # type: ignore[arg-type]


def test_a_failing_callback_is_logged_with_its_traceback_and_the_others_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A2."""
    calls: list[object] = []
    event = Event("data")

    def fails(sender: object) -> None:
        raise ValueError("oops")

    event.bind(fails)
    event.bind(calls.append)
    event.fire(1)
    assert calls == [1]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "oops" in caplog.text
    assert "'data'" in record.getMessage()


def test_callbacks_may_bind_and_unbind_while_the_event_fires() -> None:
    calls: list[str] = []
    event = Event("data")

    def second(sender: object) -> None:
        calls.append("second")

    def once(sender: object) -> None:
        calls.append("once")
        event.unbind(once)
        event.bind(second)

    event.bind(once)
    event.fire(None)
    event.fire(None)
    assert calls == ["once", "second"]


def test_a_coroutine_callback_is_an_error_that_names_it(caplog: pytest.LogCaptureFixture) -> None:
    async def callback(sender: object) -> None:
        raise AssertionError

    event = Event("data")
    event.bind(callback)
    event.fire(None)  # a coroutine that is not closed would warn
    (record,) = caplog.records
    assert "only one-time events" in record.getMessage()


def test_repr() -> None:
    event = Event("data")
    event.bind(print)
    assert repr(event) == "<Event 'data': 1 callbacks>"
