"""A server of stream connections: TCP, TLS and unix sockets.

This module knows nothing of processes, signals or settings.
"""

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Self

from pulsar_client.addresses import check_address, format_address
from pulsar_client.durations import check_seconds
from pulsar_client.protocols.producer import Producer
from pulsar_client.servers.acceptor import Acceptor
from pulsar_client.servers.farewell import Farewell
from pulsar_client.servers.listening_sockets import (
    bind_listening_sockets,
    remove_socket_file,
    socket_file_inode,
)
from pulsar_client.servers.patience import Limits, Patience

__all__ = ["TcpServer"]

_logger = logging.getLogger("pulsar_client.servers")


class TcpServer(Producer):
    """Serves connections made by ``protocol_factory``.

    Args:
        protocol_factory: called as ``factory(session=, producer=, loop=, logger=, **kw)``;
            usually ``partial(Connection, YourConsumer)``.
        loop: the event loop; None for the running one.
        address: ``(host, port)``, ``("", port)`` for every interface of IPv4 and IPv6 (port 0:
            any, the same for both), or ``"unix:/path"``.
        name: what log lines call this server.
        sockets: bound stream sockets to serve instead of an address; closed with the server.
        max_requests: close gracefully when so many requests have been started; None or 0 for
            never.
        keep_alive: seconds after which an idle connection is closed; None or 0 for never.
        logger: where the server and its connections log.
        max_connections: stop accepting while there are so many connections, those in their TLS
            handshake included; None or 0 for no limit.  Further clients wait in the backlog.
        handshake_timeout: seconds that a client may take for its TLS handshake.
        first_byte_timeout: seconds until a new connection must have sent something, unless the
            server has written to it.
        message_timeout: seconds from the first byte of a request until it must be complete,
            whatever comes meanwhile: until its consumer writes, finishes, has a task, or has set
            its ``request``.
        write_timeout: seconds in which a client that is written to must take something of it.
        max_message: bytes of a request until it must be complete; more is a protocol error.
        accept_gate: called without arguments before each accept; gives the seconds that this
            server should wait before the next one, 0 for none.  It lets servers that share a
            socket leave a connection to one that has less to do.
        on_connections: called with the number of connections whenever it has changed.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range; the message names it.
    """

    ONE_TIME_EVENTS = ("start", "stop")

    server_side = True
    #: Seconds that ``close()`` gives requests in flight before it aborts their connections.
    close_grace: float = 5.0
    #: Seconds that ``close()`` gives a connection that has not sent anything yet.
    first_byte_grace: float = 1.0

    def __init__(
        self,
        protocol_factory: Callable[..., Any] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        address: Any = None,
        name: str | None = None,
        sockets: Iterable[socket.socket] | None = None,
        max_requests: int | None = None,
        keep_alive: float | None = None,
        logger: logging.Logger | None = None,
        *,
        max_connections: int | None = None,
        handshake_timeout: float = 10.0,
        first_byte_timeout: float | None = 30.0,
        message_timeout: float | None = 60.0,
        write_timeout: float | None = 30.0,
        max_message: int | None = 2**25,
        accept_gate: Callable[[], float] | None = None,
        on_connections: Callable[[int], object] | None = None,
    ) -> None:
        super().__init__(loop, protocol_factory, name, max_requests, logger or _logger)
        _check_count("max_connections", max_connections)
        _check_count("max_message", max_message)
        check_seconds("handshake_timeout", handshake_timeout)
        if not handshake_timeout:
            raise ValueError(f"handshake_timeout is {handshake_timeout!r}, expected seconds > 0")
        check_seconds("first_byte_timeout", first_byte_timeout)
        check_seconds("message_timeout", message_timeout)
        check_seconds("write_timeout", write_timeout)
        _check_callable("accept_gate", accept_gate)
        _check_callable("on_connections", on_connections)
        if address is not None:
            check_address(address)
        check_seconds("keep_alive", keep_alive)
        self._requested_address = address
        try:
            self._given_sockets = list(sockets or ()) or None
        except TypeError:
            raise TypeError(f"sockets is {sockets!r}, expected bound stream sockets") from None
        if address is not None and self._given_sockets is not None:
            raise ValueError(
                f"address is {address!r} and sockets {self._given_sockets!r}, expected one of them"
            )
        for sock in self._given_sockets or ():
            if not isinstance(sock, socket.socket) or sock.type != socket.SOCK_STREAM:
                raise TypeError(f"sockets has {sock!r}, expected bound stream sockets")
        self.keep_alive = keep_alive or None
        self.max_connections = max_connections or None
        self.max_message = max_message or None
        self.handshake_timeout = handshake_timeout
        self._limits = Limits(
            first_byte_timeout or None, message_timeout or None, write_timeout or None
        )
        self._patience: Patience | None = None
        self._accept_gate = accept_gate
        self._on_connections = on_connections
        self._sockets: list[socket.socket] = []
        # The file of the unix socket that this server made, and nobody else's.
        self._socket_file: tuple[int, int] | None = None
        self._addresses: list[Any] = []
        self._acceptor: Acceptor | None = None
        self._backlog = 0
        self._started_at: float | None = None
        self._close_task: asyncio.Task[None] | None = None
        self._all_lost: asyncio.Future[None] | None = None
        self._farewell: Farewell | None = None

    def __repr__(self) -> str:
        where = ", ".join(format_address(a) for a in self._addresses)
        if where:
            where = f"on {where}"
        elif self._requested_address is not None:
            where = f"not serving {format_address(self._requested_address)}"
        else:
            where = "not serving"
        return (
            f"<{type(self).__name__} {self.name!r} {where}: "
            f"{len(self._protocols)} connections, {self._requests_processed} requests>"
        )

    @property
    def address(self) -> Any:
        """The first address served, as its socket names it; None while not serving.

        For a unix socket it is ``"unix:/path"``, so that a client can be given it as it is.
        """
        return self._addresses[0] if self._addresses else None

    @property
    def addresses(self) -> list[Any]:
        """Every address served; empty while not serving."""
        return list(self._addresses)

    @property
    def sockets(self) -> list[socket.socket] | None:
        """The listening sockets; None while not serving."""
        return list(self._sockets) or None

    @property
    def connections(self) -> int:
        """How many connections there are, those in their TLS handshake included."""
        arriving = 0 if self._acceptor is None else self._acceptor.arriving
        return len(self._protocols) + arriving

    def info(self) -> dict[str, Any]:
        """What is known of this server, for people to read."""
        uptime = 0.0
        if self._started_at is not None and self._loop is not None:
            uptime = self._loop.time() - self._started_at
        return {
            "server": {
                "uptime_in_seconds": int(uptime),
                "sockets": [{"address": format_address(a)} for a in self._addresses],
                "max_requests": self.max_requests,
                "keep_alive": self.keep_alive,
            },
            "clients": {
                "processed_clients": self._sessions,
                "connected_clients": len(self._protocols),
                "requests_processed": self._requests_processed,
            },
        }

    async def __aenter__(self) -> Self:
        if not self._sockets:
            await self.start_serving()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start_serving(
        self, backlog: int = 100, sslcontext: ssl.SSLContext | None = None
    ) -> None:
        """Bind if necessary and accept connections; ``start`` fires when it does.

        Args:
            backlog: connections that may wait to be accepted.
            sslcontext: serve TLS with it; None for plain connections.

        Raises:
            RuntimeError: it serves already, or is closed.
            ValueError: neither an address nor sockets were given, or ``backlog`` is below 1.
            TypeError: ``sslcontext`` is no SSLContext.
            OSError: the address can't be bound.
        """
        if self._sockets or self._close_task is not None:
            state = "closed" if self._close_task is not None else "serving already"
            raise RuntimeError(f"{self!r} is {state}: a server serves once")
        if isinstance(backlog, bool) or not isinstance(backlog, int) or backlog < 1:
            raise ValueError(f"backlog is {backlog!r}, expected an int >= 1")
        if sslcontext is not None and not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(f"sslcontext is {sslcontext!r}, expected an ssl.SSLContext or None")
        if self.protocol_factory is None:
            raise TypeError(
                f"{self!r} has no protocol_factory, expected a callable such as "
                "partial(Connection, YourConsumer)"
            )
        loop = self._loop = asyncio.get_running_loop()
        sockets = self._given_sockets
        if sockets is None:
            if self._requested_address is None:
                raise ValueError(f"{self!r} has neither an address nor sockets to serve")
            sockets = bind_listening_sockets(self._requested_address, backlog=backlog)
            self._socket_file = socket_file_inode(self._requested_address)
        self._sockets = sockets
        options: dict[str, Any] = {}
        if sslcontext is not None:
            options = {"ssl": sslcontext, "ssl_handshake_timeout": self.handshake_timeout}
        held = self.max_connections is not None or self._accept_gate is not None
        self._backlog = backlog
        self._acceptor = Acceptor(
            loop,
            sockets,
            self._accept,
            admit=self._admit if held else None,
            on_change=None if self._on_connections is None else self._connections_changed,
            logger=self.logger,
            options=options,
        )
        try:
            for sock in sockets:
                sock.listen(backlog)
                sock.setblocking(False)
            self._addresses = [_name_of(sock) for sock in sockets]
            await self._acceptor.start(backlog)
            if self._close_task is not None:
                raise RuntimeError(f"{self!r} was closed while it started")
        except BaseException:
            self._stop_listening()
            self._sockets = []
            self._addresses = []
            raise
        self._patience = Patience(loop, self._protocols, self._limits, self.logger)
        self._patience.start()
        self._started_at = loop.time()
        self.logger.debug("%r is serving", self)
        self.fire_event("start")

    def _accept(self) -> Any:
        try:
            return self.create_protocol()
        except Exception:
            # Nobody else would be told, and the client would wait.
            self.logger.exception("%r: can't make a protocol for a connection", self)
            return _Refusal()

    def _admit(self) -> float:
        """Seconds until the next connection may be accepted."""
        if self.max_connections is not None and self.connections >= self.max_connections:
            return math.inf
        return 0.0 if self._accept_gate is None else self._accept_gate()

    def _connections_changed(self) -> None:
        assert self._on_connections is not None
        try:
            self._on_connections(self.connections)
        except Exception:
            self.logger.exception("%r: on_connections failed", self)

    def create_protocol(self, **kw: Any) -> Any:
        """Make the protocol of an accepted connection, with this server's ``keep_alive``."""
        if self.keep_alive is not None:
            kw.setdefault("timeout", self.keep_alive)
        return super().create_protocol(**kw)

    async def close(self, *, grace: float | None = None, accept_queued: bool = True) -> None:
        """Stop gracefully; ``stop`` fires when all is closed.

        Connections in the backlog are accepted, ``backlog`` of them at most, then no more.  Idle
        connections close, but one that has not sent anything yet has ``first_byte_grace`` seconds
        to do so; requests in flight may finish.  What is left after ``grace`` seconds is aborted.
        Idempotent; cancelling the wait does not stop it.

        Args:
            grace: seconds; ``close_grace`` (5) by default.  With 0 nothing is accepted.
            accept_queued: whether to accept what is in the backlog.  Closing the socket would
                reset it, unless another process listens on the same socket: then False leaves it
                to that one.
        """
        check_seconds("grace", grace)
        self._begin_close(self.close_grace if grace is None else grace, accept_queued)
        assert self._close_task is not None
        await asyncio.shield(self._close_task)

    def _begin_close(self, grace: float, accept_queued: bool = True) -> None:
        if self._close_task is None:
            self._close_task = asyncio.get_running_loop().create_task(
                self._close(grace, accept_queued and grace > 0), name=f"close of {self.name}"
            )

    async def _close(self, grace: float, accept_queued: bool) -> None:
        loop = asyncio.get_running_loop()
        acceptor = self._acceptor
        deadline = loop.time() + grace
        self._stop_listening(accept_queued)
        farewell = self._farewell = Farewell(loop, min(self.first_byte_grace, grace))
        await farewell.begin(self._protocols)
        try:
            async with asyncio.timeout_at(deadline):
                if acceptor is not None:
                    await acceptor.wait_arrived()
                await self._wait_lost()
        except TimeoutError:
            if acceptor is not None:
                await acceptor.abort()
            if grace > 0 and self._protocols:
                text = "%r: %d connections are cut after %g s"
                self.logger.warning(text, self, len(self._protocols), grace)
            for protocol in tuple(self._protocols):
                protocol.abort()
            try:
                async with asyncio.timeout(1.0):
                    await self._wait_lost()
            except TimeoutError:
                self.logger.warning("%r: connections are left that can't be aborted", self)
        farewell.end()
        if self._patience is not None:
            self._patience.stop()
        self._addresses = []
        self._sockets = []
        self.fire_event("stop")

    async def _wait_lost(self) -> None:
        if self._protocols:
            self._all_lost = asyncio.get_running_loop().create_future()
            try:
                await self._all_lost
            finally:
                self._all_lost = None

    def _stop_listening(self, accept_queued: bool = False) -> None:
        if self._socket_file is not None:
            remove_socket_file(self._requested_address, self._socket_file)
            self._socket_file = None
        if self._acceptor is not None:
            self._acceptor.stop()
            if accept_queued:
                # In one go with the close: what arrives in between would be reset.
                self._acceptor.drain(self._backlog)
        for sock in self._sockets or self._given_sockets or ():
            sock.close()

    # What its protocols call

    def request_started(self) -> None:
        """Count a request; the last of ``max_requests`` begins the close."""
        self._requests_processed += 1
        if self.max_requests is not None and self._requests_processed >= self.max_requests:
            self._begin_close(self.close_grace)

    def protocol_made(self, protocol: Any) -> None:
        """Keep track of a connection, to close it with the server."""
        super().protocol_made(protocol)
        if self._acceptor is not None:
            self._acceptor.arrived(protocol)
        if self._farewell is not None:
            self._farewell.say(protocol)  # accepted before the close, ready only now

    def protocol_lost(self, protocol: Any) -> None:
        """Forget a connection."""
        super().protocol_lost(protocol)
        if self._acceptor is not None:
            self._acceptor.resume()
        if self._on_connections is not None:
            self._connections_changed()
        if not self._protocols and self._all_lost is not None and not self._all_lost.done():
            self._all_lost.set_result(None)


class _Refusal(asyncio.Protocol):
    """Closes the connection for which no protocol could be made."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()


def _name_of(sock: socket.socket) -> Any:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return format_address(name)
    return name


def _check_count(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{name} is {value!r}, expected an int >= 0 or None")


def _check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {value!r}, expected a callable or None")
