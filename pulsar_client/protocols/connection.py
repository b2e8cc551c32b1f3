"""The bridge between a transport and the consumers of its data: a connection's life.

How it feeds consumers is in ``consumer_feed``, with the rules that keep exchanges pure.  This
module knows nothing of pools, of addresses, or of what the bytes mean.
"""

import asyncio
from asyncio import get_running_loop
from collections.abc import Callable
from math import inf
from typing import Any

from pulsar_client.durations import check_seconds
from pulsar_client.events import OneTime
from pulsar_client.exceptions import AbortRequest, RequestTimeout
from pulsar_client.protocols.answer_line import AnswerLine
from pulsar_client.protocols.codec import checked_codec
from pulsar_client.protocols.consumer_feed import ConsumerFeed
from pulsar_client.protocols.deadlines import DeadlineQueue, Together
from pulsar_client.protocols.message_consumer import MessageConsumer
from pulsar_client.protocols.message_pipeline import MessagePipeline
from pulsar_client.protocols.pipeline import Pipeline
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer
from pulsar_client.protocols.unread import has_unread

__all__ = ["Connection"]


class Connection(ConsumerFeed):
    """A stream connection that hands its data to consumers, one exchange after the other.

    Args:
        consumer_factory: makes the consumer of each exchange; called without arguments.
        timeout: idle seconds after which the connection closes; None or 0 for never.
        pipeline: how many requests may be in flight together, answered in order; None for one
            at a time.  A server reads no further ones meanwhile.
        codec: in place of a consumer factory, where a parser can tell the replies apart: makes
            the :class:`~pulsar_client.protocols.Codec` of a pipelined client's connection.
        **kw: see :class:`~pulsar_client.PulsarProtocol`.

    Raises:
        TypeError: ``consumer_factory`` is not callable, or a keyword is unknown.
        ValueError: a time-out or a limit out of range.
    """

    #: Seconds in which replies must be done once the peer has closed its sending side.
    eof_grace: float = 30.0

    #: Seconds that a pipelined connection waits for a reply that nobody wants any more, once
    #: there is none before it and while no other comes; then it closes.
    reply_grace: float = 10.0

    # Which request is incomplete, and how many bytes of it were taken; see message_limit.
    _taken: tuple[int, int] | None = None
    _eof_handle: asyncio.TimerHandle | None = None
    # What looks at the socket; False if nothing can.
    _poll: Any
    # The pipeline of a connection with a codec.
    _messages: MessagePipeline | None = None
    # Consumers can begin requests without request(): it is this class's, and nothing was upgraded.
    _begins = True

    def __init__(
        self,
        consumer_factory: Callable[[], ProtocolConsumer] | None = None,
        timeout: float | None = None,
        *,
        pipeline: int | None = None,
        codec: Callable[[], Any] | None = None,
        **kw: Any,
    ) -> None:
        if timeout is not None:
            kw["timeout"] = timeout
        super().__init__(consumer_factory, **kw)
        self._poll = None
        if type(self).request is not _REQUEST:
            self._begins = False
        if pipeline is not None and (
            isinstance(pipeline, bool) or not isinstance(pipeline, int) or pipeline < 1
        ):
            raise ValueError(
                f"pipeline is {pipeline!r}, expected a number of requests >= 1 or None"
            )
        if codec is not None:
            if (
                pipeline is None
                or consumer_factory is not None
                or self.server_side
                or not callable(codec)
            ):
                raise TypeError(
                    f"codec is {codec!r}, expected a callable that makes a codec; it goes with "
                    "pipeline=N and without a consumer_factory, on clients"
                )
            self.parser = checked_codec(codec(), codec)
            self._consumer_factory = MessageConsumer
            self._pipeline = self._messages = MessagePipeline(self, pipeline, self.parser)
        elif pipeline is not None:
            self._pipeline = (AnswerLine if self.server_side else Pipeline)(self, pipeline)

    @property
    def requests_processed(self) -> int:
        """How many requests were started on this connection."""
        return self._requests_processed

    @property
    def is_reusable(self) -> bool:
        """True only if the next exchange can't be touched by anything that was before.

        The transport is open, no request is in flight, nothing is buffered in either direction,
        and the connection was not upgraded away from its first protocol.
        """
        transport = self._transport
        if (
            self._current_consumer is not None
            or transport is None
            or self._closing
            or self._upgraded
            or self._buffered
            or self._last_request
            or self._paused
            or transport.is_closing()
            or transport.get_write_buffer_size()
            or (self.parser is not None and getattr(self.parser, "pending", 0))
            or (self._pipeline is not None and self._pipeline.busy)
        ):
            return False
        poll = self._poll
        if poll is None:
            return not has_unread(self)
        return poll is False or not poll.poll(0)  # which is has_unread(), for a call less

    @property
    def is_shareable(self) -> bool:
        """True if a further task may make requests here beside those that are in flight.

        The connection is pipelined, open and healthy, and was not upgraded.
        """
        return (
            self._pipeline is not None
            and not self.server_side
            and not self._closing
            and not self._upgraded
            and not self._last_request
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def info(self) -> dict[str, Any]:
        """What is known of this connection and its producer, for people to read."""
        info = super().info()
        info["connection"]["requests_processed"] = self._requests_processed
        pipeline = self._pipeline
        if pipeline is not None:
            info["connection"]["pipeline"] = {
                "limit": pipeline.limit,
                "in_flight": len(pipeline),
                "abandoned": pipeline.abandoned,
                "waiting": pipeline.waiting,
            }
        return info

    # Consumers

    async def request(self, message: Any, timeout: float | None = None) -> Any:
        """Make one request: ``start`` and ``on_finished`` of the current consumer, but cheaper.

        On a pipelined connection it waits its turn when there is no room.

        Args:
            message: what the consumer finds as its ``request``.
            timeout: seconds for all of it, the wait for room included; None for no limit.  It
                costs no timer of its own.

        Returns:
            The result of the request.

        Raises:
            RuntimeError: another request is in flight and the connection is not pipelined, or
                there is no transport.
            RequestTimeout: there was no reply in time.
            ConnectionClosed: the connection was lost; ``sent`` tells whether any byte was written.
            AbortRequest: a ``pre_request`` callback aborted it.
            ValueError: the time-out is no number of seconds.
            Exception: whatever the consumer raised or finished with, ``ProtocolError`` above all.

        Cancelling it, or a time-out, abandons the request.  One that was not sent yet never is.
        Otherwise a connection that is not pipelined is not reusable from then on; a pipelined one
        goes on, and the reply is read and thrown away when its turn comes (see ``reply_grace``).
        """
        if timeout is not None and not (timeout.__class__ is float and 0.0 <= timeout < inf):
            check_seconds("timeout", timeout)  # which costs as much as all the rest of a time-out
        waiter = None if self._messages is None else self.begin_request(message, timeout)
        request: Any = waiter
        if waiter is None:
            waiter = get_running_loop().create_future()
            request = consumer = self.current_consumer()
            consumer.begin(message, waiter)
            if timeout is not None and not waiter.done():
                self.expire_later(consumer, timeout)
        try:
            return await waiter
        except BaseException:
            self.end_request(waiter, request)
            raise

    @property
    def begins_requests(
        self,
    ) -> "Callable[[Any, float | None], asyncio.Future[Any] | None] | None":
        """What does as :meth:`begin_request` does, for whoever calls it often.

        None where consumers share a pipeline, there is another :meth:`request` or
        :attr:`is_shareable` than that of this class, or it was pipelined and is upgraded; which is
        not looked for at each request.
        """
        # Not by way of vars(): from then on Python 3.11 finds each attribute less quickly.
        own = getattr(self.request, "__func__", None) is _REQUEST
        if not own or type(self).is_shareable is not Connection.is_shareable:
            return None
        if self._messages is None:
            return self.begin_request if self._pipeline is None and self._begins else None
        same = type(self).begin_request is Connection.begin_request
        return self._messages.begin_request if same else self.begin_request

    def begin_request(self, message: Any, timeout: float | None) -> "asyncio.Future[Any] | None":
        """Make a request of which nothing is needed but the future of its reply.

        For code that makes so many that a coroutine for each counts.  When it stops to wait it
        calls :meth:`end_request`; nobody else will.

        Args:
            message: see :meth:`request`.
            timeout: seconds, not negative; None for no limit.

        Returns:
            The future; None, and nothing is made, where consumers share a pipeline, or have a
            :meth:`request` of a subclass, and where there is a codec and somebody listens to the
            events of requests, or the connection takes no more of them: use :meth:`request`.

        Raises:
            ConnectionClosed: the connection takes no more requests.
            RuntimeError: another request is in flight and the connection is not pipelined, or
                there is no transport.
            Exception: what the codec raised.
        """
        if self._messages is not None:
            return self._messages.begin_request(message, timeout)
        if self._pipeline is not None or not self._begins:
            return None
        waiter: asyncio.Future[Any] = get_running_loop().create_future()
        consumer = self.current_consumer()
        consumer.begin(message, waiter)
        if timeout is not None and not waiter.done():
            self.expire_later(consumer, timeout)
        return waiter

    def end_request(self, waiter: "asyncio.Future[Any]", request: Any) -> None:
        """Nobody waits for a request any more: the wait was cancelled, or is over.

        Args:
            waiter: its future.
            request: its consumer; the future for one of :meth:`begin_request`.
        """
        # Something else may have been thrown in than a cancellation: then it is pending.
        if waiter.cancelled() or waiter.cancel():
            if request is waiter and self._messages is None:
                request = self._current_consumer
                if request is None or request._waiter is not waiter:
                    return  # it is over
            self._give_up(request)

    def expire_later(self, request: Any, seconds: float) -> None:
        """Let a request, or several :class:`Together`, have a reply within seconds."""
        if self._deadlines is None:
            self._deadlines = DeadlineQueue(get_running_loop(), self._expire)
        self._deadlines.add(request, seconds)

    def _expire(self, request: Any, seconds: float) -> None:
        """The time of a request is over: its consumer's, its caller's future's, or of several."""
        if self._messages is not None:
            self._messages.give_rest()  # it is not late for what has arrived
        if isinstance(request, Together):
            for one in request:
                self._expire(one, seconds)
            return
        waiter: Any = request._waiter if isinstance(request, ProtocolConsumer) else request
        if waiter is None or waiter.done():
            return  # it was cancelled before, or has its reply
        what = f"{self}: a request" if waiter is request else f"{request!r}"
        waiter.set_exception(RequestTimeout(f"{what} had no reply within {seconds} s"))
        waiter.exception()  # a task cancelled in this turn is not owed a log line
        self._give_up(request)

    def _give_up(self, request: Any) -> None:
        """Nobody waits for the reply any more."""
        if not isinstance(request, ProtocolConsumer):
            self._pipeline.give_up(request)
        elif request._done:
            return
        elif not request._handed_over:
            # Coroutine callbacks of pre_request still run.
            request.finished(exc=AbortRequest(f"{request!r} was given up before it was sent"))
        elif self._pipeline is not None:
            self._pipeline.give_up(request)

    def leave_pipeline(self, data: bytes) -> None:
        """The connection was upgraded and nothing is in flight: one exchange at a time again.

        Args:
            data: what arrived behind the last reply; the new consumer's.
        """
        self._pipeline.flush()
        self._pipeline = self._messages = None
        self._begins = False
        self._current_consumer = None
        try:
            self.current_consumer()
        except Exception as exc:  # noqa: BLE001 - a factory or hook of the user's failed
            self._log_failure(None, exc)
            self._cut()
            return
        if data:
            self._feed(data)

    def upgrade(self, consumer_factory: Callable[[], ProtocolConsumer]) -> None:
        """Speak another protocol from here on (WebSocket, a tunnel, STARTTLS).

        Later consumers come from the new factory: the first as soon as the request in flight is
        done, at once if there is none.  It gets the bytes that arrived behind the current message.

        Raises:
            TypeError: ``consumer_factory`` is not callable or gives no consumer.
        """
        if not callable(consumer_factory):
            raise TypeError(
                f"consumer_factory is {consumer_factory!r}, expected a callable that makes a "
                "ProtocolConsumer"
            )
        self._consumer_factory = consumer_factory
        self._upgraded = True
        if self._pipeline is not None:
            self._pipeline.upgrade()
        elif self._current_consumer is None:
            self.current_consumer()

    def close_when_idle(self) -> OneTime:
        """Close as soon as the request in flight is done; at once if there is none.

        Returns:
            The ``connection_lost`` event, as ``close`` does.
        """
        self._last_request = True
        if not self._feeding and not self._is_busy():
            return self.close()
        return self._one_time_event("connection_lost")

    def close_after_request(self) -> None:
        """Close when the request in flight is done, or the next one if there is none."""
        self._last_request = True

    # What the loop calls

    def eof_received(self) -> bool | None:
        """The peer sends no more: replies still due are sent, then the connection closes."""
        if (
            not self.server_side
            or not self._is_busy()
            or self._closing
            # Over TLS the loop closes whatever we say.
            or self._transport.get_extra_info("sslcontext") is not None
        ):
            self._close()
            return None
        consumer = self._current_consumer
        if (
            consumer is not None
            and consumer._handed_over
            and not consumer.eof_received()
            and (self._pipeline is None or not self._pipeline.busy)
        ):
            self._close()
            return None
        self._last_request = self._eof = True
        if self._eof_handle is None:  # a transport that reads again tells it again
            assert self._loop is not None
            # Should the message have been cut in the middle, it is never answered.
            self._eof_handle = self._loop.call_later(self.eof_grace, self.abort)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Fail the request in flight and let nobody wait."""
        if self._lost:
            return
        if self._eof_handle is not None:
            self._eof_handle.cancel()
            self._eof_handle = None
        self._buffered = b""
        self._collected = None
        super().connection_lost(exc)
        if self._deadlines is not None:
            self._deadlines.clear()
        consumer = self._current_consumer
        self._current_consumer = None
        if consumer is not None:
            self._fail_lost(consumer, exc)
        if self._pipeline is not None:
            for consumer in self._pipeline.lost():
                self._fail_lost(consumer, exc or self._pipeline.failure)
        self.tell_drained()

    def _fail_lost(self, consumer: ProtocolConsumer, exc: BaseException | None) -> None:
        consumer.cancel_tasks()
        if not consumer._done:
            try:
                consumer.connection_lost(exc)
            except (Exception, asyncio.CancelledError):
                self.logger.exception("%s: connection_lost of %r failed", self, consumer)
            # One that did not finish would let its caller wait for ever.
            ProtocolConsumer.connection_lost(consumer, exc)

    def pause_writing(self) -> None:
        """The transport's buffer is full; a server stops reading requests until it is not."""
        super().pause_writing()
        if self.throttle_reading:
            self._hold_reading(self._HOLD_THROTTLE)

    def resume_writing(self, exc: BaseException | None = None) -> None:
        """The transport's buffer has drained: go on with what had to wait."""
        super().resume_writing(exc)
        if exc is None:
            if self._pipeline is not None and not self.server_side:
                if not self._feeding:
                    self._pipeline.advance()
            elif self._buffered and not self._feeding and self._is_between_requests():
                self._after_request()
            if not self._paused:
                self._release_reading(self._HOLD_THROTTLE)


# Whoever follows all requests puts another in its place.
_REQUEST = Connection.request
