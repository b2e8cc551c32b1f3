"""One client connection of a fault proxy: two flows of bytes between two sockets.

Everything happens in callbacks of the loop, with sends and receives that never block: a fault
takes effect at once and to the byte, and there is no task to leave behind but the one that dials.
This module knows sockets and faults, but not the listener nor who sets the faults.
"""

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Cut", "Faults", "Relay", "Target", "dial"]

logger = logging.getLogger("pulsar_client.testing")

Target: TypeAlias = tuple[str, int] | str  # (host, port) or "unix:/path"

# The most bytes that a flow holds; beyond it the sending side is not read.
BUFFER = 64 * 1024

# A slow flow hands on, at a time, what its rate allows in this many seconds.
RATE_STEP = 0.02

LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class Cut:
    """The end of a connection after a number of bytes."""

    after: int
    reset: bool
    once: bool
    spent: bool = False  # once, and it has happened


@dataclass(slots=True, eq=False)
class Faults:
    """What the bytes of one direction meet, in all connections of a proxy."""

    stalled: bool = False
    latency: float = 0.0  # seconds
    rate: float | None = None  # bytes/second of each connection
    cut: Cut | None = None
    passed: int = 0  # bytes handed on, in all connections


class Relay:
    """A client's connection, the one to the target and what flows between them.

    Args:
        client: the accepted socket, non-blocking; the relay closes it.
        target: where to connect to, see `dial`.
        to_server: the faults from client to target.
        to_client: the faults from target to client.
        changed: called with the relay after every change of a counter, and when it has closed.

    Attributes:
        closed: whether both sockets are closed.
    """

    def __init__(
        self,
        client: socket.socket,
        target: "Target",
        to_server: Faults,
        to_client: Faults,
        changed: "Callable[[Relay], None]",
    ) -> None:
        self.closed = False
        self.changed = changed
        self._client = client
        self._server: socket.socket | None = None
        self._target = target
        self._to_server = to_server
        self._to_client = to_client
        self._flows: list[_Flow] = []
        self._dialling: asyncio.Task[None] | None = None  # None again once it has its result

    def start(self) -> "asyncio.Task[None]":
        """Begin to dial the target; until it answers the client is not read.

        Returns:
            The task that dials: the caller waits for it.  `close` cancels it.
        """
        self._dialling = asyncio.get_running_loop().create_task(self._dial())
        return self._dialling

    def update(self) -> None:
        """Take note of changed faults."""
        for flow in self._flows:
            flow.update()

    def arm(self, faults: Faults) -> None:
        """Count from now on towards the cut of ``faults``."""
        for flow in self._flows:
            if flow.faults is faults:
                flow.arm()
        self.update()

    def close(self, *, reset: bool) -> None:
        """Close both sockets at once.

        Args:
            reset: with a reset; else orderly, and what was sent before still arrives.  Bytes
                that the relay holds are dropped in either case.
        """
        if self.closed:
            return
        self.closed = True
        # Before the close: a loop must not watch a descriptor that is somebody else's by then.
        for flow in self._flows:
            flow.stop()
        if self._dialling is not None:
            self._dialling.cancel()
        for sock in (self._client, self._server):
            if sock is not None:
                (_reset if reset else _finish)(sock)
                sock.close()
        self.changed(self)

    def flow_ended(self) -> None:
        """Close when both directions have come to their end; called by the flows."""
        if all(flow.ended for flow in self._flows):
            self.close(reset=False)

    async def _dial(self) -> None:
        try:
            server = await dial(self._target)
        except Exception as exc:
            self._dialling = None
            if not isinstance(exc, OSError):
                logger.exception("the proxy could not dial %r", self._target)
            self.close(reset=True)
            return
        # No await from here on: close() finds either a dial to cancel or a socket to close.
        self._dialling = None
        self._server = server
        self._flows = [
            _Flow(self, self._client, server, self._to_server),
            _Flow(self, server, self._client, self._to_client),
        ]
        self.update()


