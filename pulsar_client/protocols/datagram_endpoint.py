"""What every datagram socket has: limits, counters, and sending.

This module must not know what becomes of the datagrams that arrive: a server's are in
``datagram_serving``, the replies to a client's requests in ``datagram_requests``.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pulsar_client.exceptions import ConnectionClosed
from pulsar_client.protocols.datagram_exchange import DatagramCounts
from pulsar_client.protocols.producer import Producer
from pulsar_client.protocols.protocol import PulsarProtocol
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["DatagramEndpoint"]

#: The most that fits into a datagram of IPv4.
_MOST = 65507


class DatagramEndpoint(PulsarProtocol):
    """The part of a ``DatagramProtocol`` that sends, with the limits of both directions."""

    #: Bytes of a datagram that is sent.  Below 1400 no network on the way cuts it in pieces, of
    #: which one that is lost loses all.
    max_payload: int = 1399
    #: Bytes of a datagram that is received; a longer one is dropped and counted.
    max_datagram: int = 65535
    #: Bytes of datagrams that may wait until the system takes them; further ones are dropped.
    max_queued: int = 2**20
    #: Exchanges of a server that may be unfinished at a time.
    max_in_flight: int = 1024
    #: Datagrams of a server that may wait for one of these to finish; further ones are dropped.
    max_waiting: int = 1024
    #: Seconds after which a server gives up an exchange that its consumer has not finished.
    exchange_timeout: float = 30.0

    #: What the transport sets when no more of a burst may be taken: reading was paused, or the
    #: socket is another.
    interrupted = False
    #: Sends ``(data, address)`` at once or raises; None while it can't.  It is the transport's,
    #: and may go and come back with every datagram.
    send_now: Callable[[Any, Any], Any] | None = None

    _requests_processed = 0
    # Read no more, and close as soon as no exchange is in flight.
    _last_exchange = False
    # The peer of a connected socket.
    _peer: Any = None
    _family: int = 0
    # Of whom, and of which datagram, the error that is being handled is.
    _reported: tuple[Any, bytes] = (None, b"")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        session: int = 1,
        producer: Producer | None = None,
        logger: Any = None,
        *,
        consumer_factory: Callable[[], ProtocolConsumer] | None = None,
        max_payload: int | None = None,
        **kw: Any,
    ) -> None:
        super().__init__(loop, session, producer, logger, **kw)
        if consumer_factory is not None and not callable(consumer_factory):
            raise TypeError(
                f"consumer_factory is {consumer_factory!r}, expected a callable that makes a "
                "ProtocolConsumer"
            )
        if max_payload is None:
            max_payload = self.max_payload
        elif type(max_payload) is not int or not 0 < max_payload <= _MOST:
            raise ValueError(
                f"max_payload is {max_payload!r}, expected 1 to {_MOST} bytes or None"
            )
        # Asked for every datagram: an instance's attribute is found faster than its class's.
        self.max_payload = max_payload
        self._consumer_factory = consumer_factory
        #: True where datagrams are answered, False where requests are made.
        self.server_side: bool = self.producer is not None and self.producer.server_side
        if self.server_side and self._timeout is not None:
            self.exchange_timeout = self._timeout
            self._timeout = None
        #: What became of the datagrams.
        self.counts = DatagramCounts()
        self._names: dict[Any, Any] = {}

    # Sending

    def check_payload(self, data: Any) -> None:
        """Refuse a datagram that is too long.

        Raises:
            ValueError: it has more bytes than ``max_payload``.
        """
        if len(data) > self.max_payload:
            raise ValueError(
                f"{self}: a datagram of {len(data)} bytes, at most max_payload "
                f"({self.max_payload}) are sent"
            )

    def write(
        self, data: bytes | bytearray | memoryview, addr: Any = None
    ) -> Awaitable[None] | None:
        """Send a datagram.

        Args:
            data: its bytes.
            addr: the peer, ``(host, port)``; None on a connected socket.  A reply to what
                ``datagram_received`` got leaves from the address that was asked.

        Returns:
            None when more may be sent; else an awaitable that completes when the queue of what
            waits to be sent has drained, and raises
            :class:`~pulsar_client.ConnectionClosed` if the socket is closed first.

        Raises:
            ConnectionClosed: the socket is closed, or not ready yet.
            ValueError: more bytes than ``max_payload``.
            OSError: the system refuses to send it.
        """
        return self.send_counted(data, addr)[0]

    def send(self, data: bytes | bytearray | memoryview, addr: Any = None) -> bool:
        """Send a datagram if that is possible at once, or it can wait; forget it if not.

        It never waits and raises nothing that the network or the system is the cause of.

        Returns:
            False if the datagram was dropped, and counted: the queue is full, the socket closed,
            or the system refuses it.

        Raises:
            ValueError: more bytes than ``max_payload``.
        """
        if self._transport is None or self._closing:
            self.check_payload(data)
            self.counts.send_dropped += 1
            return False
        try:
            return self.send_counted(data, addr)[1]
        except OSError as exc:
            self.send_failed(exc, addr)
            return False

    def send_counted(
        self, data: Any, addr: Any, refused: OSError | None = None
    ) -> tuple[Awaitable[None] | None, bool]:
        """Send: what ``write`` returns, and what ``send`` returns.

        Args:
            data: the datagram.
            addr: where to.
            refused: what ``send_now`` has raised, if that was tried.
        """
        transport = self._transport
        if transport is None or self._closing:
            raise ConnectionClosed(f"{self}: can't write, the socket is closed")
        if len(data) > self.max_payload:
            self.check_payload(data)
        if self._timeout is not None and self._loop is not None:
            self._last_activity = self._loop.time()
        if self._peer is not None:
            addr = None
        if refused is not None:
            sent = transport.not_sent(refused, data, addr)
        elif self.is_quiet():
            sent = transport.sendto(data, addr)
        else:
            self._fire_many("before_write", data=data)
            sent = transport.sendto(data, addr)
            self._fire_many("after_write", data=data)
        if sent is False:
            self.counts.send_dropped += 1
        else:
            self.counts.sent += 1
        return (self._drained() if self._paused else None), sent is not False

    def send_failed(self, exc: OSError, addr: Any) -> None:
        """The system refused a datagram that nobody waits for."""
        self.counts.send_failed += 1
        self.logger.debug("%s: a datagram to %s was not sent: %s", self, addr, exc)
        exc.__traceback__ = None  # the functions in it have this exception, too: a ring

    def is_quiet(self) -> bool:
        """True if nobody listens to the events of this endpoint and its exchanges."""
        producer = self.producer
        return self._many_times is None and (producer is None or producer._many_times is None)

    def pause_writing(self) -> None:
        """The queue is long; a server reads no further datagrams until it is not."""
        super().pause_writing()
        if self.server_side and hasattr(self._transport, "pause_reading"):
            self._transport.pause_reading()

    def resume_writing(self, exc: BaseException | None = None) -> None:
        """The queue has drained."""
        super().resume_writing(exc)
        over = self._closing or self._last_exchange
        if self.server_side and not over and hasattr(self._transport, "resume_reading"):
            self._transport.resume_reading()

    def _begin_closing(self) -> None:
        self.send_now = None
        super()._begin_closing()

    def connection_made(self, transport: Any) -> None:
        """Take the transport and fire ``connection_made``."""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._family = sock.family
        self._peer = transport.get_extra_info("peername")
        super().connection_made(transport)
