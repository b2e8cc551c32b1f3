"""One direction of a memory connection, with the faults that bytes can meet on their way.

A `Link` queues what one transport writes and hands it to the transport at the other end: late, in
pieces, not at all, or only up to a byte.  It knows the loop and two ends, but neither protocols
nor what a transport makes of the bytes; that is in `memory_transport`.
"""

import asyncio
import enum
import errno
from collections import deque
from typing import Protocol

from pulsar_client.exceptions import ConfigError

__all__ = ["Intake", "Link", "LinkEnd"]

# The most that arrives in one piece: what asyncio's socket transport reads at a time.
MAX_CHUNK = 256 * 1024


class Intake(enum.Enum):
    """What the end of a link does with bytes that arrive."""

    READ = "read"
    HOLD = "hold"  # it does not read now: the bytes stay in the link
    DISCARD = "discard"  # it is closing: nobody will read them
    GONE = "gone"  # it is closed: the sender is told so


class LinkEnd(Protocol):
    """What a link asks of the transport at either end."""

    def link_intake(self) -> Intake:
        """Tell what happens to the bytes that arrive now."""

    def link_receive(self, limit: int) -> None:
        """Take between 1 and ``limit`` bytes out of the link; asked when the intake is READ."""

    def link_eof(self) -> None:
        """Learn that no more bytes come; told once, when the intake is READ."""

    def link_drained(self) -> None:
        """Learn that bytes sent have left the link."""

    def link_broken(self, exc: Exception | None) -> None:
        """Lose the connection because of ``exc``."""