class _Flow:
    """The bytes from one socket to the other, held back as the faults demand."""

    def __init__(
        self, relay: Relay, source: socket.socket, sink: socket.socket, faults: Faults
    ) -> None:
        self.faults = faults
        self.ended = False  # the end of the stream was handed on
        self._relay = relay
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        # (when it may go on, bytes), oldest first; empty bytes are the end of the stream.
        self._queue: deque[tuple[float, memoryview]] = deque()
        self._size = 0  # bytes in the queue
        self._source_ended = False
        self._passed = 0
        self._cut_at = 0  # the value of _passed at which faults.cut strikes
        self._next_send = 0.0  # when the rate allows the next bytes
        self._timer: asyncio.TimerHandle | None = None
        self._reading = False  # the loop watches the source
        self._writing = False  # the loop watches the sink
        self.arm()

    def arm(self) -> None:
        """Count from now on towards the cut."""
        if self.faults.cut is not None:
            self._cut_at = self._passed + self.faults.cut.after

    def update(self) -> None:
        """Watch exactly for what may happen next; called after every change."""
        if self._relay.closed:
            return
        cut = self.faults.cut
        if cut is not None and not cut.spent and self._passed >= self._cut_at:
            cut.spent = cut.once
            self._relay.close(reset=cut.reset)
            return
        wait = self._wait()
        # Stalled or not, the source is read up to the bound: a reset is noticed.
        self._watch(
            read=not self._source_ended and self._size < BUFFER,
            write=wait is not None and wait <= 0,
        )
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait is not None and wait > 0:
            self._timer = self._loop.call_later(wait, self.update)

    def stop(self) -> None:
        """Watch for nothing any more."""
        self._watch(read=False, write=False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> float | None:
        """Return the seconds until the head of the queue may go on; None for not at all."""
        if not self._queue or self.faults.stalled:
            return None
        when = self._queue[0][0]
        if self.faults.rate is not None:
            when = max(when, self._next_send)
        return when - self._loop.time()

    def _watch(self, *, read: bool, write: bool) -> None:
        if read is not self._reading:
            self._reading = read
            if read:
                self._loop.add_reader(self._source, self._on_readable)
            else:
                self._loop.remove_reader(self._source)
        if write is not self._writing:
            self._writing = write
            if write:
                self._loop.add_writer(self._sink, self._on_writable)
            else:
                self._loop.remove_writer(self._sink)

    def _on_readable(self) -> None:
        try:
            data = self._source.recv(BUFFER - self._size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._relay.close(reset=True)  # one side was reset: the other one is
            return
        self._queue.append((self._loop.time() + self.faults.latency, memoryview(data)))
        self._size += len(data)
        self._source_ended = not data
        self.update()

    def _on_writable(self) -> None:
        due, data = self._queue[0]
        try:
            if data:
                sent = self._sink.send(data[: self._limit()])
            else:
                self._sink.shutdown(socket.SHUT_WR)
                sent = 0
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._relay.close(reset=True)
            return
        self._queue.popleft()
        if not data:
            self.ended = True
            self._watch(read=False, write=False)
            self._relay.flow_ended()
            return
        if sent < len(data):
            self._queue.appendleft((due, data[sent:]))
        self._size -= sent
        self._passed += sent
        self.faults.passed += sent
        if self.faults.rate is not None:
            self._next_send = max(self._loop.time(), self._next_send) + sent / self.faults.rate
        self.update()
        if not self._relay.closed:
            self._relay.changed(self._relay)

    def _limit(self) -> int:
        """Return how many bytes may go on now, at least 1."""
        limit = BUFFER
        if self.faults.rate is not None:
            limit = min(limit, max(1, int(self.faults.rate * RATE_STEP)))
        cut = self.faults.cut
        if cut is not None and not cut.spent:
            limit = min(limit, self._cut_at - self._passed)
        return limit


async def dial(target: Target) -> socket.socket:
    """Connect to a target.

    Returns:
        A non-blocking socket, the caller's own.

    Raises:
        OSError: the target can't be reached.

    A cancellation leaves no socket open.
    """
    loop = asyncio.get_running_loop()
    address: Any
    if isinstance(target, str):
        family, address = socket.AF_UNIX, target.removeprefix("unix:")
    else:
        found = await loop.getaddrinfo(*target, type=socket.SOCK_STREAM)
        family, address = found[0][0], found[0][4]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        if family is not socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()  # no caller knows it yet
        raise
    return sock


def _reset(sock: socket.socket) -> None:
    """Let the close that follows send a reset (TCP), or just close (unix sockets)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    except OSError:
        pass  # the peer was quicker


def _finish(sock: socket.socket) -> None:
    """Send an orderly end: a close alone would send a reset if there are unread bytes."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the peer is gone
