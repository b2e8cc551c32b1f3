"""The bridge between a transport and the consumers of its data: a connection's life.

How it feeds consumers is in ``consumer_feed``, with the rules that keep exchanges pure.  This
module knows nothing of pools, of addresses, or of what the bytes mean.
"""

import asyncio
import select
from asyncio import get_running_loop
from collections.abc import Callable
from typing import Any

from pulsar_client.events import OneTime
from pulsar_client.protocols.consumer_feed import ConsumerFeed
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["Connection"]


class Connection(ConsumerFeed):
    """A stream connection that hands its data to consumers, one exchange after the other.

    Args:
        consumer_factory: makes the consumer of each exchange; called without arguments.
        timeout: idle seconds after which the connection closes; None or 0 for never.
        **kw: see :class:`~pulsar_client.PulsarProtocol`.

    Raises:
        TypeError: ``consumer_factory`` is not callable, or a keyword is unknown.
        ValueError: a time-out or a limit out of range.
    """

    #: Seconds in which replies must be done once the peer has closed its sending side.
    eof_grace: float = 30.0

    # Which request is incomplete, and how many bytes of it were taken; see message_limit.
    _taken: tuple[int, int] | None = None
    _eof_handle: asyncio.TimerHandle | None = None
    # What looks at the socket; False if nothing can.
    _poll: Any = None

    def __init__(
        self,
        consumer_factory: Callable[[], ProtocolConsumer] | None = None,
        timeout: float | None = None,
        **kw: Any,
    ) -> None:
        super().__init__(consumer_factory, timeout=timeout, **kw)

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
        return (
            self._current_consumer is None
            and not self._closing
            and not self._upgraded
            and not self._buffered
            and not self._last_request
            and not self._paused
            and self._transport is not None
            and not self._transport.is_closing()
            and self._transport.get_write_buffer_size() == 0
            and (self.parser is None or not getattr(self.parser, "pending", 0))
            and not self._has_news()
        )

    def _has_news(self) -> bool:
        """The system has bytes of the peer, or its end of file, which the loop has not seen yet.

        A server that ends sends its end of file right behind the last reply.  The task that gets
        the reply runs before the loop looks at the socket again, and would write its next request
        into the void (P16).
        """
        poll = self._poll
        if poll is None:
            poll = self._poll = _poll_of(self._transport)
        return poll is not False and bool(poll.poll(0))

    def info(self) -> dict[str, Any]:
        """What is known of this connection and its producer, for people to read."""
        info = super().info()
        info["connection"]["requests_processed"] = self._requests_processed
        return info

    # Consumers

    async def request(self, message: Any) -> Any:
        """Make one request: ``start`` and ``on_finished`` of the current consumer, but cheaper.

        There is no time-out here; use ``asyncio.timeout`` around it.

        Args:
            message: what the consumer finds as its ``request``.

        Returns:
            The result of the request.

        Raises:
            RuntimeError: another request is in flight, or there is no transport.
            ConnectionClosed: the connection was lost; ``sent`` tells whether any byte was written.
            AbortRequest: a ``pre_request`` callback aborted it.
            Exception: whatever the consumer raised or finished with, ``ProtocolError`` above all.

        Cancelling it abandons the request: the connection is then not reusable.
        """
        consumer = self.current_consumer()
        producer = self.producer
        if consumer._one_time is not None or (
            producer is not None and producer._many_times is not None
        ):
            await consumer.start(message)
            return await consumer.on_finished
        # Nobody listens: a future instead of an event, and nothing to wait for before.
        waiter = get_running_loop().create_future()
        consumer.begin(message, waiter)
        return await waiter

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
        if self._current_consumer is None:
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
        if consumer is not None and consumer._handed_over and not consumer.eof_received():
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
        consumer = self._current_consumer
        self._current_consumer = None
        if consumer is None:
            return
        consumer.cancel_tasks()
        if not consumer._done:
            try:
                consumer.connection_lost(exc)
            except (Exception, asyncio.CancelledError):
                self.logger.exception("%s: connection_lost of %r failed", self, consumer)
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
            if self._buffered and not self._feeding and self._is_between_requests():
                self._after_request()
            if not self._paused:
                self._release_reading(self._HOLD_THROTTLE)


def _poll_of(transport: Any) -> Any:
    """What tells whether the socket of a plain transport has something to read; else False."""
    sock = transport.get_extra_info("socket")
    # Over TLS there may be bytes that are nobody's: session tickets, say.
    if sock is None or transport.get_extra_info("sslcontext") or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return poll