class Link:
    """One direction of a memory pair.

    All settings can be given at construction and changed while the connection is in use.

    Args:
        delay: see the attribute.
        split: see the attribute.
        capacity: see the attribute.
        cut_after: as `cut` with ``after``; None for no cut.
        cut_exc: as `cut` with ``exc``.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(
        self,
        *,
        delay: float = 0.0,
        split: int | None = None,
        capacity: int = 0,
        cut_after: int | None = None,
        cut_exc: Exception | None = None,
    ) -> None:
        if capacity < 0:
            raise ConfigError(f"capacity must be 0 or more bytes, not {capacity!r}")
        self.delay = delay
        self.split = split
        self._capacity = capacity
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sender: LinkEnd | None = None
        self._receiver: LinkEnd | None = None
        # (when it is due, bytes), oldest first: what is due waits for those ahead of it.
        # Empty bytes are the end of the stream and always last.
        self._queue: deque[tuple[float, memoryview]] = deque()
        self._ended = False
        self._pending = 0  # bytes in the queue
        self._delivered = 0
        self._paused = False
        self._cut_left: int | None = None
        self._cut_exc: Exception | None = None
        # The next turn; never set while the link is paused or empty.
        self._handle: asyncio.Handle | None = None
        if cut_after is not None:
            self.cut(cut_after, cut_exc)

    def __repr__(self) -> str:
        state = "paused" if self._paused else "flowing"
        return f"<Link {state}: {self._pending} bytes pending, {self._delivered} delivered>"

    # Settings

    @property
    def delay(self) -> float:
        """Seconds from a write to its arrival; a change holds for later writes.

        Bytes never overtake others: after a change to less, they arrive with those before them.
        """
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ConfigError(f"delay must be 0 or more seconds, not {seconds!r}")
        self._delay = seconds

    @property
    def split(self) -> int | None:
        """The most bytes that arrive in one piece, or None.

        Each piece arrives in a loop turn of its own.  With None all bytes that are due arrive
        together, up to 256 KiB, as they do on a socket.
        """
        return self._split

    @split.setter
    def split(self, size: int | None) -> None:
        if size is not None and size < 1:
            raise ConfigError(f"split must be None or at least 1 byte, not {size!r}")
        self._split = size

    @property
    def capacity(self) -> int:
        """Bytes that the link takes off the sender's write buffer before they are delivered.

        It stands for the buffers of the kernel: what is in them is not in the write buffer, lets
        the sender close, and survives its `abort`.  With 0 a written byte is in the write buffer
        until the peer has it.
        """
        return self._capacity

    @property
    def pending(self) -> int:
        """Bytes written and not yet delivered."""
        return self._pending

    @property
    def delivered(self) -> int:
        """Bytes that the receiver took or, while it was closing, threw away."""
        return self._delivered

    @property
    def paused(self) -> bool:
        """Whether delivery is stalled by `pause`."""
        return self._paused

    # Faults

    def pause(self) -> None:
        """Stall: nothing is delivered, neither bytes nor their end, until `resume`."""
        self._paused = True
        self._unschedule()

    def resume(self) -> None:
        """Go on after `pause`; what fell due in between arrives in the next loop turn."""
        self._paused = False
        self.schedule()

    def cut(self, after: int = 0, exc: Exception | None = None) -> None:
        """Lose the connection once ``after`` more bytes were delivered in this direction.

        Both ends get ``connection_lost(exc)`` in the loop turn after that, without
        ``eof_received``; what is still under way in either direction is lost.  If the sender
        closes before, nothing happens.  A second call replaces the first.

        Args:
            after: bytes; 0 cuts at once, also if the link is paused.
            exc: what both protocols are told, None for an orderly end.

        Raises:
            ConfigError: ``after`` is negative.
        """
        if after < 0:
            raise ConfigError(f"after must be 0 or more bytes, not {after!r}")
        self._cut_left = after
        self._cut_exc = exc
        self._break_if_due()

    # For the transports at its ends

    def join(self, loop: asyncio.AbstractEventLoop, sender: LinkEnd, receiver: LinkEnd) -> None:
        """Join two ends; called by `memory_pair`, once.

        Raises:
            RuntimeError: the link is part of a pair already.
        """
        if self._loop is not None:
            raise RuntimeError(f"{self!r} is part of a pair already")
        self._loop = loop
        self._sender = sender
        self._receiver = receiver

    def start(self) -> None:
        """Let a cut after 0 bytes strike; called once the protocols know their connection."""
        self._break_if_due()

    def send(self, data: bytes) -> None:
        """Queue bytes of the sender, of which there is at least one."""
        self._pending += len(data)
        self._enqueue(data)

    def send_eof(self) -> None:
        """Queue the end of the stream behind all bytes; the second time is a no-op."""
        if not self._ended:
            self._ended = True
            self._enqueue(b"")

    def take(self, limit: int) -> bytes:
        """Remove and return the first ``limit`` bytes; called by the receiver only."""
        parts = []
        left = limit
        while left:
            due, data = self._queue.popleft()
            if len(data) > left:
                self._queue.appendleft((due, data[left:]))
                data = data[:left]
            parts.append(data)
            left -= len(data)
        self._pending -= limit
        self._delivered += limit
        if self._cut_left is not None:
            self._cut_left -= limit
        return b"".join(parts)

    def drop(self, keep: int = 0) -> None:
        """Forget all but the first ``keep`` bytes, and the end of the stream with them."""
        if self._queue and not self._queue[-1][1]:
            self._queue.pop()
            self._ended = False
        while self._pending > keep:
            due, data = self._queue.pop()
            self._pending -= len(data)
            if self._pending < keep:
                data = data[: keep - self._pending]
                self._queue.append((due, data))
                self._pending += len(data)

    def schedule(self) -> None:
        """Plan the next turn, if there is something to deliver; harmless at any time."""
        if self._handle is not None or self._paused or not self._queue or self._loop is None:
            return
        due = self._queue[0][0]
        if due <= self._loop.time():
            self._handle = self._loop.call_soon(self._turn, due)
        else:
            self._handle = self._loop.call_at(due, self._turn, due)

    # Inside

    def _enqueue(self, data: bytes) -> None:
        assert self._loop is not None
        self._queue.append((self._loop.time() + self._delay, memoryview(data)))
        self.schedule()

    def _unschedule(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _turn(self, due: float) -> None:
        """Deliver one piece, or the end."""
        self._handle = None
        assert self._loop is not None
        assert self._sender is not None
        assert self._receiver is not None
        if not self._queue:
            return
        intake = self._receiver.link_intake()
        if intake is Intake.HOLD:
            return  # it calls schedule() when it reads again
        # Loops run a timer a little early: what it was set for counts as due.
        size = self._size_due(max(due, self._loop.time()))
        if size and intake is Intake.GONE:
            self.drop()
            error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            self._sender.link_broken(error)
        elif size:
            if intake is Intake.READ:
                self._receiver.link_receive(size)
            else:
                self.take(size)
            self._sender.link_drained()
            self._break_if_due()
        elif not self._queue[0][1]:
            self._queue.popleft()
            if intake is Intake.READ:
                self._receiver.link_eof()
        self.schedule()

    def _size_due(self, now: float) -> int:
        """Count the bytes that arrive as one piece at the time ``now``."""
        limit = min(self._split or MAX_CHUNK, MAX_CHUNK)
        if self._cut_left is not None:
            limit = min(limit, self._cut_left)
        size = 0
        for due, data in self._queue:
            if due > now or size >= limit:
                break
            size += len(data)
        return min(size, limit)

    def _break_if_due(self) -> None:
        if self._cut_left == 0 and self._sender is not None and self._receiver is not None:
            self._cut_left = None
            self.drop()
            self._receiver.link_broken(self._cut_exc)
            self._sender.link_broken(self._cut_exc)
