"""What a consumer of datagrams has for a connection: one exchange with one peer.

It has the part of a connection's interface that consumers use.  Many exchanges share the socket of
one ``DatagramProtocol``; closing an exchange of a server does not close that.
"""

import logging
from collections.abc import Awaitable
from typing import Any

from pulsar_client.addresses import format_address
from pulsar_client.exceptions import ConnectionClosed

__all__ = ["DatagramCounts", "DatagramExchange", "ServerExchange", "server_exchange"]


class DatagramCounts:
    """What became of the datagrams of one endpoint."""

    __slots__ = (
        "busy",
        "expired",
        "malformed",
        "received",
        "refused",
        "retransmitted",
        "send_dropped",
        "send_failed",
        "sent",
        "truncated",
        "unused",
    )

    def __init__(self) -> None:
        #: Datagrams taken from the socket, and handed to it or queued for it.
        self.received = self.sent = 0
        #: Of those sent, sent again because no reply came in time.
        self.retransmitted = 0
        #: Longer than ``max_datagram``: dropped.
        self.truncated = 0
        #: Refused by their consumer with a ``ProtocolError``, or without a key.
        self.malformed = 0
        #: With bytes behind the message that the consumer took.
        self.unused = 0
        #: Dropped because as many as allowed were being served and were waiting.
        self.busy = 0
        #: Exchanges given up because their consumer did not finish in time.
        self.expired = 0
        #: Reports of the network that a peer can't be reached.
        self.refused = 0
        #: Not sent: the queue was full; the system refused it.
        self.send_dropped = self.send_failed = 0

    def as_dict(self) -> dict[str, int]:
        """All of them by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class DatagramExchange:
    """One exchange: the ``connection`` of its consumer.

    Attributes:
        protocol: the :class:`~pulsar_client.DatagramProtocol` whose socket is used.
        address: the peer.
        producer: the protocol's producer.
    """

    __slots__ = ()

    #: As of ``Connection``: what the consumer may keep while it parses.
    parser: Any = None
    server_side = True
    protocol: Any
    address: Any
    producer: Any

    def __repr__(self) -> str:
        where = "<pending>" if self.address is None else format_address(self.address)
        return f"{where} session {self.protocol.session}"

    @property
    def _transport(self) -> Any:
        return self.protocol._transport

    @property
    def transport(self) -> Any:
        """The transport of the whole endpoint."""
        return self.protocol._transport

    @property
    def sock(self) -> Any:
        """The socket of the whole endpoint."""
        return self.protocol.sock

    @property
    def session(self) -> int:
        """The session number of the endpoint."""
        session: int = self.protocol.session
        return session

    @property
    def logger(self) -> logging.Logger:
        """Where the endpoint logs."""
        logger: logging.Logger = self.protocol.logger
        return logger

    @property
    def closed(self) -> bool:
        """True when nothing can be sent any more."""
        closed: bool = self.protocol.closed
        return closed

    @property
    def _requests_processed(self) -> int:
        count: int = self.protocol._requests_processed
        return count

    @_requests_processed.setter
    def _requests_processed(self, count: int) -> None:
        self.protocol._requests_processed = count

    def info(self) -> dict[str, Any]:
        """What is known of the endpoint."""
        info: dict[str, Any] = self.protocol.info()
        return info


class ServerExchange(DatagramExchange):
    """The answer to one datagram; `server_exchange` makes it.

    There is one for each datagram: slots, and no constructor, make it at a third of the cost.
    Consumers may set attributes of their own, as on any connection.
    """

    __slots__ = ("__dict__", "__weakref__", "address", "producer", "protocol")

    protocol: Any
    address: Any
    producer: Any
    #: The datagram, while coroutine callbacks of ``pre_request`` run.
    held: bytes | None = None
    #: Nobody wants the answer any more.
    dropped = False

    def write(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """Send a datagram to the peer.

        A peer that can't be sent to is counted, and is no error: it has chosen its address.

        Returns:
            None while the socket takes more, else an awaitable that completes when it does.

        Raises:
            ConnectionClosed: the endpoint is closed.
            ValueError: more bytes than ``max_payload``.
        """
        protocol = self.protocol
        send = protocol.send_now
        if (
            send is None
            or len(data) > protocol.max_payload
            or protocol._many_times is not None
            or self.producer._many_times is not None
        ):
            return self._write(data)
        # What write() of the protocol does when nobody listens and nothing is queued.
        try:
            send(data, self.address)
        except OSError as exc:
            return self._write(data, exc)
        protocol.counts.sent += 1
        return None

    def _write(self, data: Any, refused: OSError | None = None) -> Awaitable[None] | None:
        """Write, however much there is to do; ``refused`` is what trying to has raised."""
        waiter: Awaitable[None] | None = None
        try:
            waiter, _ = self.protocol.send_counted(data, self.address, refused)
        except ConnectionClosed:
            raise
        except OSError as exc:
            self.protocol.send_failed(exc, self.address)
        return waiter

    def close(self) -> None:
        """End the exchange; the socket serves other peers too and stays open."""
        self.dropped = True
        self.protocol.drop_exchange(self)

    def abort(self) -> None:
        """End the exchange, as `close` does."""
        self.close()

    # What the consumer calls

    def request_done(self, consumer: Any) -> None:
        """The consumer has finished."""
        protocol = self.protocol
        if protocol._in_flight:
            protocol.exchange_ended(consumer)

    def request_failed(self, consumer: Any, exc: BaseException) -> None:
        """The consumer raised."""
        self.protocol.exchange_failed(consumer, exc)

    def tasks_done(self, consumer: Any) -> None:
        """The tasks of the consumer have ended; it may still be finished by somebody else."""

    def request_ready(self, consumer: Any) -> None:
        """The coroutine callbacks of ``pre_request`` have ended: it can take its datagram."""
        held, self.held = self.held, None
        if held is not None and not consumer._done:
            self.protocol.feed_exchange(consumer, held)


def server_exchange(protocol: Any, address: Any) -> ServerExchange:
    """Make the exchange of one datagram that came from an address."""
    exchange = ServerExchange()
    exchange.protocol = protocol
    exchange.address = address
    exchange.producer = protocol.producer
    return exchange
