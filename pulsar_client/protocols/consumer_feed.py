"""Which consumer gets which bytes of a stream, and what becomes of what it leaves.

One at a time gets the data; what it leaves goes to the next.  Nothing is known here of how
connections begin and end, nor of what the bytes mean.

Three rules keep an exchange pure; every path through this module and ``connection`` follows one:

1. Data that nobody asked for closes a client connection (it would become the next reply).
2. An exchange that ended in any other way than its consumer's ``finished`` closes the connection.
3. ``is_reusable`` is true only when none of that can happen: no consumer, no bytes, no upgrade.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from pulsar_client.exceptions import MessageTooLarge, ProtocolError
from pulsar_client.protocols.consumer_contract import checked_rest
from pulsar_client.protocols.consumer_output import ConsumerOutput
from pulsar_client.protocols.message_limit import count_message
from pulsar_client.protocols.producer import make_consumer
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["ConsumerFeed"]

#: Bytes of further requests that are taken in while one is being answered.
_READ_AHEAD = 65536


class ConsumerFeed(ConsumerOutput):
    """The half of a ``Connection`` that feeds consumers.

    Args:
        consumer_factory: makes the consumer of each exchange; called without arguments.
        **kw: see :class:`~pulsar_client.PulsarProtocol`.

    Raises:
        TypeError: ``consumer_factory`` is not callable, or a keyword is unknown.
    """

    #: Bytes that a consumer may leave without finishing its exchange; more is a protocol error.
    max_buffered: int = 2**24
    #: What the consumers of this connection share to parse its bytes; they may set it.
    parser: Any = None
    # The peer sends no more.
    _eof = False

    _HOLD_START = 4
    _HOLD_BUSY = 8
    _HOLD_FULL = 16

    def __init__(
        self, consumer_factory: Callable[[], ProtocolConsumer] | None = None, **kw: Any
    ) -> None:
        super().__init__(**kw)
        if consumer_factory is not None and not callable(consumer_factory):
            raise TypeError(
                f"consumer_factory is {consumer_factory!r}, expected a callable that makes a "
                "ProtocolConsumer"
            )
        self._consumer_factory = consumer_factory
        #: True where requests are answered, False where they are made.
        self.server_side: bool = self.producer is not None and self.producer.server_side
        #: Stop reading while writing is paused.  On by default on servers, where a client that
        #: does not read must not fill the memory; never on clients, where two peers that both do
        #: it deadlock.  A relay turns it off and couples its two sides instead.
        self.throttle_reading: bool = self.server_side
        # All that a connection has in the course of a request is set here.  What is set later has
        # no place in the objects of a class of which there are several already: each then gets a
        # dict, in which everything is found less quickly.
        self._requests_processed = 0
        self._deadlines = None
        if type(self).parser is None:  # else it is the business of a subclass
            self.parser = self.parser  # or it was set before this constructor was called
        self._current_consumer: ProtocolConsumer | None = None
        # What a consumer left without finishing, or what waits until writing may go on.
        self._buffered = b""
        self._feeding = False
        self._upgraded = False
        # Close as soon as no request is in flight: the peer's end of file, or close_when_idle().
        self._last_request = False
        # Answers to be written together; None unless several requests arrived together.
        self._collected = None
        # The requests that are in flight together: a client's Pipeline or MessagePipeline, a
        # server's AnswerLine; None where there is one at a time.
        self._pipeline: Any = None

    def current_consumer(self) -> ProtocolConsumer:
        """The consumer that takes incoming data; a new one is built when there is none.

        On a pipelined client each call gives a new consumer, for one more request: it takes its
        place behind those in flight when it is started.

        Raises:
            TypeError: the consumer factory is missing or gives something else.
        """
        consumer = self._current_consumer
        if consumer is None:
            producer = self.producer
            if producer is None:
                consumer = make_consumer(self._consumer_factory)
            else:
                consumer = producer.build_consumer(self._consumer_factory)
            consumer.connection = self
            if self._pipeline is None:
                self._current_consumer = consumer
            else:
                consumer._pipeline = self._pipeline
                if self.server_side:
                    self._current_consumer = consumer
            consumer.connection_made(self)
        return consumer

    def request_done(self, consumer: ProtocolConsumer) -> None:
        """The consumer has finished; called by it, before anybody is told."""
        if consumer is not self._current_consumer:
            return
        self._current_consumer = None
        if self._end_waiters or self._deadlines is not None:
            self.tell_drained()
        if self._upgraded and not self._closing:
            try:
                self.current_consumer()
            except Exception as exc:  # noqa: BLE001 - a factory or hook of the user's failed
                self._log_failure(None, exc)
                self._cut()
        if not self._feeding and (self._buffered or self._last_request) and self._loop is not None:
            if self._buffered and not self.server_side and not self._upgraded:
                self._refuse(self._buffered)  # before a callback can make the next request
            self._loop.call_soon(self._after_request)

    def request_failed(self, consumer: ProtocolConsumer, exc: BaseException) -> None:
        """The consumer raised: its request ends with ``exc`` and the connection is cut."""
        # A client's caller gets the exception; otherwise nobody would see it.
        if self.server_side or consumer._done:
            self._log_failure(consumer, exc)
        if self._pipeline is not None:
            self._pipeline.failure = exc
        # First, so that whoever is told can't take the connection for a good one.
        self._cut()
        consumer.finished(exc=exc)

    def tasks_done(self, consumer: ProtocolConsumer) -> None:
        """The tasks of a consumer have ended, and it has not: it may want more data."""
        if self._pipeline is not None and self.server_side:
            # Nobody else gives it any, and those behind it wait for its turn to end.
            self.request_failed(
                consumer, RuntimeError(f"{consumer!r}: its tasks have ended, and it is not done")
            )
            return
        if self._read_holds & self._HOLD_BUSY:
            self._release_reading(self._HOLD_BUSY)
        if self._buffered and not self._closing and not self._feeding:
            self._feed(b"")

    def request_ready(self, consumer: ProtocolConsumer) -> None:
        """The coroutine callbacks of ``pre_request`` have ended: go on with its data."""
        self._release_reading(self._HOLD_START)
        if not self.server_side:
            return
        if consumer._done:
            # Aborted: nobody will ever take this request's data.
            self._close()
        elif self._buffered and not self._closing and not self._feeding:
            self._feed(b"")

    def data_received(self, data: bytes) -> None:
        """Hand data to the current consumer and what it leaves to the next one."""
        if self._timeout is not None and self._loop is not None:
            self._last_activity = self._loop.time()
        if self._early is not None:
            self._early.append(data)
            return
        if self._feeding:
            # A consumer handed us data from inside its data_received: after this piece, then.
            asyncio.get_running_loop().call_soon(self.data_received, data)
            return
        producer, consumer = self.producer, self._current_consumer
        if self._many_times is not None or (
            producer is not None and producer._many_times is not None
        ):
            self._fire_many("data_received", data=data)
            (self._feed if self._pipeline is None else self._pipeline.feed)(data)
            self._fire_many("data_processed", data=data)
        elif self._pipeline is not None:
            self._pipeline.feed(data)
        elif (
            consumer is None
            or not consumer._handed_over
            or consumer._many_times is not None
            or consumer._tasks
            or self._buffered
            or self._closing
            or not data
        ):
            self._feed(data)
        else:
            # What _feed() does where there is nothing but a consumer that waits for the data, for
            # a call less: most replies of clients pass here.
            factory, left = self._consumer_factory, b""
            self._feeding = True
            try:
                rest = consumer.data_received(data)
                if rest:
                    current, same = self._current_consumer, self._consumer_factory is factory
                    left = checked_rest(rest, data, consumer, same and current is not consumer)
            except Exception as exc:  # noqa: BLE001 - it is the request's exception
                self.request_failed(consumer, exc)
            finally:
                self._feeding = False
            if left and self._passes_on(consumer, left):
                self._feed(left)
            elif self._current_consumer is not None or self._read_holds or self._last_request:
                self._after_feeding(len(data))

    # Inside

    def _close(self) -> None:
        if self._collected:
            self._flush()
        if self._pipeline is not None and not self._closing:
            self._pipeline.flush()
        super()._close()

    def _unread(self) -> int:
        pending: int = getattr(self.parser, "pending", 0)
        return len(self._buffered) + pending

    def _is_busy(self) -> bool:
        consumer = self._current_consumer
        return (
            (consumer is not None and consumer._started and not consumer._done)
            or bool(self._buffered)
            or (self._pipeline is not None and self._pipeline.busy)
        )

    def _is_between_requests(self) -> bool:
        consumer = self._current_consumer
        return consumer is None or not consumer._started

    def _feed(self, data: bytes) -> None:
        """Feed one consumer after the other, until nothing is left or one keeps it."""
        if self._buffered:
            data = self._buffered + data
            self._buffered = b""
        producer = self.producer
        quiet = producer is None or producer._many_times is None
        factory, piece = self._consumer_factory, data
        self._feeding = True
        try:
            while data and not self._closing:
                piece = data
                consumer = self._current_consumer
                if consumer is None or not consumer._handed_over or consumer._tasks:
                    consumer = self._consumer_for(data)
                    if consumer is None:
                        break
                try:
                    if quiet and consumer._many_times is None:
                        rest = consumer.data_received(data)
                    else:
                        consumer._fire_many("data_received", data=data)
                        rest = consumer.data_received(data)
                        consumer._fire_many("data_processed", data=data)
                    if not rest:
                        break
                    current, same = self._current_consumer, self._consumer_factory is factory
                    data = checked_rest(rest, data, consumer, same and current is not consumer)
                except Exception as exc:  # noqa: BLE001 - it is the request's exception
                    self.request_failed(consumer, exc)
                    break
                if not self._passes_on(consumer, data):
                    break
        finally:
            self._feeding = False
            if self._collected is not None:
                self._flush()
                self._collected = None
        if self._current_consumer is not None or self._read_holds or self._last_request:
            self._after_feeding(len(piece))

    def _after_feeding(self, size: int) -> None:
        if self._current_consumer is not None and self.server_side:
            count_message(self, self._current_consumer, size, len(self._buffered))
        if self._read_holds & self._HOLD_BUSY and len(self._buffered) < _READ_AHEAD:
            self._release_reading(self._HOLD_BUSY)
        if self._last_request and not self._closing:
            self._close_if_over()

    def _close_if_over(self) -> None:
        """No request comes any more: close if none is in flight that can still be answered."""
        consumer = self._current_consumer
        if not self._is_busy() or (
            self._eof
            and (self._pipeline is None or not self._pipeline.busy)
            and consumer is not None
            and consumer._handed_over
            and not consumer.eof_received()
        ):
            self._close()

    def _consumer_for(self, data: bytes) -> ProtocolConsumer | None:
        """The consumer of data that no request in flight waits for; None: nobody takes it now."""
        current = self._current_consumer
        if current is not None and current._handed_over:
            if not self.server_side:
                return current
            # Its tasks are at work on its answer: it would answer this one too, maybe first (I16).
            self._passes_on(current, data)
            return None
        if self._paused and self.throttle_reading and self._is_between_requests():
            self._keep(data)  # until writing goes on
            return None
        if not self.server_side and not self._upgraded:
            self._refuse(data)
            return None
        if self._pipeline is not None and current is None and not self._pipeline.has_room():
            self._keep(data)
            self._hold_reading(self._HOLD_FULL)
            return None
        consumer = None
        try:
            consumer = self.current_consumer()
            if self.server_side and not consumer._started:
                producer = self.producer
                if consumer._one_time is None and producer._many_times is None:
                    # What start() does when nobody listens, without what it costs.
                    consumer._started = consumer._handed_over = True
                    self._requests_processed += 1
                    producer.request_started()
                    return consumer
                consumer.start()
        except Exception as exc:  # noqa: BLE001 - a factory or hook of the user's failed
            self._log_failure(consumer, exc)
            self._cut()
            return None
        if consumer._done:
            # Aborted in pre_request: nobody will ever take this request's data.
            self._close()
            return None
        if self.server_side and not consumer._handed_over:
            self._keep(data)  # until the coroutine callbacks of pre_request have ended
            self._hold_reading(self._HOLD_START)
            return None
        return consumer

    def _passes_on(self, consumer: ProtocolConsumer, data: bytes) -> bool:
        """True if what a consumer has left is the next one's."""
        if self._current_consumer is consumer:
            self._keep(data)
            if consumer._tasks and len(data) >= _READ_AHEAD:
                self._hold_reading(self._HOLD_BUSY)  # it is the next requests': enough of them
            return False
        if self.server_side or self._upgraded:
            if self._collected is None:
                self._begin_collecting()
            return True
        # Also if a callback has made the next request by now: this is not its reply.
        self._refuse(data)
        return False

    def _refuse(self, data: bytes) -> None:
        self.logger.debug("%s: %d bytes that nobody asked for, closing", self, len(data))
        if not self._closing:
            self.abort()

    def _keep(self, data: bytes) -> None:
        if len(data) > self.max_buffered:
            exc = MessageTooLarge(
                f"{self}: {len(data)} bytes are left over, at most {self.max_buffered} are kept"
            )
            if self._current_consumer is not None:
                self.request_failed(self._current_consumer, exc)
            else:
                self.logger.debug("%s, closing", exc)
                self._close()
        else:
            self._buffered = data

    def _log_failure(self, consumer: ProtocolConsumer | None, exc: BaseException) -> None:
        if isinstance(exc, ProtocolError) or (self.closed and isinstance(exc, OSError)):
            # The peer's doing: at most a debug line, whatever it sends or how it leaves.
            self.logger.debug("%s: %s, closing", self, exc)
        else:
            what = consumer or self._consumer_factory
            self.logger.error("%s: %r failed, closing", self, what, exc_info=exc)

    def _cut(self) -> None:
        """End a connection whose state can't be trusted."""
        # What a server answered before is still due.
        if self.server_side:
            self._close()
        else:
            self.abort()

    def _after_request(self) -> None:
        """Go on after a request that ended outside ``data_received``."""
        if self._buffered and not (self._closing or self._feeding):
            self._feed(b"")
        elif self._last_request and not (self._closing or self._feeding):
            self._close_if_over()
