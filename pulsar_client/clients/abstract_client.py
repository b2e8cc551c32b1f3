"""Clients of stream protocols: how a connection to an address comes about.

This module knows nothing of any protocol that is spoken.
"""

import asyncio
import contextlib
import logging
import socket
import ssl as ssl_module
from collections.abc import Awaitable, Callable
from typing import Any, Self

from pulsar_client.addresses import Address, check_address, format_address, unix_path
from pulsar_client.clients.address_watch import AddressWatch
from pulsar_client.clients.connector import open_socket
from pulsar_client.clients.exchanges import Exchanges
from pulsar_client.clients.keep_alive import KeepAlive
from pulsar_client.durations import check_seconds
from pulsar_client.pool.pool import Pool
from pulsar_client.protocols.producer import checked_protocol
from pulsar_client.protocols.protocol import PulsarProtocol
from pulsar_client.tls import client_context

__all__ = ["AbstractClient"]

_logger = logging.getLogger("pulsar_client.clients")
_DEFAULT: Any = object()


class AbstractClient(Exchanges):
    """Base of clients: makes connections, counts them, closes them.

    A subclass implements :meth:`connect`, usually with :meth:`create_connection`, and may keep a
    :class:`~pulsar_client.Pool` in ``self.pool``, which is then closed with the client.

    Args:
        loop: the event loop; None for the running one.
        protocol_factory: makes the protocol of each connection, usually
            ``partial(Connection, YourConsumer)``; None for the class attribute of that name.
        name: what log lines call this client.
        max_requests: kept for subclasses; a client does not act on it.
        logger: where the client and its connections log.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range; the message names it.
    """

    #: Seconds in which a connection must be made when the caller names no ``timeout``.
    connect_timeout: float | None = 10.0

    _watches: tuple[AddressWatch, ...] = ()

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        protocol_factory: Callable[..., Any] | None = None,
        name: str | None = None,
        max_requests: int | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        super().__init__(loop, protocol_factory, name, max_requests, logger or _logger)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r}: {len(self._protocols)} connections, "
            f"{self._requests_processed} requests>"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
        await self.wait_closed()

    def connect(self) -> Awaitable[Any]:
        """Open a connection: subclasses implement it; it fits a pool's ``creator``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement connect()")

    async def create_connection(
        self,
        address: Any,
        protocol_factory: Callable[..., Any] | None = None,
        *,
        ssl: ssl_module.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        local_addr: tuple[str, int] | None = None,
        timeout: float | None = _DEFAULT,
        keep_alive: float | None = 15,
        keep_alive_interval: float = 5,
        keep_alive_count: int = 3,
        user_timeout: float | None = 30.0,
        **kw: Any,
    ) -> Any:
        """Connect to an address.

        Every address that the host name resolves to is tried, those of both families in turn
        (Happy Eyeballs, RFC 8305).

        Args:
            address: ``(host, port)`` or ``"unix:/path"``.
            protocol_factory: makes the protocol instead of the client's factory; called with the
                same keywords.
            ssl: an SSLContext, or True for one that verifies the certificate and the host name
                against the system's authorities; None or False for a plain connection.
            server_hostname: the name that the certificate must have; the host by default.
            local_addr: ``(host, port)`` to connect from.
            timeout: seconds for all of it: name, connection, TLS and the coroutine callbacks of
                ``connection_made``; ``connect_timeout`` (10) by default, None for no limit.
            keep_alive: whole seconds without traffic after which the system asks the peer for a
                sign of life; None for never.
            keep_alive_interval: whole seconds between such probes.
            keep_alive_count: probes without an answer after which the connection is lost.
            user_timeout: seconds without an acknowledgement, or with a peer that takes nothing,
                after which a connection with data to send is lost; None for the system's own
                patience, a quarter of an hour.  Linux only; there it ends the probing too.
            **kw: handed to the protocol factory.

        Returns:
            The protocol, after ``connection_made`` and its callbacks.

        Raises:
            TimeoutError: it took longer than ``timeout``; the message names the address.
            OSError: no address answered, or the TLS handshake failed (``ssl.SSLError``).
            TypeError, ValueError: an argument is wrong; the message names it.

        Cancelling it leaves no socket behind.
        """
        check_address(address)
        if timeout is _DEFAULT:
            timeout = self.connect_timeout
        check_seconds("timeout", timeout)
        if protocol_factory is not None and not callable(protocol_factory):
            raise TypeError(
                f"protocol_factory is {protocol_factory!r}, expected a callable that makes a "
                "protocol"
            )
        context, server_hostname = _tls_parameters(address, ssl, server_hostname)
        alive = KeepAlive(keep_alive, keep_alive_interval, keep_alive_count, user_timeout)
        started = asyncio.timeout(timeout)
        try:
            async with started:
                return await self._connect(
                    address, protocol_factory, context, server_hostname, local_addr, alive, kw
                )
        except TimeoutError as exc:
            if not started.expired():
                raise
            raise TimeoutError(
                f"{format_address(address)}: no connection within {timeout} s"
            ) from exc

    async def _connect(
        self,
        address: Any,
        protocol_factory: Callable[..., Any] | None,
        context: ssl_module.SSLContext | None,
        server_hostname: str | None,
        local_addr: tuple[str, int] | None,
        keep_alive: KeepAlive,
        kw: dict[str, Any],
    ) -> Any:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop

        protocol: Any = None

        def make_protocol() -> Any:
            nonlocal protocol
            if protocol_factory is None:
                protocol = self.create_protocol(**kw)
            else:
                self._sessions += 1
                protocol = checked_protocol(
                    protocol_factory,
                    protocol_factory(
                        session=self._sessions, producer=self, loop=loop, logger=self.logger, **kw
                    ),
                )
            return protocol

        sock = await open_socket(address, local_addr=local_addr)
        create = (
            loop.create_unix_connection
            if sock.family == socket.AF_UNIX
            else loop.create_connection
        )
        try:
            keep_alive.apply(sock)
            transport, _ = await create(
                make_protocol,
                sock=sock,
                ssl=context,
                server_hostname=server_hostname if context is not None else None,
            )
        except BaseException as exc:
            if protocol is None or isinstance(exc, Exception):
                sock.close()  # no transport has it, or one that has ended
            else:
                # Cancelled, and a transport has it.  asyncio's TLS transport would go on for long:
                # to close it does nothing before the handshake, and waits for the peer after it.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            if isinstance(protocol, PulsarProtocol):
                # uvloop may have called connection_made, or be about to, and then says no more.
                protocol.connection_lost(None)
            if context is not None and isinstance(exc, OSError):
                raise _handshake_error(address, exc) from exc
            raise
        try:
            made = protocol.event("connection_made") if hasattr(protocol, "event") else None
            if made is not None:
                await made
        except BaseException:
            transport.abort()
            raise
        return protocol

    def watch_address(
        self,
        address: Address,
        *,
        interval: float = 30.0,
        misses: int = 2,
        timeout: float = 10.0,
        pool: Pool | None = None,
    ) -> AddressWatch:
        """Have connections replaced whose address the host name has lost; until the client closes.

        Args:
            address: ``(host, port)``, what :meth:`connect` connects to.
            interval: see :class:`~pulsar_client.AddressWatch`, as for ``misses`` and ``timeout``.
            misses: how many answers in a row must lack an address.
            timeout: seconds for one lookup.
            pool: the pool to look after; the client's own by default.

        Returns:
            The watch, which has begun.

        Raises:
            RuntimeError: no event loop is running, or the client has no pool.
            TypeError, ValueError: an argument is wrong; the message names it.
        """
        watch = AddressWatch(
            address,
            self._own_pool() if pool is None else pool,
            interval=interval,
            misses=misses,
            timeout=timeout,
        )
        watch.start()
        self._watches = (*self._watches, watch)
        return watch

    def close(self) -> None:
        """Close every connection, sending what was written before; the pool lets leases end.

        :meth:`wait_closed` waits for the end of it.
        """
        self._end_watches()
        pool = self.pool
        if pool is not None:
            pool.close()
        for protocol in tuple(self._protocols):
            if pool is None or protocol not in pool:
                protocol.close()

    async def wait_closed(self) -> None:
        """Wait until every connection is closed; call :meth:`close` or :meth:`abort` before.

        Bounded: a connection that does not close within its grace (3 s) is cut off, a pool's
        leases after 10 s.
        """
        for watch in self._watches:
            watch.close()
            await watch.wait_closed()
        if self.pool is not None:
            await self.pool.close()
        for protocol in tuple(self._protocols):
            closed = protocol.close()
            try:
                await closed
            except OSError as exc:
                self.logger.debug("%s: lost while closing: %r", protocol, exc)

    def abort(self) -> None:
        """Cut every connection; what was not sent yet is lost."""
        self._end_watches()
        if self.pool is not None:
            self.pool.close(timeout=0)
        for protocol in tuple(self._protocols):
            protocol.abort()

    def _end_watches(self) -> None:
        for watch in self._watches:
            watch.close()


def _handshake_error(address: Any, exc: OSError) -> OSError:
    """An error of a TLS handshake that says with whom."""
    text = (
        f"{format_address(address)}: the TLS handshake failed: {str(exc) or 'connection closed'}"
    )
    if isinstance(exc, ssl_module.SSLCertVerificationError):
        return _CertificateRefused(text, exc)
    if isinstance(exc, ssl_module.SSLError):
        error = ssl_module.SSLError(exc.errno or 0, text)
        error.reason, error.library = exc.reason, exc.library
        return error
    return type(exc)(text) if isinstance(exc, ConnectionError) else exc


class _CertificateRefused(ssl_module.SSLCertVerificationError):
    """A certificate that was refused, with the address in its text."""

    def __init__(self, text: str, exc: ssl_module.SSLCertVerificationError) -> None:
        super().__init__(1, text)
        self.verify_code = exc.verify_code
        self.verify_message = exc.verify_message
        self.reason, self.library = exc.reason, exc.library


def _tls_parameters(
    address: Any, ssl: ssl_module.SSLContext | bool | None, server_hostname: str | None
) -> tuple[ssl_module.SSLContext | None, str | None]:
    """The context to use and the name to verify; names what is wrong."""
    if ssl is not None and not isinstance(ssl, ssl_module.SSLContext | bool):
        raise TypeError(f"ssl is {ssl!r}, expected an ssl.SSLContext, True or None")
    if server_hostname is not None and not isinstance(server_hostname, str):
        raise TypeError(f"server_hostname is {server_hostname!r}, expected a str or None")
    if not ssl:
        if server_hostname is not None:
            raise ValueError(f"server_hostname is {server_hostname!r}, but ssl is off")
        return None, None
    context = client_context() if ssl is True else ssl
    assert isinstance(context, ssl_module.SSLContext)
    if server_hostname is None:
        if unix_path(address) is None:
            server_hostname = address[0]
        elif context.check_hostname:
            raise ValueError(
                f"server_hostname is needed to verify the certificate behind {address}"
            )
        else:
            server_hostname = ""
    return context, server_hostname
