"""How a server answers datagrams.

Each datagram goes to a consumer of its own.  A consumer that has finished when ``data_received``
returns costs no more than that; the others are kept until they finish or their time is over, so
many at once, and further datagrams wait in a bounded queue.  This module must not know of sockets.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from pulsar_client.events import OneTime
from pulsar_client.exceptions import AbortRequest, ProtocolError
from pulsar_client.protocols.consumer_contract import complete, refuse_coroutine
from pulsar_client.protocols.datagram_endpoint import DatagramEndpoint
from pulsar_client.protocols.datagram_exchange import ServerExchange, server_exchange
from pulsar_client.protocols.producer import Producer
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["DatagramServing"]

#: What is a consumer's own failure: asking a cancelled future for its result, too.
_FAILURES = (Exception, asyncio.CancelledError)


class DatagramServing(DatagramEndpoint):
    """The part of a ``DatagramProtocol`` that serves; see there for the parameters."""

    _expiry: asyncio.TimerHandle | None = None
    _serving_waiting = False

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        # Unfinished consumers in the order of their ends, and what waits for one of these.
        self._in_flight: dict[ProtocolConsumer, float] = {}
        self._waiting: deque[tuple[bytes, Any]] = deque()
        # The class of the consumers, if nothing but their construction is to be done.
        self._consumer_class: type[ProtocolConsumer] | None = None
        factory = self._consumer_factory
        if (
            self.server_side
            and isinstance(factory, type)
            and issubclass(factory, ProtocolConsumer)
            and factory.connection_made is ProtocolConsumer.connection_made
            and type(self.producer).build_consumer is Producer.build_consumer
        ):
            if factory.__init__ is not ProtocolConsumer.__init__:
                complete(factory)
            self._consumer_class = factory

    def close_when_idle(self) -> OneTime:
        """Read no more, and close as soon as no exchange is in flight.

        Returns:
            The ``connection_lost`` event, as ``close`` does.
        """
        if hasattr(self._transport, "pause_reading"):
            self._transport.pause_reading()
        self._last_exchange = True
        if not self._in_flight and not self._waiting:
            return self.close()
        return self._one_time_event("connection_lost")

    # Serving

    def serve(self, data: bytes, addr: Any) -> None:
        """Give a datagram to a consumer of its own, now or when there is room."""
        self.serve_burst(((data, addr),))

    def serve_burst(self, datagrams: Iterable[tuple[bytes, Any]]) -> None:
        """Serve what has arrived, until there is no more or the burst is interrupted.

        What taking the next datagram raises goes to the caller; nothing else does.
        """
        # The path of every datagram: what stays the same is looked up once a burst.
        counts, in_flight = self.counts, self._in_flight
        make, producer, waiting = self._consumer_class, self.producer, self._waiting
        limited = producer.max_requests is not None
        for data, addr in datagrams:
            counts.received += 1
            try:
                if (
                    make is None
                    or self._many_times is not None
                    or producer._many_times is not None
                    or waiting
                    or (in_flight and len(in_flight) >= self.max_in_flight)
                ):
                    self._serve_heard(data, addr)
                else:
                    consumer = make()
                    # As server_exchange(), without the call.
                    exchange = consumer.connection = ServerExchange()
                    exchange.protocol = self
                    exchange.address = addr
                    exchange.producer = producer
                    if consumer._one_time is not None or consumer._many_times is not None:
                        self._start(consumer, data)
                    else:
                        # What start() does when nobody listens, without what it costs.
                        consumer._started = consumer._handed_over = True
                        self._requests_processed += 1
                        if limited:
                            producer.request_started()
                        else:
                            producer._requests_processed += 1
                        try:
                            rest = consumer.data_received(data)
                        except _FAILURES as exc:
                            self.exchange_failed(consumer, exc)
                        else:
                            if rest or not consumer._done:
                                self._fed(consumer, rest)
            except _FAILURES as exc:
                self.logger.error("%s: %r failed", self, self._consumer_factory, exc_info=exc)
            if self.interrupted:
                return

    def _serve_heard(self, data: bytes, addr: Any) -> None:
        """Serve with everything that others may want to do or hear, when it is its turn."""
        # Those that wait are first, also when a place has just become free.
        if not self._waiting and len(self._in_flight) < self.max_in_flight:
            self._serve_now(data, addr)
        elif len(self._waiting) >= self.max_waiting:
            self.counts.busy += 1
        else:
            self._waiting.append((data, addr))

    def _serve_now(self, data: bytes, addr: Any) -> None:
        consumer = None
        try:
            consumer = self.producer.build_consumer(self._consumer_factory)
            consumer.connection = server_exchange(self, addr)
            consumer.connection_made(consumer.connection)
        except _FAILURES as exc:
            made = consumer or self._consumer_factory
            self.logger.error("%s: %r failed", self, made, exc_info=exc)
            return
        self._start(consumer, data)

    def _start(self, consumer: ProtocolConsumer, data: bytes) -> None:
        try:
            consumer.start()
        except _FAILURES as exc:
            self.logger.error("%s: %r failed", self, consumer, exc_info=exc)
            return
        if consumer._handed_over:
            self.feed_exchange(consumer, data)
        elif not consumer._done:
            consumer.connection.held = data
            self._keep(consumer)

    def feed_exchange(self, consumer: ProtocolConsumer, data: bytes) -> None:
        """Give its datagram to a consumer, with the events of it."""
        if consumer._done:
            return  # aborted in pre_request
        try:
            self._fire_many("data_received", data=data)
            consumer._fire_many("data_received", data=data)
            rest = consumer.data_received(data)
            consumer._fire_many("data_processed", data=data)
            self._fire_many("data_processed", data=data)
        except _FAILURES as exc:
            self.exchange_failed(consumer, exc)
            return
        self._fed(consumer, rest)

    def _fed(self, consumer: ProtocolConsumer, rest: bytes | None) -> None:
        """A consumer has taken its datagram; it may have left some, and be unfinished."""
        try:
            refuse_coroutine(consumer, "data_received", rest)
        except TypeError as exc:
            self.exchange_failed(consumer, exc)
            return
        if not consumer._done:
            self._keep(consumer)
        elif rest:
            self.counts.unused += 1

    def exchange_failed(self, consumer: ProtocolConsumer, exc: BaseException) -> None:
        """A consumer raised: its exchange ends, and no other."""
        if isinstance(exc, ProtocolError):
            # The peer's doing: at most a debug line, whatever it sends.
            self.counts.malformed += 1
            self.logger.debug("%s: %s", consumer.connection, exc)
        else:
            self.logger.error("%s: %r failed", consumer.connection, consumer, exc_info=exc)
        consumer.cancel_tasks()
        consumer.finished(exc=exc)

    def drop_exchange(self, exchange: ServerExchange) -> None:
        """Give up an exchange, if it is unfinished."""
        for consumer in self._in_flight:
            if consumer.connection is exchange:
                consumer.cancel_tasks()
                consumer.finished(exc=AbortRequest(f"{exchange}: the exchange was dropped"))
                return

    def exchange_ended(self, consumer: ProtocolConsumer) -> None:
        """A consumer has finished: its place is free."""
        self._in_flight.pop(consumer, None)
        if self._waiting and not self._serving_waiting:
            self._serving_waiting = True
            asyncio.get_running_loop().call_soon(self._serve_waiting)
        if not self._in_flight:
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            if self._last_exchange and not self._waiting:
                self._close()

    def _serve_waiting(self) -> None:
        self._serving_waiting = False
        while self._waiting and len(self._in_flight) < self.max_in_flight and not self._closing:
            try:
                self._serve_now(*self._waiting.popleft())
            except _FAILURES as exc:
                self.logger.error("%s: %r failed", self, self._consumer_factory, exc_info=exc)
        if self._last_exchange and not self._in_flight:
            self._close()

    def _keep(self, consumer: ProtocolConsumer) -> None:
        """A consumer has not finished when it returned."""
        if consumer in self._in_flight:
            return  # since its pre_request, and so is its time
        loop = self._loop
        assert loop is not None
        if consumer.connection.dropped:
            consumer.cancel_tasks()
            consumer.finished(exc=AbortRequest(f"{consumer.connection}: it was dropped"))
            return
        deadline = loop.time() + self.exchange_timeout
        self._in_flight[consumer] = deadline
        if self._expiry is None:
            self._expiry = loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """Give up the exchanges whose time is over."""
        self._expiry = None
        loop = self._loop
        assert loop is not None
        now = loop.time()
        for consumer, deadline in tuple(self._in_flight.items()):
            if deadline > now:
                if self._expiry is None:
                    self._expiry = loop.call_at(deadline, self._expire)
                return
            if consumer._done:
                continue  # ended by the end of another
            self.counts.expired += 1
            consumer.cancel_tasks()
            consumer.finished(
                exc=AbortRequest(
                    f"{consumer.connection}: not finished within {self.exchange_timeout:g} s"
                )
            )

    def lose_peer(self, addr: Any, exc: BaseException | None) -> None:
        """A peer can't be reached: nobody waits for what is being done for it."""
        for consumer in tuple(self._in_flight):
            if consumer.connection.address == addr:
                self.lose_consumer(consumer, exc)

    def lose_exchanges(self, exc: BaseException | None) -> None:
        """The socket is closed."""
        self._waiting.clear()
        for consumer in tuple(self._in_flight):
            self.lose_consumer(consumer, exc)
        self._in_flight.clear()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def lose_consumer(self, consumer: ProtocolConsumer, exc: BaseException | None) -> None:
        """Tell a consumer that its exchange can't go on."""
        consumer.cancel_tasks()
        if consumer._done:
            return
        try:
            consumer.connection_lost(exc)
        except _FAILURES:
            self.logger.exception("%s: connection_lost of %r failed", self, consumer)
        if not consumer._done:
            ProtocolConsumer.connection_lost(consumer, exc)
