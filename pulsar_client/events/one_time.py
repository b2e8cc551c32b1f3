"""An event that fires once and can be awaited."""

import asyncio
import inspect
import logging
from asyncio import get_running_loop
from collections.abc import Coroutine, Generator
from typing import Any

from pulsar_client.events.event import Callback, check_callback, logger
from pulsar_client.exceptions import AbortEvent

__all__ = ["OneTime"]

# The life of the event; plain integers, compared on the path of every request.
_PENDING, _FIRING, _DONE = range(3)


class OneTime:
    """An event that fires once; ``await event`` gives its result or raises its exception.

    Callbacks run in the order in which they were bound.  One that returns a coroutine (or a
    future) holds back those behind it until it has ended; the event is ``done()`` when all have
    run.  Cancelling a task that awaits the event takes back its own wait only.
    """

    __slots__ = (
        "_callbacks",
        "_exc",
        "_kw",
        "_logger",
        "_result",
        "_sender",
        "_state",
        "_tasks",
        "_waiters",
        "name",
    )

    # What callbacks that are bound too late are called with; set when the event fires.
    _sender: object
    _kw: dict[str, Any]

    def __init__(self, name: str, *, logger: logging.Logger = logger) -> None:
        self.name = name
        self._logger = logger
        self._state = _PENDING
        self._callbacks: list[Callback] | None = None
        self._waiters: list[asyncio.Future[Any]] | None = None
        self._result: Any = None
        self._exc: BaseException | None = None
        # What drives coroutine callbacks: kept here, it is not garbage collected.
        self._tasks: set[asyncio.Task[None]] | None = None

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
        check_callback(callback, self.name)
        if self._state == _DONE:
            # A late callback sees the outcome; it can't change it any more.
            self._run([callback], self._sender, self._exc, self._kw, late=True)
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
        self._sender = sender
        self._kw = kw
        self._result = result
        self._exc = exc
        if self._callbacks:
            self._run(self._callbacks, sender, exc, kw)
        else:
            self._finish()

    def settle(self, sender: object, result: Any, exc: BaseException | None) -> None:
        """Mark the event as done without calling anything: it fired before it was created."""
        self._state = _DONE
        self._sender = sender
        self._kw = {}
        self._result = result
        self._exc = exc

    def _run(
        self,
        callbacks: list[Callback],
        sender: object,
        exc: BaseException | None,
        kw: dict[str, Any],
        *,
        late: bool = False,
    ) -> None:
        """Call the callbacks up to the first that returns a coroutine; a task does the rest."""
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
                    loop = get_running_loop()
                except RuntimeError:
                    if inspect.iscoroutine(result):
                        result.close()
                    self._logger.exception(
                        "callback %r of event %r is a coroutine function and no loop runs",
                        callback,
                        self.name,
                    )
                    continue
                task = loop.create_task(
                    self._run_async(callbacks, result, callback, sender, exc, kw, late=late),
                    name=f"callbacks of {self.name}",
                )
                if self._tasks is None:
                    self._tasks = set()
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return
        if not late:
            self._exc = exc
            self._finish()

    async def _run_async(
        self,
        callbacks: list[Callback],
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
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # The loop shuts down: whoever waits must not wait for ever.
                if not late:
                    self._exc = exc
                    self._finish()
                raise
            # What the callback waited for was cancelled: that is a failure like any other.
            self._logger.exception("callback %r of event %r failed", callback, self.name)
        except Exception:
            self._logger.exception("callback %r of event %r failed", callback, self.name)
        self._run(callbacks, sender, exc, kw, late=late)

    def _finish(self) -> None:
        self._state = _DONE
        self._callbacks = None
        waiters = self._waiters
        if waiters is not None:
            self._waiters = None
            for waiter in waiters:
                if waiter.done():
                    continue  # its task was cancelled
                if self._exc is None:
                    waiter.set_result(self._result)
                else:
                    waiter.set_exception(self._exc)
                    waiter.exception()  # a task cancelled in this turn is not owed a log line

    def __await__(self) -> Generator[Any, None, Any]:
        if self._state == _DONE:
            return self._outcome()
        waiter = get_running_loop().create_future()
        waiters = self._waiters
        if waiters is None:
            self._waiters = [waiter]
        else:
            if len(waiters) > 16:
                # An abandoned wait costs no memory.
                waiters[:] = [other for other in waiters if not other.done()]
            waiters.append(waiter)
        # The future's own iterator: a generator around it would cost as much again.
        return waiter.__await__()

    def _outcome(self) -> Generator[Any, None, Any]:
        if self._exc is not None:
            raise self._exc
        return self._result
        yield
