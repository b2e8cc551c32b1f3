"""A TCP proxy that misbehaves on request.

`FaultProxy` stands between a client and a server that both run for real and does to their bytes
what networks and dying peers do.  This module holds the listener, the faults and the counters;
how bytes get from one socket to the other is in `relay`.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal, Self, TypeAlias

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing.relay import Cut, Faults, Relay, Target

__all__ = ["Direction", "FaultProxy"]

Direction: TypeAlias = Literal["to_server", "to_client"]

BACKLOG = 128

# Connections accepted in one loop turn.
ACCEPT_BURST = 64


class FaultProxy:
    """A TCP relay with faults, in the running loop (asyncio or uvloop).

    ::

        async with FaultProxy(("127.0.0.1", 8060)) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.address)
            proxy.cut_after(10, "to_client")  # half a reply, then the end

    Every fault holds for the connections that are open and for those to come, takes effect
    before the method returns, and may be changed at any time; none of the methods waits, but for
    `start`, `close` and `until`.  Each direction of a connection holds at most 64 KiB; whoever
    sends more is slowed down as by a peer that does not read.  A half-closed connection stays
    half-open, a client is reset when the target can't be reached.

    Args:
        target: where to connect to for each client: ``(host, port)`` or ``"unix:/path"``.
        listen: ``(host, port)`` to listen on, port 0 for any free one.
        latency: see the attribute.
        rate: see the attribute.
        deaf: see the attribute.

    Raises:
        ConfigError: a value is out of its range.

    Attributes:
        accepted: client connections taken so far.
        open: client connections open now.
        peak: the most that were open at the same time.
    """

    accepted: int
    open: int
    peak: int

    def __init__(
        self,
        target: Target,
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        latency: float = 0.0,
        rate: float | None = None,
        deaf: bool = False,
    ) -> None:
        if isinstance(target, str) and not target.startswith("unix:"):
            raise ConfigError(f"target must be (host, port) or 'unix:/path', not {target!r}")
        self.accepted = self.open = self.peak = 0
        self._target = target
        self._listen = listen
        self._faults: dict[Direction, Faults] = {"to_server": Faults(), "to_client": Faults()}
        self._relays: set[Relay] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # dials, also those of closed relays
        self._deaf = deaf
        self._address: tuple[str, int] | None = None
        self._listener: socket.socket | None = None  # bound; it listens unless _refusing
        self._refusing = False
        self._hearing = False  # the loop watches the listener
        self._waiters: dict[asyncio.Future[None], Callable[[FaultProxy], bool]] = {}
        self.latency = latency
        self.rate = rate

    def __repr__(self) -> str:
        states = {"closed": self._listener is None, "refusing": self._refusing, "deaf": self._deaf}
        state = next((name for name, holds in states.items() if holds), "listening")
        return f"<FaultProxy {state}: {self.open} open, {self.accepted} accepted>"

    # Life

    @property
    def address(self) -> tuple[str, int]:
        """``(host, port)`` for clients to connect to; kept after `close`.

        Raises:
            RuntimeError: before `start`.
        """
        if self._address is None:
            raise RuntimeError("the proxy was not started")
        return self._address

    async def start(self) -> Self:
        """Listen; ``async with`` does it.

        Returns:
            The proxy itself.

        Raises:
            OSError: the address can't be listened on.
            RuntimeError: the proxy was started before.
        """
        if self._address is not None:
            raise RuntimeError("a proxy can be started once")
        self._listener = _bind(self._listen)
        host, port = self._listener.getsockname()[:2]
        self._address = (host, port)
        self._listener.listen(BACKLOG)
        self._hear()
        return self

    async def close(self) -> None:
        """Stop listening and close every connection in order; a second call is a no-op.

        All sockets are closed before it waits for the dials that it has cancelled; cancelling
        the wait leaves nothing open.  Callers of `until` get a `RuntimeError`.
        """
        if self._listener is not None:
            self._hear(off=True)
            self._listener.close()
            self._listener = None
        self.close_all()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(RuntimeError("the proxy was closed"))
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # Faults of the bytes

    @property
    def latency(self) -> float:
        """Seconds that bytes take each way; a change holds for bytes read later."""
        return self._faults["to_client"].latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ConfigError(f"latency must be 0 or more seconds, not {seconds!r}")
        for faults in self._faults.values():
            faults.latency = seconds

    @property
    def rate(self) -> float | None:
        """Bytes per second of each connection each way, or None for no limit."""
        return self._faults["to_client"].rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        if rate is not None and not rate > 0:
            raise ConfigError(f"rate must be None or above 0 bytes/second, not {rate!r}")
        for faults in self._faults.values():
            faults.rate = rate
        self._update()

    def stall(self, direction: Direction | None = None) -> None:
        """Let no byte pass, nor the end of a stream, until `resume`.

        Args:
            direction: the one to stall, None for both.
        """
        for faults in self._select(direction):
            faults.stalled = True
        self._update()

    def resume(self, direction: Direction | None = None) -> None:
        """Let bytes pass again after `stall`.

        Args:
            direction: the one to resume, None for both.
        """
        for faults in self._select(direction):
            faults.stalled = False
        self._update()

    def cut_after(
        self,
        n: int | None,
        direction: Direction = "to_client",
        *,
        reset: bool = False,
        once: bool = False,
    ) -> None:
        """Close each connection once exactly ``n`` more bytes have passed in a direction.

        Open connections count from now, later ones from their first byte.  It replaces an
        earlier cut of this direction.

        Args:
            n: bytes; 0 closes a connection at once, None takes the cut back.
            direction: whose bytes count: ``"to_client"`` gives half a reply, ``"to_server"`` half
                a request.
            reset: end with a reset instead of an orderly end.  Bytes that the receiver's kernel
                has not taken by then are lost with it.
            once: only the first connection that gets there is cut.

        Raises:
            ConfigError: ``n`` is negative or ``direction`` unknown.
        """
        if n is not None and n < 0:
            raise ConfigError(f"n must be None or at least 0 bytes, not {n!r}")
        for faults in self._select(direction):
            faults.cut = None if n is None else Cut(n, reset, once)
            for relay in list(self._relays):
                relay.arm(faults)

    # Faults of the connections

    def reset(self) -> None:
        """Send a reset to every client and to the target's side of every connection."""
        for relay in list(self._relays):
            relay.close(reset=True)

    def close_all(self) -> None:
        """End every connection in order, on both sides; bytes still held are dropped."""
        for relay in list(self._relays):
            relay.close(reset=False)

    @property
    def deaf(self) -> bool:
        """Whether new clients are left alone: the kernel connects them, nobody ever reads.

        They are served once it is False again.  Connections accepted before go on.
        """
        return self._deaf

    @deaf.setter
    def deaf(self, deaf: bool) -> None:
        self._deaf = deaf
        self._hear()

    def refuse(self) -> None:
        """Close the listener: connections are refused until `accept`; open ones go on.

        The port is kept, so that nobody else gets it meanwhile.

        Raises:
            RuntimeError: the proxy is not started or closed.
        """
        listener = self._bound()
        if self._refusing:
            return
        self._hear(off=True)
        listener.close()
        # Bound without listening, a socket holds the port and the kernel refuses for it.
        self._listener = _bind(self.address)
        self._refusing = True

    def accept(self) -> None:
        """Listen again on the same port after `refuse`.

        Raises:
            RuntimeError: the proxy is not started or closed.
        """
        listener = self._bound()
        if self._refusing:
            self._refusing = False
            listener.listen(BACKLOG)
            self._hear()

    # Counters

    @property
    def bytes_to_server(self) -> int:
        """Bytes that were handed on to the target, over all connections."""
        return self._faults["to_server"].passed

    @property
    def bytes_to_client(self) -> int:
        """Bytes that were handed on to clients, over all connections."""
        return self._faults["to_client"].passed

    async def until(self, condition: Callable[["FaultProxy"], bool]) -> None:
        """Wait until a condition on the counters holds.

        Args:
            condition: called with the proxy now and after each change of a counter, for example
                ``lambda proxy: proxy.open == 2``.

        Raises:
            RuntimeError: the proxy is not started, or is closed before the condition holds.

        There is no time-out of its own: use ``asyncio.timeout``.
        """
        if condition(self):
            return
        self._bound()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = condition
        try:
            await waiter
        finally:
            del self._waiters[waiter]

    # Inside

    def _bound(self) -> socket.socket:
        if self._listener is None:
            raise RuntimeError("the proxy is not started or closed")
        return self._listener

    def _select(self, direction: Direction | None) -> Iterable[Faults]:
        if direction is None:
            return self._faults.values()
        if direction not in self._faults:
            raise ConfigError(f"direction must be one of {list(self._faults)}, not {direction!r}")
        return (self._faults[direction],)

    def _update(self) -> None:
        for relay in list(self._relays):
            relay.update()

    def _hear(self, *, off: bool = False) -> None:
        """Watch the listener, unless the proxy is deaf or has none."""
        if self._listener is None:
            return
        hear = not (off or self._deaf or self._refusing)
        if hear is not self._hearing:
            self._hearing = hear
            loop = asyncio.get_running_loop()
            if hear:
                loop.add_reader(self._listener, self._on_client)
            else:
                loop.remove_reader(self._listener)

    def _on_client(self) -> None:
        for _ in range(ACCEPT_BURST):
            if not self._hearing or self._listener is None:
                return
            try:
                client, _peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            relay = Relay(client, self._target, **self._faults, changed=self._relay_changed)
            self._relays.add(relay)
            self.accepted += 1
            self.open += 1
            self.peak = max(self.peak, self.open)
            task = relay.start()
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._notify()

    def _relay_changed(self, relay: Relay) -> None:
        if relay.closed:
            self._relays.discard(relay)
            self.open = len(self._relays)
        self._notify()

    def _notify(self) -> None:
        for waiter, condition in list(self._waiters.items()):
            if not waiter.done() and condition(self):
                waiter.set_result(None)


def _bind(address: tuple[str, int]) -> socket.socket:
    """Return a non-blocking TCP socket bound to an address."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
