"""An object with named events, each created when it is first asked for."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pulsar_client.events.event import Callback, Event, logger
from pulsar_client.events.one_time import OneTime

__all__ = ["EventHandler"]

_UNSET: Any = object()


class EventHandler:
    """An object with named events.

    Args:
        loop: the event loop, or None to use the running loop at first need.
        one_time_events: names added to ``ONE_TIME_EVENTS`` for this object.
        many_times_events: names added to ``MANY_TIMES_EVENTS`` for this object.

    Raises:
        TypeError: ``loop`` is not an event loop.
    """

    ONE_TIME_EVENTS: tuple[str, ...] = ()
    MANY_TIMES_EVENTS: tuple[str, ...] = ()

    _loop: asyncio.AbstractEventLoop | None = None
    # Both are read, not written, by other classes of this package, to skip events nobody listens
    # to.  An object that uses no event stores nothing for them: its class has them, unless its
    # constructor sets them first, as those do that are asked all the time: since Python 3.12 an
    # attribute that hides one of the class is found as slowly as that.
    _one_time: dict[str, OneTime] | None
    _many_times: dict[str, Event] | None
    _sets_events = False
    logger: logging.Logger = logger

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        one_time_events: Iterable[str] | None = None,
        many_times_events: Iterable[str] | None = None,
    ) -> None:
        if not hasattr(self, "_one_time"):
            self._one_time = self._many_times = None
        if loop is not None:
            if not isinstance(loop, asyncio.AbstractEventLoop):
                raise TypeError(f"loop is {loop!r}, expected an asyncio event loop or None")
            self._loop = loop
        if one_time_events is not None:
            self.ONE_TIME_EVENTS = (*self.ONE_TIME_EVENTS, *one_time_events)
        if many_times_events is not None:
            self.MANY_TIMES_EVENTS = (*self.MANY_TIMES_EVENTS, *many_times_events)

    def __init_subclass__(cls, **kw: Any) -> None:
        super().__init_subclass__(**kw)
        if not cls._sets_events:
            cls._one_time = cls._many_times = None

    def event(self, name: str) -> Event | OneTime | None:
        """The event of that name, or None if this object has no such event."""
        if name in self.ONE_TIME_EVENTS:
            return self._one_time_event(name)
        if name in self.MANY_TIMES_EVENTS:
            if self._many_times is None:
                self._many_times = {}
            many = self._many_times.get(name)
            if many is None:
                many = self._many_times[name] = Event(name, logger=self.logger)
            return many
        return None

    @property
    def events(self) -> Mapping[str, Event | OneTime]:
        """Every event of this object by name."""
        names = (*self.ONE_TIME_EVENTS, *self.MANY_TIMES_EVENTS)
        return {name: self._known(name) for name in names}

    def bind_event(self, name: str, callback: Callback) -> None:
        """Add a callback, called as ``callback(sender, exc=None, **kw)``.

        Binding the same callback twice is one binding.  A callback bound to a one-time event
        that is done runs at once.

        Raises:
            ValueError: there is no event of that name.
            TypeError: ``callback`` is not callable.
        """
        self._known(name).bind(callback)

    def bind_events(self, **callbacks: Callback) -> None:
        """Bind those callbacks whose names are events of this object; ignore the others."""
        for name, callback in callbacks.items():
            event = self.event(name)
            if event is not None:
                event.bind(callback)

    def remove_callback(self, name: str, callback: Callback) -> int | None:
        """Remove a callback: the number removed (0 or 1), None for an unknown event."""
        event = self.event(name)
        return None if event is None else event.unbind(callback)

    def fire_event(self, name: str, arg: object = _UNSET, **kw: Any) -> Event | OneTime:
        """Call the callbacks of an event with ``(arg, **kw)``.

        Args:
            name: which event.
            arg: the sender; this object by default.
            **kw: passed on; ``exc=`` becomes the exception of a one-time event.

        Returns:
            The event.

        Raises:
            ValueError: there is no event of that name.
        """
        event = self._known(name)
        if arg is _UNSET:
            arg = self
        if isinstance(event, OneTime):
            self._bind_upstream(event)
            event.fire(arg, **kw)
        else:
            event.fire(arg, **kw)
            upstream = self._upstream_event(name)
            if upstream is not None:
                upstream.fire(arg, **kw)
        return event

    def copy_many_times_events(self, other: "EventHandler") -> None:
        """Bind the many-times callbacks of ``other`` to the events of the same names here."""
        for name, event in (other._many_times or {}).items():
            mine = self.event(name)
            if mine is not None:
                for callback in event.callbacks:
                    mine.bind(callback)

    # For subclasses of this package

    def _upstream(self) -> "EventHandler | None":
        """The handler whose many-times callbacks also get this object's events: its producer."""
        return None

    def _recall(self, name: str) -> tuple[Any, BaseException | None] | None:
        """Result and exception of a one-time event that fired while it did not exist yet."""
        return None

    def _fire_many(self, name: str, **kw: Any) -> None:
        """Fire a many-times event with this object as the sender; creates nothing."""
        if self._many_times is not None:
            event = self._many_times.get(name)
            if event is not None:
                event.fire(self, **kw)
        upstream = self._upstream_event(name)
        if upstream is not None:
            upstream.fire(self, **kw)

    def _fire_once(
        self, name: str, result: Any, exc: BaseException | None = None
    ) -> OneTime | None:
        """Fire a one-time event that ``_recall`` knows; without a listener None is created."""
        event = self._one_time.get(name) if self._one_time is not None else None
        if event is None:
            if self._upstream_event(name) is None:
                return None
            event = OneTime(name, logger=self.logger)
            if self._one_time is None:
                self._one_time = {}
            self._one_time[name] = event
        self._bind_upstream(event)
        event.complete(self, result, exc)
        return event

    def _one_time_event(self, name: str) -> OneTime:
        events = self._one_time
        if events is None:
            events = self._one_time = {}
        event = events.get(name)
        if event is None:
            event = events[name] = OneTime(name, logger=self.logger)
            past = self._recall(name)
            if past is not None:
                event.settle(self, *past)
        return event

    def _upstream_event(self, name: str) -> Event | None:
        upstream = self._upstream()
        if upstream is None or upstream._many_times is None:
            return None
        return upstream._many_times.get(name)

    def _bind_upstream(self, event: OneTime) -> None:
        upstream = self._upstream_event(event.name)
        if upstream is not None and not event.fired():
            for callback in upstream.callbacks:
                event.bind(callback)

    def _known(self, name: str) -> Event | OneTime:
        event = self.event(name)
        if event is None:
            known = ", ".join((*self.ONE_TIME_EVENTS, *self.MANY_TIMES_EVENTS)) or "none"
            raise ValueError(
                f"unknown event {name!r}; the events of {type(self).__name__} are: {known}"
            )
        return event
