"""Datagrams and the consumers of them: a socket's life, on a client or on a server.

On a server each datagram is an exchange of its own; the requests of a client are in
``datagram_requests``.  This module must not know of pools, of how sockets are made, or of what the
bytes mean.
"""

import asyncio
import socket
from asyncio import get_running_loop
from collections.abc import Iterator
from typing import Any

import tenacity

from pulsar_client.durations import check_seconds
from pulsar_client.exceptions import ConnectionClosed
from pulsar_client.protocols.datagram_options import kernel_drops
from pulsar_client.protocols.datagram_requests import ClientExchange, DatagramRequests
from pulsar_client.protocols.datagram_serving import DatagramServing
from pulsar_client.protocols.producer import make_consumer
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["DatagramProtocol"]


class DatagramProtocol(DatagramServing, asyncio.DatagramProtocol):
    """A datagram socket whose datagrams go to consumers.

    Args:
        loop: the event loop; None for the one that runs when the socket is ready.
        session: a number that tells this endpoint from others of its producer.
        producer: who made this protocol.
        logger: where it logs.
        **kw: ``consumer_factory`` makes the consumer of each exchange, called without arguments.
            ``timeout``: on a client, idle seconds after which the endpoint closes; on a server,
            seconds that an exchange may take (``exchange_timeout``, 30).  ``max_payload``: bytes
            of a datagram that is sent.  ``low_limit`` and ``high_limit``: bytes of the queue of
            datagrams that wait to be sent.

    Raises:
        TypeError: ``consumer_factory`` is not callable, or a keyword is unknown.
        ValueError: a time-out or a limit out of range.
    """

    #: Seconds that a request may take, when it does not say how many.
    request_timeout: float = 5.0
    #: When to send the request of an idempotent consumer again, and how often: a tenacity object,
    #: of which ``wait`` and ``stop`` are used.  None: never.
    retry: tenacity.BaseRetrying | None = tenacity.Retrying(
        wait=tenacity.wait_exponential(multiplier=0.5, max=4.0) + tenacity.wait_random(0, 0.25),
        stop=tenacity.stop_after_attempt(5),
    )

    _next_consumer: ProtocolConsumer | None = None
    _book: DatagramRequests | None = None

    # What users call

    @property
    def requests_processed(self) -> int:
        """How many exchanges were started on this socket."""
        return self._requests_processed

    @property
    def is_reusable(self) -> bool:
        """True only if the next exchange can't be touched by anything that was before.

        The socket is open, nothing waits to be sent or to be answered, and no datagram that
        comes later could be taken for the reply to another request.
        """
        return (
            not self.closed
            and not self._paused
            and self._unsent() == 0
            and not self._in_flight
            and (self._book is None or not (len(self._book) or self._book.waits_for_late_replies))
        )

    def info(self) -> dict[str, Any]:
        """What is known of this socket and its producer, for people to read."""
        info = super().info()
        info["connection"]["requests_processed"] = self._requests_processed
        info["datagrams"] = self.datagrams()
        return info

    def datagrams(self) -> dict[str, int]:
        """What became of the datagrams: see `DatagramCounts` and `ReplyMatcher`.

        ``kernel_drops`` is there where the system tells how many it dropped.
        """
        counts = self.counts.as_dict()
        if self._book is not None:
            matcher = self._book.matcher
            counts.update(
                late=matcher.late, duplicates=matcher.duplicates, foreign=matcher.foreign
            )
        sock = self.sock
        if isinstance(sock, socket.socket) and sock.fileno() >= 0:
            drops = kernel_drops(sock)
            if drops is not None:
                counts["kernel_drops"] = drops
        return counts

    def current_consumer(self, addr: Any = None) -> ProtocolConsumer:
        """A consumer for the next request (clients); the same until it is started.

        Args:
            addr: the peer, on a socket that is not connected.

        Raises:
            TypeError: the consumer factory is missing or gives something else.
        """
        consumer = self._next_consumer
        if consumer is None or consumer._started or consumer._done:
            consumer = self._next_consumer = self._client_consumer(addr)
        return consumer

    async def request(
        self, message: Any, timeout: float | None = None, *, addr: Any = None
    ) -> Any:
        """Make one request; many may be in flight if the consumer has a ``match_key``.

        Without one, a request waits until those to the same peer are over.

        Args:
            message: what the consumer finds as its ``request``.
            timeout: seconds for all of it, waiting and sending again included;
                ``request_timeout`` (5) by default.
            addr: ``(host, port)`` of the peer, with an IP address for the host, on a socket that
                is not connected.

        Returns:
            The result of the request.

        Raises:
            RequestTimeout: there was no reply in time; the message names the peer.
            OSError: the peer can't be reached (``ConnectionRefusedError``).
            MessageTooLarge: the reply is longer than ``max_datagram``.
            ConnectionClosed: the endpoint is closed.
            ValueError: the request is longer than ``max_payload``, or an argument is wrong.
            Exception: whatever the consumer raised or finished with.

        Cancelling it abandons the request; its reply is dropped when it comes.
        """
        if self._transport is None or self._closing:
            raise ConnectionClosed(f"{self}: can't make a request, the endpoint is closed")
        check_seconds("timeout", timeout)
        consumer = self._client_consumer(addr)
        exchange: ClientExchange = consumer.connection
        assert self._book is not None
        self._book.set_deadline(exchange, self.request_timeout if timeout is None else timeout)
        producer = self.producer
        try:
            if consumer._one_time is not None or (
                producer is not None and producer._many_times is not None
            ):
                await consumer.start(message)
                return await consumer.on_finished
            waiter = get_running_loop().create_future()
            consumer.begin(message, waiter)
            return await waiter
        finally:
            if not consumer._done:
                self._book.abandon(exchange)

    def _client_consumer(self, addr: Any) -> ProtocolConsumer:
        """Make a consumer with an exchange of its own."""
        if self.server_side:
            raise RuntimeError(f"{self}: a server makes no requests")
        if self._book is None:
            if self._loop is None:
                raise RuntimeError(f"{self}: the endpoint is not open yet")
            self._book = DatagramRequests(self, self._loop)
        exchange = ClientExchange(self, self.peer_address(addr), self._book)
        producer = self.producer
        if producer is None:
            consumer = make_consumer(self._consumer_factory)
        else:
            consumer = producer.build_consumer(self._consumer_factory)
        consumer.connection = exchange
        self._book.begin(exchange, consumer)
        try:
            consumer.connection_made(exchange)
        except BaseException:
            self._book.abandon(exchange)
            raise
        return consumer

    def peer_address(self, addr: Any) -> Any:
        """The form in which the system names a peer.

        Raises:
            ValueError: there is no peer, another one than the socket is connected to, or its host
                is not an IP address.
        """
        if addr is None:
            if self._peer is None:
                raise ValueError(
                    f"{self}: the socket is not connected, expected addr=(host, port)"
                )
            return self._peer
        known = self._names.get(addr)
        if known is None:
            known = _numeric(addr, self._family)
            if len(self._names) >= 1024:
                self._names.clear()
            self._names[addr] = known
        if self._peer is not None and known != self._peer:
            raise ValueError(f"addr is {addr!r}, but the socket is connected to {self._peer!r}")
        return known

    def _is_busy(self) -> bool:
        return bool(self._in_flight) or (self._book is not None and len(self._book) > 0)

    # What the requests call

    def renew_socket(self) -> bool:
        """Have another port, so that late replies reach nobody; False if that can't be."""
        renew = getattr(self._transport, "renew", None)
        if renew is None:
            return False
        try:
            done: bool = renew()
        except OSError as exc:
            self.logger.debug("%s: no other socket: %s", self, exc)
            return False
        return done

    # What the transport calls

    def datagrams_received(self, datagrams: Iterator[tuple[bytes, Any]]) -> None:
        """Take what has arrived: each goes to ``datagram_received``, or where that would give it.

        What taking the next raises is the transport's affair, and goes back to it.
        """
        if self.server_side and type(self).datagram_received is DatagramProtocol.datagram_received:
            self.serve_burst(datagrams)
            return
        for data, addr in datagrams:
            try:
                self.datagram_received(data, addr)
            except Exception as exc:  # noqa: BLE001 - nor may it pass for one of the socket
                get_running_loop().call_exception_handler(
                    {
                        "message": f"{self}: datagram_received() failed",
                        "exception": exc,
                        "protocol": self,
                        "transport": self._transport,
                    }
                )
            if self.interrupted:
                return

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Take a datagram: serve it, or find the request that it answers.  May be overridden."""
        if self.server_side:
            self.serve(data, addr)
            return
        self.counts.received += 1
        if self._timeout is not None and self._loop is not None:
            self._last_activity = self._loop.time()
        if self._many_times is not None:
            self._fire_many("data_received", data=data)
        if self._book is not None:
            self._book.reply_received(data, addr if self._peer is None else self._peer)
        if self._many_times is not None:
            self._fire_many("data_processed", data=data)

    def datagram_truncated(self, data: bytes, addr: Any) -> None:
        """A datagram is longer than ``max_datagram``; its end is lost.

        It is counted and dropped; the request that it answers ends with ``MessageTooLarge``.
        """
        self.counts.received += 1
        self.counts.truncated += 1
        if not self.server_side and self._book is not None:
            peer = addr if self._peer is None else self._peer
            self._book.reply_received(data, peer, truncated=True)

    def error_received(self, exc: Exception) -> None:
        """The network reports that a peer can't be reached: its exchanges end with the error.

        May be overridden.
        """
        self.counts.refused += 1
        address, quoted = self._reported
        if address is None:
            address = self._peer
        if address is None:
            # Of one of many peers, and the system does not say of which: none is to blame.
            self.logger.debug("%s: %s", self, exc)
            return
        if self._book is not None:
            self._book.fail(exc, address, quoted)
        if self._in_flight:
            self.lose_peer(address, exc)

    def peer_error_received(self, exc: OSError, addr: Any, quoted: bytes) -> None:
        """An error, and whom it is about: tells ``error_received``.

        Args:
            exc: the error.
            addr: the peer.
            quoted: as much of the datagram that did not arrive as the network gave back.
        """
        self._reported = (addr if self._peer is None else self._peer, quoted)
        try:
            self.error_received(exc)
        finally:
            self._reported = (None, b"")

    def connection_lost(self, exc: BaseException | None) -> None:
        """The socket is closed: fail what is in flight and let nobody wait."""
        if self._lost:
            return
        super().connection_lost(exc)
        self.lose_exchanges(exc)
        if self._book is not None:
            self._book.lose(exc)


def _numeric(addr: Any, family: int) -> Any:
    """Write an address as the system does.

    Raises:
        ValueError: it has another form, another family, or a name for a host.
    """
    try:
        host, port = addr[:2]
        found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)
    except (TypeError, ValueError, OSError, UnicodeError) as exc:
        raise ValueError(
            f"addr is {addr!r}, expected (host, port) with an IP address of the socket's family"
        ) from exc
    return found[0][4]
