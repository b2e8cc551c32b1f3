"""A server of datagrams.

This module knows nothing of processes, signals or settings.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any, Self

from pulsar_client.addresses import check_address, format_address, unix_path
from pulsar_client.durations import check_seconds
from pulsar_client.protocols.datagram_endpoint import DatagramEndpoint
from pulsar_client.protocols.datagram_options import grow_receive_buffer
from pulsar_client.protocols.datagram_transport import open_datagram_transport
from pulsar_client.protocols.producer import Producer
from pulsar_client.servers.datagram_sockets import bind_datagram_sockets

__all__ = ["DatagramServer"]

_logger = logging.getLogger("pulsar_client.servers")


class DatagramServer(Producer):
    """Serves datagrams with protocols made by ``protocol_factory``, one for each socket.

    Args:
        protocol_factory: called as ``factory(session=, producer=, loop=, logger=, **kw)``;
            usually ``partial(DatagramProtocol, consumer_factory=YourConsumer)``.
        loop: the event loop; None for the running one.
        address: ``(host, port)``, or ``("", port)`` for every interface of IPv4 and IPv6 (port 0:
            any, the same for both).
        name: what log lines call this server.
        sockets: bound datagram sockets to serve instead of an address; closed with the server.
        max_requests: close gracefully when so many requests have been started; None or 0 for
            never.
        logger: where the server and its protocols log.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range; the message names it.
    """

    ONE_TIME_EVENTS = ("start", "stop")

    server_side = True
    #: Seconds that ``close()`` gives exchanges in flight.
    close_grace: float = 5.0
    #: Bytes to ask for as the receive buffer of each socket, in which a burst waits for the loop.
    receive_buffer: int = 2**22

    def __init__(
        self,
        protocol_factory: Callable[..., Any] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        address: Any = None,
        name: str | None = None,
        sockets: Iterable[socket.socket] | None = None,
        max_requests: int | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        super().__init__(loop, protocol_factory, name, max_requests, logger or _logger)
        if address is not None:
            check_address(address)
            if unix_path(address) is not None:
                raise ValueError(f"address is {address!r}, expected (host, port) for datagrams")
        self._requested_address = address
        try:
            self._given_sockets = list(sockets or ()) or None
        except TypeError:
            raise TypeError(f"sockets is {sockets!r}, expected bound datagram sockets") from None
        if address is not None and self._given_sockets is not None:
            raise ValueError(
                f"address is {address!r} and sockets {self._given_sockets!r}, expected one of them"
            )
        for sock in self._given_sockets or ():
            if not isinstance(sock, socket.socket) or sock.type != socket.SOCK_DGRAM:
                raise TypeError(f"sockets has {sock!r}, expected bound datagram sockets")
        self._sockets: list[socket.socket] = []
        self._addresses: list[Any] = []
        self._buffers: list[int] = []
        self._started_at: float | None = None
        self._close_task: asyncio.Task[None] | None = None
        self._all_lost: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        where = ", ".join(format_address(a) for a in self._addresses)
        if where:
            where = f"on {where}"
        elif self._requested_address is not None:
            where = f"not serving {format_address(self._requested_address)}"
        else:
            where = "not serving"
        return (
            f"<{type(self).__name__} {self.name!r} {where}: {self._requests_processed} requests>"
        )

    @property
    def address(self) -> Any:
        """The first address served, as its socket names it; None while not serving."""
        return self._addresses[0] if self._addresses else None

    @property
    def addresses(self) -> list[Any]:
        """Every address served; empty while not serving."""
        return list(self._addresses)

    @property
    def sockets(self) -> list[socket.socket] | None:
        """The sockets served; None while not serving."""
        return list(self._sockets) or None

    def info(self) -> dict[str, Any]:
        """What is known of this server, for people to read.

        ``datagrams`` has the sums of the counters of ``DatagramProtocol.datagrams()``.
        """
        uptime = 0.0
        if self._started_at is not None and self._loop is not None:
            uptime = self._loop.time() - self._started_at
        datagrams: dict[str, int] = {}
        for protocol in self._protocols:
            for name, number in getattr(protocol, "datagrams", dict)().items():
                datagrams[name] = datagrams.get(name, 0) + number
        return {
            "server": {
                "uptime_in_seconds": int(uptime),
                "sockets": [
                    {"address": format_address(address), "receive_buffer": granted}
                    for address, granted in zip(self._addresses, self._buffers, strict=True)
                ],
                "max_requests": self.max_requests,
                "keep_alive": None,
            },
            "clients": {
                "processed_clients": self._sessions,
                "connected_clients": len(self._protocols),
                "requests_processed": self._requests_processed,
            },
            "datagrams": datagrams,
        }

    async def __aenter__(self) -> Self:
        if not self._sockets:
            await self.create_endpoint()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def create_endpoint(self, **kw: Any) -> None:
        """Bind if necessary and serve; ``start`` fires when it does.

        Args:
            **kw: handed to the protocol factory.

        Raises:
            RuntimeError: it serves already, or is closed.
            ValueError: neither an address nor sockets were given.
            TypeError: there is no protocol factory, or it does not make a protocol.
            OSError: the address can't be bound.
        """
        if self._sockets or self._close_task is not None:
            state = "closed" if self._close_task is not None else "serving already"
            raise RuntimeError(f"{self!r} is {state}: a server serves once")
        if self.protocol_factory is None:
            raise TypeError(
                f"{self!r} has no protocol_factory, expected a callable such as "
                "partial(DatagramProtocol, consumer_factory=YourConsumer)"
            )
        loop = self._loop = asyncio.get_running_loop()
        sockets = self._given_sockets
        if sockets is None:
            if self._requested_address is None:
                raise ValueError(f"{self!r} has neither an address nor sockets to serve")
            sockets = bind_datagram_sockets(self._requested_address)
        self._sockets = sockets
        try:
            self._addresses = [sock.getsockname() for sock in sockets]
            self._buffers = [grow_receive_buffer(sock, self.receive_buffer) for sock in sockets]
            for sock in sockets:
                sock.setblocking(False)
                protocol = self.create_protocol(**kw)
                if not isinstance(protocol, DatagramEndpoint):
                    raise TypeError(
                        f"protocol_factory made {protocol!r}, expected a DatagramProtocol; "
                        "use partial(DatagramProtocol, consumer_factory=YourConsumer)"
                    )
                await open_datagram_transport(sock, protocol)
            if self._close_task is not None:
                raise RuntimeError(f"{self!r} was closed while it started")
        except BaseException:
            for protocol in tuple(self._protocols):
                protocol.abort()
            for sock in sockets:
                sock.close()
            self._sockets = []
            self._addresses = []
            self._buffers = []
            raise
        for address, granted in zip(self._addresses, self._buffers, strict=True):
            self.logger.info(
                "%s: receive buffer on udp://%s is %d bytes, %d were asked for",
                self.name,
                format_address(address),
                granted,
                self.receive_buffer,
            )
        self._started_at = loop.time()
        self.logger.debug("%r is serving", self)
        self.fire_event("start")

    async def close(self, *, grace: float | None = None) -> None:
        """Stop gracefully; ``stop`` fires when all is closed.

        Datagrams that have arrived are still served, no further ones are read, exchanges in
        flight may finish; what is left after ``grace`` seconds is given up.  Idempotent;
        cancelling the wait does not stop it.

        Args:
            grace: seconds; ``close_grace`` (5) by default.
        """
        check_seconds("grace", grace)
        self._begin_close(self.close_grace if grace is None else grace)
        assert self._close_task is not None
        await asyncio.shield(self._close_task)

    def _begin_close(self, grace: float) -> None:
        if self._close_task is None:
            self._close_task = asyncio.get_running_loop().create_task(
                self._close(grace), name=f"close of {self.name}"
            )

    async def _close(self, grace: float) -> None:
        deadline = asyncio.get_running_loop().time() + grace
        # No socket holds more, each of these with its bytes and the system's own.
        most = 0 if self._given_sockets is not None else 1 + max(self._buffers, default=0) // 512
        for protocol in tuple(self._protocols):
            await _finish(protocol, most, deadline)
        if self._protocols:
            await self._wait_lost(max(deadline - asyncio.get_running_loop().time(), 0.0))
        for protocol in tuple(self._protocols):
            protocol.abort()
        if self._protocols:
            await self._wait_lost(1.0)
        if self._started_at is None:
            for sock in self._given_sockets or ():
                sock.close()  # never served: no transport closes them
        self._addresses = []
        self._sockets = []
        self._buffers = []
        self.fire_event("stop")

    async def _wait_lost(self, seconds: float) -> None:
        self._all_lost = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._all_lost
        except TimeoutError:
            pass
        finally:
            self._all_lost = None

    # What its protocols call

    def request_started(self) -> None:
        """Count a request; the last of ``max_requests`` begins the close."""
        self._requests_processed += 1
        if self.max_requests is not None and self._requests_processed >= self.max_requests:
            self._begin_close(self.close_grace)

    def protocol_lost(self, protocol: Any) -> None:
        """Forget a protocol."""
        super().protocol_lost(protocol)
        if not self._protocols and self._all_lost is not None and not self._all_lost.done():
            self._all_lost.set_result(None)


async def _finish(protocol: Any, most: int, deadline: float) -> None:
    """Close a protocol when its exchanges are done.

    What has arrived on a socket of ours would be lost; on one that other processes serve too, it
    is theirs.

    Args:
        protocol: what to close.
        most: datagrams to serve before: more can't have arrived by now.
        deadline: when to take no more of them.
    """
    loop = asyncio.get_running_loop()
    transport = protocol.transport
    if hasattr(transport, "read_now"):
        before = protocol.counts.received
        while protocol.counts.received - before < most:
            if not transport.read_now() or loop.time() >= deadline:
                break
            await asyncio.sleep(0)
    finish = getattr(protocol, "close_when_idle", None) or protocol.close
    finish()
