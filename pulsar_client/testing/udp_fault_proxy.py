"""A UDP proxy that loses, doubles, delays and reorders datagrams, by a seed.

It stands between clients and a server that run for real.  Each client has a socket of its own
towards the server, so that replies find their way back.  How bytes of a stream are disturbed is in
``fault_proxy``.
"""

import asyncio
import random
import socket
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

from pulsar_client.exceptions import ConfigError

__all__ = ["UdpFaultProxy"]

_BURST = 64
_MAX_CLIENTS = 1024
# The longest that a datagram is held back for the next one to overtake it, in seconds.
_HOLD = 0.05


class UdpFaultProxy:
    """A relay of datagrams with faults, in the running loop (asyncio or uvloop).

    ::

        async with UdpFaultProxy(("127.0.0.1", 8060), drop=0.1, seed=1) as proxy:
            endpoint = await client.create_datagram_endpoint(remote_addr=proxy.address)

    Every fault may be changed at any time; it holds for the datagrams of both directions that
    arrive later.

    Args:
        target: ``(host, port)`` of the server, with an IP address for the host.
        listen: ``(host, port)`` for the clients, port 0 for any free one.
        drop: see the attribute.
        duplicate: see the attribute.
        reorder: see the attribute.
        delay: see the attribute.
        seed: of the chances.

    Raises:
        ConfigError: a value is out of its range.

    Attributes:
        drop: the chance of a datagram to be lost, from 0 to 1; 1 is a black hole.
        duplicate: the chance to arrive twice.
        reorder: the chance to be overtaken by the next one in the same direction.
        delay: the most seconds that a datagram takes; the time of each is random.
        received: datagrams that have arrived here, from clients and from the server.
        dropped, duplicated, reordered: those to which that was done.
        forwarded: datagrams that were sent on.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        drop: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        delay: float = 0.0,
        seed: int | None = None,
    ) -> None:
        for name, chance in (("drop", drop), ("duplicate", duplicate), ("reorder", reorder)):
            if not 0 <= chance <= 1:
                raise ConfigError(f"{name} must be a chance from 0 to 1, not {chance!r}")
        if not delay >= 0:
            raise ConfigError(f"delay must be 0 or more seconds, not {delay!r}")
        self.drop, self.duplicate, self.reorder, self.delay = drop, duplicate, reorder, delay
        self.received = self.dropped = self.duplicated = self.reordered = self.forwarded = 0
        self._target = target
        self._listen = listen
        self._random = random.Random(seed)
        self._listener: socket.socket | None = None
        self._upstream: dict[Any, socket.socket] = {}
        # What is on its way: each timer, and what it will do.
        self._timers: set[asyncio.TimerHandle] = set()
        # What waits to be overtaken, by direction and client.
        self._held: dict[Any, tuple[asyncio.TimerHandle, Callable[[], None]]] = {}
        self._address: tuple[str, int] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._listener is None else "listening"
        return (
            f"<UdpFaultProxy {state}: {self.received} received, {self.dropped} dropped, "
            f"{self.duplicated} duplicated, {self.reordered} reordered, {self.on_the_way} on the "
            f"way, {self.forwarded} forwarded>"
        )

    @property
    def address(self) -> tuple[str, int]:
        """``(host, port)`` for clients; kept after `close`.

        Raises:
            RuntimeError: before `start`.
        """
        if self._address is None:
            raise RuntimeError("the proxy was not started")
        return self._address

    @property
    def on_the_way(self) -> int:
        """Datagrams that are delayed or held now."""
        return len(self._timers)

    async def start(self) -> Self:
        """Take datagrams; ``async with`` does it.

        Raises:
            OSError: the address can't be bound.
            RuntimeError: the proxy was started before.
        """
        if self._address is not None:
            raise RuntimeError("a proxy can be started once")
        self._listener = _bound(self._listen)
        host, port = self._listener.getsockname()[:2]
        self._address = (host, port)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener.fileno(), self._from_clients)
        return self

    async def close(self) -> None:
        """Stop; what is on its way is lost.  A second call is a no-op."""
        loop = asyncio.get_running_loop()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._held.clear()
        sockets = list(self._upstream.values())
        if self._listener is not None:
            sockets.append(self._listener)
        self._listener = None
        self._upstream = {}
        for sock in sockets:
            loop.remove_reader(sock.fileno())
            sock.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # Both directions

    def _from_clients(self) -> None:
        assert self._listener is not None
        for data, client in _arrived(self._listener):
            sock = self._upstream.get(client)
            if sock is None:
                sock = self._connect(client)
            self._pass_on((True, client), partial(self._send, sock, data, None))

    def _from_server(self, sock: socket.socket, client: Any) -> None:
        arrived = _arrived(sock)
        if not arrived:
            # An error of the server's side: uvloop stops watching after one.
            loop = asyncio.get_running_loop()
            loop.remove_reader(sock.fileno())
            loop.add_reader(sock.fileno(), self._from_server, sock, client)
        for data, _ in arrived:
            self._pass_on((False, client), partial(self._send, self._listener, data, client))

    def _connect(self, client: Any) -> socket.socket:
        loop = asyncio.get_running_loop()
        if len(self._upstream) >= _MAX_CLIENTS:
            oldest = self._upstream.pop(next(iter(self._upstream)))
            loop.remove_reader(oldest.fileno())
            oldest.close()
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(self._target)
        self._upstream[client] = sock
        loop.add_reader(sock.fileno(), self._from_server, sock, client)
        return sock

    def _pass_on(self, way: Any, send: Callable[[], None]) -> None:
        """Decide what becomes of a datagram."""
        self.received += 1
        chance = self._random.random
        overtaken = self._held.pop(way, None)
        if chance() < self.drop:
            self.dropped += 1
        else:
            copies = 1
            if chance() < self.duplicate:
                self.duplicated += 1
                copies = 2
            for _ in range(copies):
                if overtaken is None and way not in self._held and chance() < self.reorder:
                    self.reordered += 1
                    self._hold(way, send)
                else:
                    self._send_late(send)
        if overtaken is not None:
            timer, send_held = overtaken
            timer.cancel()
            self._timers.discard(timer)
            send_held()

    def _hold(self, way: Any, send: Callable[[], None]) -> None:
        """Keep a datagram until the next one has passed, or for a short while."""

        def waited() -> None:
            self._held.pop(way, None)
            send()

        self._held[way] = self._later(_HOLD, waited), send

    def _send_late(self, send: Callable[[], None]) -> None:
        if not self.delay:
            send()
            return
        self._later(self._random.random() * self.delay, send)

    def _later(self, seconds: float, send: Callable[[], None]) -> asyncio.TimerHandle:
        timer: asyncio.TimerHandle

        def due() -> None:
            self._timers.discard(timer)
            send()

        timer = asyncio.get_running_loop().call_later(seconds, due)
        self._timers.add(timer)
        return timer

    def _send(self, sock: socket.socket | None, data: bytes, address: Any) -> None:
        if sock is None or sock.fileno() < 0:
            return
        try:
            if address is None:
                sock.send(data)
            else:
                sock.sendto(data, address)
        except OSError:
            return  # nobody there, or no room: a network says nothing either
        self.forwarded += 1


def _bound(address: tuple[str, int]) -> socket.socket:
    """A socket for the clients, with room for a burst: what is lost is lost by choice."""
    sock = socket.socket(
        socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM
    )
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**21)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _arrived(sock: socket.socket) -> list[tuple[bytes, Any]]:
    """What can be read without waiting, a burst of it at most."""
    found: list[tuple[bytes, Any]] = []
    try:
        while len(found) < _BURST:
            found.append(sock.recvfrom(65535))
    except OSError:
        pass  # nothing more, or news of a datagram that was refused
    return found
