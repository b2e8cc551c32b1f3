"""Protocols with events: the part that every transport has in common.

A protocol knows its transport, how to write, how to close in a bounded time, and who made it.  It
knows nothing of requests and consumers: see ``connection``.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Self

from pulsar_client.addresses import format_address
from pulsar_client.events import EventHandler, OneTime
from pulsar_client.exceptions import ConnectionClosed, ProtocolError
from pulsar_client.protocols.flow_control import FlowControl
from pulsar_client.protocols.idle_timer import Timeout
from pulsar_client.protocols.producer import Producer
from pulsar_client.protocols.receive_buffer import receive_in_buffer

__all__ = ["Protocol", "PulsarProtocol"]

_logger = logging.getLogger("pulsar_client.protocols")


_PACKAGE = __name__.partition(".")[0]
_KEYWORDS = {"high_limit", "low_limit", "many_times_events", "one_time_events", "timeout"}


class PulsarProtocol(FlowControl, Timeout):
    """Base of every protocol of this library.

    Args:
        loop: the event loop; None for the one that runs when the connection is made.
        session: a number that tells this connection from others of its producer.
        producer: who made this protocol; its many-times callbacks get this protocol's events.
        logger: where this protocol logs.
        **kw: ``timeout`` (idle seconds), ``low_limit`` and ``high_limit`` (bytes).

    Raises:
        TypeError: an unknown keyword, or a loop that is none.
        ValueError: a time-out or a limit out of range.
    """

    ONE_TIME_EVENTS = ("connection_made", "connection_lost")
    MANY_TIMES_EVENTS = ("data_received", "data_processed", "before_write", "after_write")

    #: Seconds without progress after which ``close()`` gives up sending what was written.
    close_grace: float = 3.0

    _transport: Any
    #: The peer's address, else the socket's own; None before ``connection_made``, and kept after
    #: the loss.
    address: Any = None
    _made = False
    _lost = False
    _lost_exc: BaseException | None = None
    _lost_told = False  # the event has fired, or fires now
    # True from the moment the connection stops being usable, before its transport is gone.
    _closing: bool
    _close_handle: asyncio.TimerHandle | None = None
    # Bytes handed to the transport by write().
    _written: int
    _closing_callbacks: list[Callable[[Any], object]] | None = None
    logger = _logger
    _completed = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        session: int = 1,
        producer: Producer | None = None,
        logger: logging.Logger | None = None,
        **kw: Any,
    ) -> None:
        # What each request reads; see EventHandler.
        if self._completed:
            self._one_time, self._many_times = self._one_time, self._many_times
        else:
            self._one_time = self._many_times = None
        self._transport = self._loop = self.address = self._closing_callbacks = None
        self._closing = self._paused = self._made = False
        self._written = 0
        if kw:
            unknown = kw.keys() - _KEYWORDS
            if unknown:
                raise TypeError(
                    f"{type(self).__name__} got an unexpected keyword argument {min(unknown)!r}; "
                    f"beside its own it takes: {', '.join(sorted(_KEYWORDS))}"
                )
            super().__init__(loop=loop, **kw)
        elif loop is not None:
            # What the bases do when they are given nothing else, without what their calls cost
            # each new connection.
            EventHandler.__init__(self, loop)
        self.session = session
        #: Who made this protocol, or None.
        self.producer: Any = producer
        if logger is not None:
            self.logger = logger

    def __init_subclass__(cls, **kw: Any) -> None:
        super().__init_subclass__(**kw)
        if getattr(cls.__init__, "__module__", "").partition(".")[0] != _PACKAGE:
            # A constructor that may do something, bind a callback say, before it calls ours.
            cls._completed = True
            cls._one_time = cls._many_times = cls._transport = None
            cls._closing = cls._paused = False

    def __repr__(self) -> str:
        where = "<pending>" if self.address is None else format_address(self.address)
        return f"{where} session {self.session}"

    @property
    def transport(self) -> Any:
        """The transport; None before ``connection_made``."""
        return self._transport

    @property
    def sock(self) -> socket.socket | None:
        """The transport's socket, or None."""
        if self._transport is None:
            return None
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        return sock

    @property
    def closed(self) -> bool:
        """True when the connection can't be used: closing, lost, or not made yet."""
        transport = self._transport
        return self._closing or transport is None or transport.is_closing()

    def info(self) -> dict[str, Any]:
        """What is known of this connection and its producer, for people to read."""
        info: dict[str, Any] = {} if self.producer is None else dict(self.producer.info())
        info["connection"] = {
            "session": self.session,
            "address": None if self.address is None else format_address(self.address),
            "closed": self.closed,
            "timeout": self._timeout,
        }
        return info

    def add_closing_callback(self, callback: Callable[[Self], object]) -> None:
        """Call ``callback(self)`` once, in the loop turn in which this stops being usable.

        That is earlier than ``connection_lost``, which comes when the transport is gone: at
        ``close()``, ``abort()``, the peer's end of file, or data nobody asked for.  It is called
        at once if that has happened.  A pool listens here.
        """
        if self._closing:
            callback(self)
        elif self._closing_callbacks is None:
            self._closing_callbacks = [callback]
        else:
            self._closing_callbacks.append(callback)

    def remove_closing_callback(self, callback: Callable[[Self], object]) -> None:
        """Take back what ``add_closing_callback`` added; unknown ones are ignored."""
        if self._closing_callbacks is not None and callback in self._closing_callbacks:
            self._closing_callbacks.remove(callback)

    # What the loop calls

    def connection_made(self, transport: Any) -> None:
        """Take the transport, start the idle timer and fire ``connection_made``."""
        self._transport = transport
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        # A unix peer has the empty name '': then the socket's own says more.
        self.address = transport.get_extra_info("peername") or transport.get_extra_info("sockname")
        if self._closing:
            # close() came before the connection did.
            transport.abort()
            return
        self._set_write_limits(transport)
        self._apply_read_holds()
        if self.producer is not None:
            self.producer.protocol_made(self)
        self._made = True
        if self._timeout is not None:
            self._start_idle_timer()
        self._fire_once("connection_made", self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport is gone: fire ``connection_lost`` with ``exc`` and let nobody wait."""
        if self._lost:
            return
        self._lost = True
        self._lost_exc = exc
        self._begin_closing()
        if self._close_handle is not None:
            self._close_handle.cancel()
            self._close_handle = None
        self._stop_idle_timer()
        if self._paused:
            closed = ConnectionClosed(f"{self}: lost while writing was paused", sent=True)
            closed.__cause__ = exc
            self.resume_writing(closed)
        if not self._made:
            # Whoever waits for the connection must not wait for ever.
            never = ConnectionClosed(f"{self}: lost before it was made")
            never.__cause__ = exc
            self._fire_once("connection_made", self, never)
        elif self.producer is not None:
            self.producer.protocol_lost(self)
        self._lost_told = True
        self._fire_once("connection_lost", self, exc)

    def eof_received(self) -> bool | None:
        """The peer sends no more: close, flushing what was written."""
        self._close()
        return None

    # What users call

    def close(self) -> OneTime:
        """Send what was written before, then close; idempotent.

        A peer that takes nothing of it for ``close_grace`` seconds (3 by default) is cut off.

        Returns:
            The ``connection_lost`` event.  Awaiting it always ends, also when there never was a
            transport; it raises what the connection was lost with, if that was an error.
        """
        event = self._one_time_event("connection_lost")
        self._close()
        return event

    def abort(self) -> None:
        """Close at once; what was not sent yet is lost."""
        self._begin_closing()
        if self._transport is None:
            self.connection_lost(None)
        else:
            self._transport.abort()

    # For subclasses

    def _close(self) -> None:
        """``close`` for those who don't wait for the end of it: creates no event."""
        if self._lost or self._close_handle is not None:
            return
        self._begin_closing()
        transport = self._transport
        if transport is None:
            self.connection_lost(None)
        else:
            assert self._loop is not None
            self._watch_close(self._unsent())
            # Closed twice, asyncio's TLS transport could not be aborted any more.
            if not transport.is_closing():
                transport.close()

    def _watch_close(self, left: int) -> None:
        """Give the peer ``close_grace`` seconds, again as long as it takes what is sent to it."""
        assert self._loop is not None
        self._close_handle = self._loop.call_later(self.close_grace, self._close_timed_out, left)

    def _close_timed_out(self, before: int) -> None:
        left = self._unsent()
        if 0 < left < before:
            self._watch_close(left)
        else:
            self._transport.abort()

    def _begin_closing(self) -> None:
        # Synchronous: a pool must not lease a connection once it is known to be useless (I18).
        if self._closing:
            return
        self._closing = True
        callbacks, self._closing_callbacks = self._closing_callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception:
                self.logger.exception("%s: closing callback %r failed", self, callback)

    def _upstream(self) -> EventHandler | None:
        producer: EventHandler | None = self.producer
        return producer

    def _recall(self, name: str) -> tuple[Any, BaseException | None] | None:
        if name == "connection_lost":
            return (self, self._lost_exc) if self._lost_told else None
        if name == "connection_made":
            if self._made:
                return self, None
            if self._lost:
                return self, ConnectionClosed(f"{self}: lost before it was made")
        return None

    def _is_connected(self) -> bool:
        return self._transport is not None and not self._closing

    def _is_busy(self) -> bool:
        return False

    def _is_sending(self) -> bool:
        return self._unsent() > 0

    def _unsent(self) -> int:
        """How many bytes wait for the peer to take them."""
        try:
            size: int = self._transport.get_write_buffer_size()
        except AttributeError:
            return 0  # asyncio's TLS transport has let go of its protocol: it is closed
        return size

    def _apply_read_holds(self) -> None:
        """Stop reading at once if that was asked for before there was a transport."""

    def _idle_expired(self) -> None:
        self.logger.debug("%s: idle for %s s, closing", self, self._timeout)
        self._close()


class Protocol(PulsarProtocol, asyncio.Protocol):
    """A stream protocol with events; see :class:`PulsarProtocol` for the parameters."""

    # What arrives while start_tls changes the transport.
    _early: list[bytes] | None = None
    _read_holds = 0
    _HOLD_USER = 1
    _HOLD_THROTTLE = 2

    def connection_made(self, transport: Any) -> None:
        """Take the transport, start the idle timer and fire ``connection_made``."""
        receive_in_buffer(self, transport)
        super().connection_made(transport)

    def write(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """Hand bytes to the transport.

        Returns:
            None when the transport takes more; else an awaitable that completes when writing may
            go on, and raises :class:`~pulsar_client.ConnectionClosed` if the connection is lost
            first.  Not awaiting it is allowed: the bytes are on their way either way.

        Raises:
            ConnectionClosed: the connection is closing, lost, or not made yet.
            TypeError: ``data`` is not bytes.
        """
        transport = self._transport
        if transport is None or self._closing or transport.is_closing():
            raise ConnectionClosed(f"{self}: can't write, the connection is closed")
        if self._timeout is not None and self._loop is not None:
            self._last_activity = self._loop.time()
        self._written += len(data)
        producer = self.producer
        if self._many_times is None and (producer is None or producer._many_times is None):
            transport.write(data)
        else:
            self._fire_many("before_write", data=data)
            transport.write(data)
            self._fire_many("after_write", data=data)
        return self._drained() if self._paused else None

    def pause_reading(self) -> None:
        """Take no more bytes from the peer until :meth:`resume_reading`; idempotent."""
        self._hold_reading(self._HOLD_USER)

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`; idempotent."""
        self._release_reading(self._HOLD_USER)

    async def start_tls(self, sslcontext: Any, server_hostname: str | None = None) -> None:
        """Upgrade the transport to TLS in place.

        Args:
            sslcontext: an ``ssl.SSLContext``.
            server_hostname: the name the server's certificate must have (clients).

        Raises:
            RuntimeError: there is no open transport.
            ConnectionClosed: the connection was lost before the handshake was over.
            ProtocolError: bytes that were sent in plain text wait to be consumed; taking them for
                encrypted ones would let an attacker put words into the peer's mouth.
            ssl.SSLError, OSError: the handshake failed; the connection is closed.

        There is no time-out of its own beside the loop's for the handshake; cancelling it closes
        the connection.
        """
        if self._paused:
            # The old transport would tell the TLS layer, and not us, that it has drained.
            await self._drained()
        if self.closed:
            raise RuntimeError(f"{self}: can't start TLS, the connection is closed")
        if self._unread():
            raise ProtocolError(
                f"{self}: {self._unread()} bytes of plain text wait before the handshake"
            )
        loop = asyncio.get_running_loop()
        old = self._transport
        # The loop hands over data of the new transport before it tells us of it.
        self._hold_data()
        try:
            new = await loop.start_tls(
                old,
                self,
                sslcontext,
                server_side=self.producer is not None and self.producer.server_side,
                server_hostname=server_hostname,
            )
            if new is None or self._closing:
                raise ConnectionClosed(f"{self}: connection lost during the TLS handshake")
        except BaseException as exc:
            self._begin_closing()
            old.abort()
            self._release_data()
            # The loop does not always tell a protocol whose handshake was not over.
            loop.call_soon(self.connection_lost, exc if isinstance(exc, OSError) else None)
            raise
        self._transport = new
        receive_in_buffer(self, new)
        loop.call_soon(self._release_data)
        self._set_write_limits(new)
        if self._read_holds:
            new.pause_reading()

    def _unread(self) -> int:
        """How many bytes were received and not consumed."""
        return 0

    def _hold_data(self) -> None:
        """Keep what arrives until the transport is there to which answers go."""
        self._early = []

    def _release_data(self) -> None:
        early, self._early = self._early, None
        for data in early or ():
            if not self._closing:
                self.data_received(data)

    def _apply_read_holds(self) -> None:
        if self._read_holds:
            self._transport.pause_reading()

    def _hold_reading(self, reason: int) -> None:
        if self._read_holds == 0 and not self.closed:
            self._transport.pause_reading()
        self._read_holds |= reason

    def _release_reading(self, reason: int) -> None:
        if self._read_holds & reason:
            self._read_holds &= ~reason
            if self._read_holds == 0 and not self.closed:
                self._transport.resume_reading()
