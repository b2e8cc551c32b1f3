"""Clients of datagram protocols: how an endpoint comes about.

This module knows nothing of any protocol that is spoken.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from pulsar_client.addresses import check_address, format_address
from pulsar_client.clients.abstract_client import AbstractClient
from pulsar_client.durations import check_seconds
from pulsar_client.protocols.datagram_endpoint import DatagramEndpoint
from pulsar_client.protocols.datagram_options import grow_receive_buffer
from pulsar_client.protocols.datagram_transport import open_datagram_transport
from pulsar_client.protocols.producer import checked_protocol

__all__ = ["AbstractUdpClient"]

_logger = logging.getLogger("pulsar_client.clients")
_DEFAULT: Any = object()
# The family of a socket and what it is bound or connected to.
_EndPoint = tuple[socket.AddressFamily, Any]


class AbstractUdpClient(AbstractClient):
    """Base of clients that send datagrams: makes endpoints, counts them, closes them.

    A subclass implements :meth:`create_endpoint`, usually with :meth:`create_datagram_endpoint`,
    and may keep a :class:`~pulsar_client.Pool` of endpoints in ``self.pool``.  It is an
    ``AbstractClient`` too: what does not fit into a datagram can be asked for over TCP.

    Args:
        loop: the event loop; None for the running one.
        protocol_factory: makes the protocol of each endpoint, usually
            ``partial(DatagramProtocol, consumer_factory=YourConsumer)``; None for the class
            attribute of that name.
        name: what log lines call this client.
        max_requests: kept for subclasses; a client does not act on it.
        logger: where the client and its endpoints log.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range; the message names it.
    """

    #: Bytes to ask for as the receive buffer of each socket, in which replies wait for the loop.
    receive_buffer: int = 2**20

    def create_endpoint(self) -> Awaitable[Any]:
        """Open an endpoint: subclasses implement it; it fits a pool's ``creator``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement create_endpoint()")

    def connect(self) -> Awaitable[Any]:
        """Open an endpoint, as `create_endpoint` does."""
        return self.create_endpoint()

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[..., Any] | None = None,
        *,
        remote_addr: Any = None,
        local_addr: Any = None,
        timeout: float | None = _DEFAULT,
        **kw: Any,
    ) -> Any:
        """Open a datagram socket.

        With a `remote_addr` it is connected: what anybody else sends does not arrive.  That the
        peer is there is not sure; the first request tells.

        Args:
            protocol_factory: makes the protocol instead of the client's factory; called with the
                same keywords.
            remote_addr: ``(host, port)`` of the one peer; None for any.
            local_addr: ``(host, port)`` to send from; None for any of the system's choice.
            timeout: seconds for the lookup of names and the coroutine callbacks of
                ``connection_made``; ``connect_timeout`` (10) by default, None for no limit.
            **kw: handed to the protocol factory.

        Returns:
            The protocol, after ``connection_made`` and its callbacks.

        Raises:
            TimeoutError: it took longer than ``timeout``.
            OSError: a name can't be resolved, the local address can't be bound, or there is no
                route to the peer.
            TypeError, ValueError: an argument is wrong; the message names it.

        Cancelling it leaves no socket behind.
        """
        _check("remote_addr", remote_addr)
        _check("local_addr", local_addr)
        if remote_addr is None and local_addr is None:
            raise ValueError(
                "neither remote_addr nor local_addr was given, expected one of them; "
                "local_addr=('0.0.0.0', 0) opens a socket for any peer"
            )
        if timeout is _DEFAULT:
            timeout = self.connect_timeout
        check_seconds("timeout", timeout)
        if protocol_factory is not None and not callable(protocol_factory):
            raise TypeError(
                f"protocol_factory is {protocol_factory!r}, expected a callable that makes a "
                "protocol"
            )
        started = asyncio.timeout(timeout)
        try:
            async with started:
                return await self._open(protocol_factory, remote_addr, local_addr, kw)
        except TimeoutError as exc:
            if not started.expired():
                raise
            where = format_address(local_addr if remote_addr is None else remote_addr)
            raise TimeoutError(f"{where}: no endpoint within {timeout} s") from exc

    async def _open(
        self,
        protocol_factory: Callable[..., Any] | None,
        remote_addr: Any,
        local_addr: Any,
        kw: dict[str, Any],
    ) -> Any:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        local = None if local_addr is None else await _resolve(loop, local_addr)
        remote = None if remote_addr is None else await _resolve(loop, remote_addr)
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
        if not isinstance(protocol, DatagramEndpoint):
            raise TypeError(
                f"protocol_factory made {protocol!r}, expected a DatagramProtocol; "
                "use partial(DatagramProtocol, consumer_factory=YourConsumer)"
            )
        sock = _open_socket(remote_addr or local_addr, remote, local)
        try:
            granted = grow_receive_buffer(sock, self.receive_buffer)
            await open_datagram_transport(
                sock, protocol, renewable=local_addr is None or local_addr[1] == 0
            )
        except BaseException:
            sock.close()
            raise
        self.logger.debug(
            "%s: receive buffer %d bytes, %d were asked for",
            protocol,
            granted,
            self.receive_buffer,
        )
        made: Any = protocol.event("connection_made")
        try:
            await made
        except BaseException:
            protocol.abort()
            raise
        return protocol


def _check(name: str, address: Any) -> None:
    if address is None:
        return
    check_address(address)
    if isinstance(address, str):
        raise ValueError(f"{name} is {address!r}, expected (host, port) for datagrams")


async def _resolve(loop: asyncio.AbstractEventLoop, address: Any) -> list[_EndPoint]:
    """List the end points of an address; an IP address is not looked up."""
    host, port = address[:2]
    flags = 0 if host else socket.AI_PASSIVE
    lookup = (host or None, port, 0, socket.SOCK_DGRAM, 0)
    try:
        infos = socket.getaddrinfo(*lookup, flags | socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        infos = []
    try:
        if not infos:
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)
    except (socket.gaierror, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else socket.EAI_NONAME
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise socket.gaierror(
            number, f"can't resolve {format_address(address)}: {reason}"
        ) from error
    found: dict[_EndPoint, None] = {}
    for family, _, _, _, name in infos:
        if family in (socket.AF_INET, socket.AF_INET6):
            found[socket.AddressFamily(family), name] = None
    return list(found)


def _open_socket(
    address: Any, remote: list[_EndPoint] | None, local: list[_EndPoint] | None
) -> socket.socket:
    """Open a socket to the first peer there is a route to, or on the first local address."""
    failure: OSError | None = None
    for family, name in local or () if remote is None else remote:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if remote is None:
                _bind(sock, [(family, name)])
            else:
                if local is not None:
                    _bind(sock, local)
                sock.connect(name)
        except OSError as error:
            failure = error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    if failure is None:
        raise OSError(errno.EADDRNOTAVAIL, f"{format_address(address)} has no address to use")
    text = f"can't open a socket for {format_address(address)}: {failure.strerror or failure}"
    raise OSError(failure.errno, text) from failure


def _bind(sock: socket.socket, local: list[_EndPoint]) -> None:
    """Bind to the first local end point of the socket's family."""
    if sock.family == socket.AF_INET6:
        # Without it "::" would need the port to be free for IPv4 as well.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    for family, name in local:
        if family == sock.family:
            sock.bind(name)
            return
    raise OSError(errno.EADDRNOTAVAIL, "local_addr has no address of this family")
