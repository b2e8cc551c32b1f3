"""One exchange on a connection: a request and its response, seen from a client or a server.

A consumer knows the protocol that is spoken, and of its connection how to write and how to say
what became of the exchange; it knows nothing of pools, producers' kinds or sockets.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, Self

from pulsar_client.events import EventHandler, OneTime
from pulsar_client.exceptions import AbortRequest, ConnectionClosed
from pulsar_client.protocols.consumer_contract import checked_exception, complete, refuse_coroutine
from pulsar_client.protocols.starting import Started, Starting

__all__ = ["ProtocolConsumer"]

_SELF: Any = object()


class ProtocolConsumer(EventHandler):
    """Consumes the data of one exchange, on a client or on a server.

    Servers implement :meth:`data_received`; clients also :meth:`start_request`.  Order of a
    client request: the connection's ``connection_made``, :meth:`connection_made`, ``pre_request``,
    :meth:`start_request`, then for each piece of data the connection's ``data_received``, the
    ``data_received`` event, :meth:`data_received`, ``post_request`` when that finished the
    request, ``data_processed``, the connection's ``data_processed``.
    """

    _sets_events = True
    ONE_TIME_EVENTS = ("pre_request", "post_request")
    MANY_TIMES_EVENTS = ("data_received", "data_processed")

    #: The connection that feeds this consumer; None until it is attached.
    connection: Any
    #: What :meth:`start` was given; None before, and on servers.
    request: Any = None
    _given: Any
    _exc: BaseException | None = None
    _started: bool
    _done: bool
    # pre_request and its callbacks are over: it is too late to abort.
    _handed_over: bool
    _aborted: AbortRequest | None = None
    # A byte of the request was handed to the transport, or may have been.
    _sent: bool
    _tasks: set[asyncio.Task[None]] | None = None
    _waiter: asyncio.Future[Any] | None
    # The pipeline of its connection, if there is one, and its state there: waits for room, was
    # taken back unsent, nobody waits for its reply any more.
    _pipeline: Any
    _queued = False
    _begun: asyncio.Future[None] | None = None
    _withdrawn = False
    _held: list[bytes] | None = None
    _abandoned_at: float | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        one_time_events: Iterable[str] | None = None,
        many_times_events: Iterable[str] | None = None,
    ) -> None:
        # Made for every request: what each request reads is set here; see EventHandler.
        self._one_time = None
        self._many_times = None
        self._started = False
        self._done = False
        self._handed_over = False
        self._waiter = None
        self._given = None
        self._sent = False
        self._pipeline = None
        self.connection = None
        if loop is not None or one_time_events is not None or many_times_events is not None:
            super().__init__(loop, one_time_events, many_times_events)

    def __init_subclass__(cls, **kw: Any) -> None:
        super().__init_subclass__(**kw)
        if cls.__init__ is not ProtocolConsumer.__init__:
            complete(cls)

    def __repr__(self) -> str:
        state = "done" if self._done else "in flight" if self._started else "not started"
        request = repr(self.request)
        if len(request) > 60:
            request = f"{request[:57]}..."
        return f"<{type(self).__name__} {state}, request {request}, on {self.connection!r}>"

    @property
    def producer(self) -> Any:
        """The connection's producer, or None."""
        return None if self.connection is None else self.connection.producer

    @property
    def transport(self) -> Any:
        """The connection's transport, or None.

        Whoever writes to it directly is out of our sight, so from here on the request counts as
        (possibly) sent.
        """
        if self.connection is None:
            return None
        self._sent = True
        return self.connection.transport

    @property
    def address(self) -> Any:
        """The peer's address, or None without a connection."""
        return None if self.connection is None else self.connection.address

    @property
    def on_finished(self) -> OneTime:
        """The ``post_request`` event: awaiting it gives the result or raises.

        Cancelling that wait abandons the request; its connection then does not go back to a pool.
        """
        return self._one_time_event("post_request")

    def done(self) -> bool:
        """True once the request is finished, with a result or an exception."""
        return self._done

    # To implement

    def start_request(self) -> None:
        """Write the request (clients).

        An exception becomes the request's exception, and the connection is closed.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement start_request()")

    def data_received(self, data: bytes) -> bytes | None:
        """Take data from the peer.

        Returns:
            The bytes that are not this exchange's, or None.  A consumer that has not finished gets
            what it returned again, with the bytes that follow.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement data_received()")

    def eof_received(self) -> bool:
        """The peer closed its sending side while this exchange is in flight (servers).

        Returns:
            False if the message is incomplete: nothing will ever answer it, and the connection
            closes.  True, as by default, if an answer may still be due: the connection waits for
            it, for ``Connection.eof_grace`` seconds at most.
        """
        return True

    def connection_made(self, connection: Any) -> None:
        """A connection starts using this consumer; does nothing by default."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection was lost while this exchange was in flight.

        By default the request ends with :class:`~pulsar_client.ConnectionClosed`, whose ``sent``
        tells whether any byte of it had been written and whose cause is ``exc``.
        """
        if self._done:
            return
        sent = "after (part of) it was sent" if self._sent else "before any of it was sent"
        why = "closed" if exc is None else str(exc)
        closed = ConnectionClosed(
            f"{self.connection}: the request lost its connection {sent}: {why}", sent=self._sent
        )
        closed.__cause__ = exc
        self.finished(exc=closed)

    # To call

    def start(self, request: Any = None) -> Awaitable[Self]:
        """Begin: count the request, fire ``pre_request``, then call :meth:`start_request`.

        When no ``pre_request`` callback is a coroutine function all this has happened when
        ``start`` returns.  On a server only ``pre_request`` is fired.

        Returns:
            An awaitable that gives this consumer once the request is handed to the connection.
            It never raises what went wrong with the request: :attr:`on_finished` does.

        Raises:
            RuntimeError: the consumer was started before, or has no connection or transport.
        """
        self._check_start()
        connection = self.connection
        self._started = True
        self.request = request
        connection._requests_processed += 1
        producer = connection.producer
        if producer is not None:
            producer.request_started()
        if self._one_time is not None or (
            producer is not None and producer._many_times is not None
        ):
            event = self._fire_once("pre_request", self)
            if event is not None:
                if not event.done():
                    return self._start_later(event)
                exc = event.exception()
                if exc is not None and self._aborted is None:
                    self.finished(exc=exc)
        self._hand_over()
        return Started(self) if not self._queued else self._start_in_turn()

    def finished(self, result: Any = _SELF, exc: BaseException | None = None) -> None:
        """Complete the request; later calls do nothing.

        Args:
            result: what awaiting :attr:`on_finished` gives; this consumer by default.
            exc: what it raises instead.
        """
        if self._done:
            return
        self._done = True
        # Not this consumer itself: in a ring it would stay until the garbage collector runs.
        self._given = result
        if exc is not None:
            self._exc = exc = checked_exception(exc)
        connection = self.connection
        if connection is None:
            if self._one_time is not None:
                self._fire_once("post_request", self._result, exc)
            return
        # First, so that whoever is woken below finds the connection free.
        if self._pipeline is None:
            connection.request_done(self)
        else:
            self._pipeline.request_done(self)
        producer = connection.producer
        if producer is not None and producer._many_times is not None:
            self._fire_once("post_request", self._result, exc)
        elif self._one_time is not None:
            event = self._one_time.get("post_request")
            if event is not None:
                event.complete(self, self._result, exc)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None  # which has this consumer as its result: another ring
            if exc is None and self._one_time is None and not waiter.done():
                waiter.set_result(self if result is _SELF else result)
            else:
                self._wake(waiter)

    def abort_request(self) -> None:
        """Abort the request from a ``pre_request`` callback: nothing of it is written.

        :attr:`on_finished` then raises :class:`~pulsar_client.AbortRequest`.

        Raises:
            AbortRequest: always, in time: let it end the callback.
            RuntimeError: it is too late, the request was handed to the connection.
        """
        if self._handed_over or self._done:
            raise RuntimeError(f"{self!r}: too late to abort, the request was handed over")
        self._aborted = AbortRequest(f"{self!r} was aborted")
        raise self._aborted

    def write(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """Write through the connection; see ``Connection.write``.

        Raises:
            RuntimeError: there is no connection.
            ConnectionClosed: the connection is closing or lost.
        """
        connection = self.connection
        if connection is None:
            raise RuntimeError(f"{self!r} has no connection to write to")
        result: Awaitable[None] | None
        if self._pipeline is None:
            result = connection.write(data)
        else:
            result = self._pipeline.write(self, data)
        return result

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a part of this exchange that has to wait for something, as a task.

        The exchange owns the task: it is cancelled when the connection is lost.  An exception of
        it ends the exchange as one of ``data_received`` would: a client's caller gets it, a server
        logs it, and the connection is closed.

        On a server it says that the request is complete: what arrives behind it is the next one's,
        and is kept until the task has ended.  On a pipelined server, where the next one begins
        meanwhile, the task has to end in :meth:`finished`.

        Args:
            coroutine: what to run; usually it ends with ``self.finished()``.

        Raises:
            RuntimeError: there is no running event loop.
        """
        if self._pipeline is not None and self.connection.server_side:
            self._pipeline.complete(self)
        task = asyncio.get_running_loop().create_task(coroutine, name=f"task of {self!r}")
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    # Inside

    def cancel_tasks(self) -> None:
        """The connection is lost: nobody needs what the tasks of this exchange do."""
        for task in tuple(self._tasks or ()):
            task.cancel()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        assert self._tasks is not None
        self._tasks.discard(task)
        exc = None if task.cancelled() else task.exception()
        if self.connection is None:
            return
        if exc is not None:
            self.connection.request_failed(self, exc)
        elif not self._tasks and not self._done:
            self.connection.tasks_done(self)

    def begin(self, request: Any, waiter: "asyncio.Future[Any]") -> None:
        """``start`` for one who awaits only ``waiter``; it costs less when nobody listens."""
        connection = self.connection
        producer = connection.producer
        if self._one_time is not None or (
            producer is not None and producer._many_times is not None
        ):
            self.start(request)
            self._waiter = waiter
            if self._done:
                self._wake(waiter)
            return
        if self._started or connection._transport is None:
            self._check_start()
        self._waiter = waiter
        self._started = self._handed_over = True
        if self._done:
            self._wake(waiter)  # finished in connection_made
            return
        self.request = request
        connection._requests_processed += 1
        if producer is not None:
            producer.request_started()
        if self._pipeline is not None:
            self._pipeline.enter(self)
            return
        try:  # what _make_request() does, for a call less
            started: object = self.start_request()  # type: ignore[func-returns-value]
            if started is not None:
                refuse_coroutine(self, "start_request", started)
        except Exception as exc:  # noqa: BLE001 - it is the request's exception
            connection.request_failed(self, exc)

    def _wake(self, waiter: "asyncio.Future[Any]") -> None:
        event = self._one_time.get("post_request") if self._one_time is not None else None
        if event is not None and not event.done():
            # Bound in the course of the request, with callbacks that are coroutines.
            event.bind(lambda sender, exc=None, **kw: self._resolve(waiter, exc))
        else:
            self._resolve(waiter, self._exc if event is None else event.exception())

    def _resolve(self, waiter: "asyncio.Future[Any]", exc: BaseException | None) -> None:
        if waiter.done():
            return  # its task was cancelled
        if exc is None:
            waiter.set_result(self._result)
        else:
            waiter.set_exception(exc)
            waiter.exception()  # a task cancelled in this turn is not owed a log line

    def _check_start(self) -> None:
        if self._started:
            raise RuntimeError(
                f"{self!r} was started before: another request is in flight on its connection, or "
                "it is over; a consumer serves one"
            )
        if self.connection is None:
            raise RuntimeError(f"{self!r} has no connection")
        if self.connection._transport is None:
            raise RuntimeError(
                f"{self!r}: the connection has no transport, it is not made yet; "
                "await connection.event('connection_made') first"
            )

    def _hand_over(self) -> None:
        """The end of ``start``: the request goes to the connection, unless it is over."""
        self._handed_over = True
        if self._aborted is not None:
            self.finished(exc=self._aborted)
        if self._done or self.connection.server_side:
            return
        if self._pipeline is None:
            self._make_request()
        else:
            self._pipeline.enter(self)

    def _make_request(self) -> None:
        """Call :meth:`start_request`; what it raises is the request's exception."""
        try:
            started: object = self.start_request()  # type: ignore[func-returns-value]
            if started is not None:
                refuse_coroutine(self, "start_request", started)
        except Exception as exc:  # noqa: BLE001 - it is the request's exception
            self.connection.request_failed(self, exc)

    def _start_later(self, pre_request: OneTime) -> Awaitable[Self]:
        """``start`` with coroutine callbacks of ``pre_request``."""
        over = asyncio.get_running_loop().create_future()

        def wake(sender: object, **kw: object) -> None:
            if not over.done():
                over.set_result(None)

        pre_request.bind(self._pre_request_over)  # behind the callbacks that still run
        pre_request.bind(wake)
        self.on_finished.bind(wake)  # the connection may be lost before
        if self._pipeline is not None:
            self._pipeline.prepare(self)
        return Starting(self, over)

    def _start_in_turn(self) -> Awaitable[Self]:
        """``start`` while there is no room in the pipeline."""
        self._begun = asyncio.get_running_loop().create_future()
        self.on_finished.bind(lambda sender, exc=None, **kw: self._tell_begun())
        return Starting(self, self._begun)

    def _tell_begun(self) -> None:
        if self._begun is not None and not self._begun.done():
            self._begun.set_result(None)

    def _pre_request_over(self, sender: object, exc: BaseException | None = None) -> None:
        if exc is not None and self._aborted is None:
            self.finished(exc=exc)
        self._hand_over()
        self.connection.request_ready(self)

    @property
    def _result(self) -> Any:
        return self if self._given is _SELF else self._given

    def _upstream(self) -> EventHandler | None:
        producer: EventHandler | None = self.producer
        return producer

    def _recall(self, name: str) -> tuple[Any, BaseException | None] | None:
        if name == "post_request":
            return (self._result, self._exc) if self._done else None
        return (self, self._aborted) if self._started else None
