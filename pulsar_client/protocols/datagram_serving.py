"""How a server answers datagrams.

Each datagram goes to a consumer of its own.  A consumer that has finished when ``data_received``
returns costs no more than that; the others are kept until they finish or their time is over, so
many at once, and further datagrams wait in a bounded queue.  This module must not know of sockets.
"""

import asyncio
from collections import deque
from typing import Any

from pulsar_client.events import OneTime
from pulsar_client.exceptions import AbortRequest, ProtocolError
from pulsar_client.protocols.datagram_endpoint import DatagramEndpoint
from pulsar_client.protocols.datagram_exchange import ServerExchange
from pulsar_client.protocols.producer import Producer
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["DatagramServing"]


class DatagramServing(DatagramEndpoint):
    """The part of a ``DatagramProtocol`` that serves; see there for the parameters."""

    _expiry: asyncio.TimerHandle | None = None
    _serving_waiting = False
    # Close as soon as no exchange is in flight.
    _last_exchange = False

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
        self.counts.received += 1
        producer = self.producer
        if self._in_flight and len(self._in_flight) >= self.max_in_flight:
            self._wait_for_room(data, addr)
            return
        make = self._consumer_class
        if make is None or self._many_times is not None or producer._many_times is not None:
            self._serve_heard(data, addr)
            return
        try:
            consumer = make()
        except Exception as exc:
            self.logger.error("%s: %r failed", self, make, exc_info=exc)
            return
        consumer.connection = ServerExchange(self, addr)
        if consumer._one_time is not None or consumer._many_times is not None:
            self._start(consumer, data)
            return
        # What start() does when nobody listens, without what it costs.
        consumer._started = consumer._handed_over = True
        self._requests_processed += 1
        producer.request_started()
        try:
            rest = consumer.data_received(data)
        except Exception as exc:  # noqa: BLE001 - it is the exchange's exception
            self.exchange_failed(consumer, exc)
            return
        if not consumer._done:
            self._keep(consumer)
        elif rest:
            self.counts.unused += 1

    def _wait_for_room(self, data: bytes, addr: Any) -> None:
        if len(self._waiting) >= self.max_waiting:
            self.counts.busy += 1
        else:
            self._waiting.append((data, addr))

    def _serve_heard(self, data: bytes, addr: Any) -> None:
        """Serve with everything that others may want to do or hear."""
        consumer = None
        try:
            consumer = self.producer.build_consumer(self._consumer_factory)
            consumer.connection = ServerExchange(self, addr)
            consumer.connection_made(consumer.connection)
        except Exception as exc:
            made = consumer or self._consumer_factory
            self.logger.error("%s: %r failed", self, made, exc_info=exc)
            return
        self._start(consumer, data)

    def _start(self, consumer: ProtocolConsumer, data: bytes) -> None:
        try:
            consumer.start()
        except Exception as exc:
            self.logger.error("%s: %r failed", self, consumer, exc_info=exc)
            return
        if consumer._handed_over:
            self.feed_exchange(consumer, data)
        else:
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
        except Exception as exc:  # noqa: BLE001 - it is the exchange's exception
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
            self.counts.received -= 1  # it was counted when it came
            self.serve(*self._waiting.popleft())
        if self._last_exchange and not self._in_flight:
            self._close()

    def _keep(self, consumer: ProtocolConsumer) -> None:
        """A consumer has not finished when it returned."""
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
        except (Exception, asyncio.CancelledError):
            self.logger.exception("%s: connection_lost of %r failed", self, consumer)
        if not consumer._done:
            ProtocolConsumer.connection_lost(consumer, exc)
