"""Events: named places where callbacks are bound, fired once or many times.

* :class:`Event` fires any number of times and calls its callbacks synchronously.
* :class:`OneTime` fires once; it can be awaited, and bound after it has fired.
* :class:`EventHandler` owns events by name and creates each when it is first asked for, so that
  an object whose events nobody uses holds none.

This module knows nothing of protocols, pools or sockets.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from typing import Any

from pulsar_client.exceptions import AbortEvent

__all__ = ["Callback", "Event", "EventHandler", "OneTime"]

#: Called as ``callback(sender, exc=None, **kw)``; data events pass ``data=``.
Callback = Callable[..., object]

_logger = logging.getLogger("pulsar_client.events")
_UNSET: Any = object()

# Life of a OneTime event; plain integers, compared on the path of every request.
_PENDING, _FIRING, _DONE = range(3)


def _check_callback(callback: object, name: str) -> None:
    if not callable(callback):
        raise TypeError(
            f"callback of event {name!r} is {callback!r}, expected a callable "
            "taking (sender, exc=None, **kw)"
        )


class Event:
    """An event that may fire many times.

    Args:
        name: what it is called in log lines and ``repr``.
        logger: where failing callbacks are logged with their traceback.
    """

    __slots__ = ("_callbacks", "_logger", "name")

    def __init__(self, name: str, *, logger: logging.Logger = _logger) -> None:
        self.name = name
        self._callbacks: list[Callback] = []
        self._logger = logger

    def __repr__(self) -> str:
        return f"<Event {self.name!r}: {len(self._callbacks)} callbacks>"

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """The bound callbacks, in the order in which they are called."""
        return tuple(self._callbacks)

    def bind(self, callback: Callback) -> None:
        """Add a callback; binding the same one again changes nothing.

        Raises:
            TypeError: ``callback`` is not callable.
        """
        _check_callback(callback, self.name)
        if callback not in self._callbacks:
            self._callbacks.append(callback)

    def unbind(self, callback: Callback) -> int:
        """Remove a callback and return how many were removed, 0 or 1."""
        try:
            self._callbacks.remove(callback)
        except ValueError:
            return 0
        return 1

    def fire(self, arg: object, **kw: Any) -> None:
        """Call every callback with ``(arg, **kw)``; a failing one is logged, the others run."""
        for callback in tuple(self._callbacks):
            try:
                result = callback(arg, **kw)
            except Exception:
                self._logger.exception("callback %r of event %r failed", callback, self.name)
                continue
            if result is not None and inspect.iscoroutine(result):
                result.close()
                self._logger.error(
                    "callback %r of event %r is a coroutine function; only one-time events "
                    "can wait for coroutines",
                    callback,
                    self.name,
                )


class OneTime:
    """An event that fires once; ``await event`` gives its result or raises its exception.

    Callbacks run in the order in which they were bound.  One that returns a coroutine (or a
    future) holds back those behind it until it has ended; the event is ``done()`` when all have
    run.  Cancelling a task that awaits the event takes back its own wait only.
    """

    __slots__ = ("_callbacks", "_exc", "_logger", "_result", "_state", "_task", "_waiters", "name")

    def __init__(self, name: str, *, logger: logging.Logger = _logger) -> None:
        self.name = name
        self._logger = logger
        self._state = _PENDING
        self._callbacks: list[Callback] | None = None
        self._waiters: list[asyncio.Future[None]] | None = None
        self._result: Any = None
        self._exc: BaseException | None = None
        # The one task that drives coroutine callbacks: kept here, it is not garbage collected.
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = ("pending", "firing", "done")[self._state]
        return f"<OneTime {self.name!r}: {state}>"

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """The callbacks that have not been called yet."""
        return tuple(self._callbacks or ())

    def fired(self) -> bool:
        """True as soon as the event has fired, also while callbacks still run."""
        return self._state != _PENDING

    def done(self) -> bool:
        """True once the event has fired and all its callbacks have ended."""
        return self._state == _DONE

    def result(self) -> Any:
        """What the event was fired with.

        Raises:
            asyncio.InvalidStateError: it is not done yet.
            BaseException: the event's exception, if it has one.
        """
        if self._state != _DONE:
            raise asyncio.InvalidStateError(f"event {self.name!r} is not done")
        if self._exc is not None:
            raise self._exc
        return self._result

    def exception(self) -> BaseException | None:
        """The event's exception, or None.

        Raises:
            asyncio.InvalidStateError: it is not done yet.
        """
        if self._state != _DONE:
            raise asyncio.InvalidStateError(f"event {self.name!r} is not done")
        return self._exc

    def bind(self, callback: Callback) -> None:
        """Add a callback; if the event is done it is called at once.

        Binding the same callback twice is one binding.

        Raises:
            TypeError: ``callback`` is not callable.
        """
        _check_callback(callback, self.name)
        if self._state == _DONE:
            self._callbacks = [callback]
            # A late callback sees the outcome; it can't change it any more.
            self._run(self._result, self._exc, {}, late=True)
        elif self._callbacks is None:
            self._callbacks = [callback]
        elif callback not in self._callbacks:
            self._callbacks.append(callback)

    def unbind(self, callback: Callback) -> int:
        """Remove a callback that has not been called; return how many were removed, 0 or 1."""
        if self._callbacks is None or callback not in self._callbacks:
            return 0
        self._callbacks.remove(callback)
        return 1

    def fire(self, arg: object, exc: BaseException | None = None, **kw: Any) -> None:
        """Fire the event with ``arg`` as its result, or with the exception ``exc``.

        Firing twice is logged as an error and does nothing.
        """
        self.complete(arg, arg, exc, **kw)

    def complete(
        self, sender: object, result: Any, exc: BaseException | None = None, **kw: Any
    ) -> None:
        """Fire with a result of its own: callbacks get ``sender``, awaiting gives ``result``."""
        if self._state != _PENDING:
            self._logger.error("one-time event %r was fired twice", self.name, stack_info=True)
            return
        self._state = _FIRING
        self._result = result
        self._exc = exc
        if self._callbacks:
            self._run(sender, exc, kw)
        else:
            self._finish()

    def settle(self, result: Any, exc: BaseException | None) -> None:
        """Mark the event as done without calling anything: it fired before it was created."""
        self._state = _DONE
        self._result = result
        self._exc = exc

    def _run(
        self,
        sender: object,
        exc: BaseException | None,
        kw: dict[str, Any],
        *,
        late: bool = False,
    ) -> None:
        """Call the callbacks up to the first that returns a coroutine; a task does the rest."""
        callbacks = self._callbacks
        while callbacks:
            callback = callbacks.pop(0)
            try:
                result = callback(sender, exc=exc, **kw)
            except AbortEvent as abort:
                exc = abort
                continue
            except (Exception, asyncio.CancelledError):
                self._logger.exception("callback %r of event %r failed", callback, self.name)
                continue
            if inspect.iscoroutine(result) or isinstance(result, asyncio.Future):
                try:
                    loop = asyncio.get_running_loop()
                except RuntimeError:
                    if inspect.iscoroutine(result):
                        result.close()
                    self._logger.exception(
                        "callback %r of event %r is a coroutine function and no loop runs",
                        callback,
                        self.name,
                    )
                    continue
                self._task = loop.create_task(
                    self._run_async(result, callback, sender, exc, kw, late=late),
                    name=f"callbacks of {self.name}",
                )
                return
        if not late:
            self._exc = exc
            self._finish()

    async def _run_async(
        self,
        awaitable: Coroutine[Any, Any, object] | asyncio.Future[object],
        callback: Callback,
        sender: object,
        exc: BaseException | None,
        kw: dict[str, Any],
        *,
        late: bool,
    ) -> None:
        try:
            await awaitable
        except AbortEvent as abort:
            exc = abort
        except asyncio.CancelledError:
            # Only the loop's shutdown cancels this task: whoever waits must not wait for ever.
            if not late and self._state != _DONE:
                self._finish()
            raise
        except Exception:
            self._logger.exception("callback %r of event %r failed", callback, self.name)
        self._task = None
        self._run(sender, exc, kw, late=late)

    def _finish(self) -> None:
        self._state = _DONE
        self._callbacks = None
        waiters = self._waiters
        if waiters is not None:
            self._waiters = None
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def __await__(self) -> Generator[Any, None, Any]:
        if self._state != _DONE:
            waiter = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = [waiter]
            else:
                self._waiters.append(waiter)
            try:
                yield from waiter
            except BaseException:
                # Cancelled: an abandoned wait costs no memory.
                if self._waiters is not None:
                    self._waiters.remove(waiter)
                raise
        if self._exc is not None:
            raise self._exc
        return self._result


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

    # Class-level defaults: an object that uses no event stores nothing for them.  Both dicts are
    # read, not written, by other classes of this package, to skip events nobody listens to.
    _loop: asyncio.AbstractEventLoop | None = None
    _one_time: dict[str, OneTime] | None = None
    _many_times: dict[str, Event] | None = None
    logger: logging.Logger = _logger

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        one_time_events: Iterable[str] | None = None,
        many_times_events: Iterable[str] | None = None,
    ) -> None:
        if loop is not None:
            if not isinstance(loop, asyncio.AbstractEventLoop):
                raise TypeError(f"loop is {loop!r}, expected an asyncio event loop or None")
            self._loop = loop
        if one_time_events is not None:
            self.ONE_TIME_EVENTS = (*self.ONE_TIME_EVENTS, *one_time_events)
        if many_times_events is not None:
            self.MANY_TIMES_EVENTS = (*self.MANY_TIMES_EVENTS, *many_times_events)

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
                event.settle(*past)
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
