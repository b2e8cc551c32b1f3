"""Two asyncio protocols joined without sockets.

`memory_pair` gives each of two protocols a `MemoryTransport`, which behaves towards it as
asyncio's socket transport does: when it is called back, in which order, with what.  How the bytes
travel, and what faults they meet, is the business of the two `Link` objects of the pair.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from pulsar_client.testing.link import Intake, Link

__all__ = ["MemoryTransport", "memory_pair"]


class MemoryTransport(asyncio.Transport):
    """One end of a connection without sockets; `memory_pair` makes two of them.

    Towards its protocol it behaves as the selector loop's socket transport, with either kind of
    protocol, `asyncio.BufferedProtocol` or `asyncio.Protocol`.  ``connection_lost`` is called
    exactly once, always in a loop turn of its own and never inside a call of a method here.
    Bytes written to a peer that has closed its end give `ConnectionResetError`, as on TCP.

    There is no ``socket`` in `get_extra_info`, and ``loop.start_tls`` does not take the
    transport.

    Attributes:
        outgoing: the `Link` to the peer; here are the faults of what this end writes.
        incoming: the `Link` from the peer.
    """

    outgoing: Link
    incoming: Link

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.BaseProtocol,
        outgoing: Link,
        incoming: Link,
        extra: Mapping[str, Any],
    ) -> None:
        super().__init__(dict(extra))
        self.outgoing = outgoing
        self.incoming = incoming
        self._loop = loop
        self._protocol = protocol
        self._reading_paused = False
        self._writing_paused = False  # the protocol was told so
        self._eof_written = False
        self._closing = False
        self._losing = False  # connection_lost is scheduled
        self._lost = False  # connection_lost was called
        self.set_write_buffer_limits()

    def __repr__(self) -> str:
        if self._lost:
            state = "closed"
        elif self._closing:
            state = "closing"
        else:
            state = "open"
        peer = self.get_extra_info("peername")
        return (
            f"<MemoryTransport to {peer} {state}: {self.get_write_buffer_size()} bytes to write>"
        )

    # The protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol have what comes from now on; ``connection_made`` is not called."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol, also after the connection was lost."""
        return self._protocol

    # Reading

    def is_reading(self) -> bool:
        """Return whether bytes that arrive are given to the protocol."""
        return not self._closing and not self._reading_paused

    def pause_reading(self) -> None:
        """Leave bytes in the link, where they fill the peer's write buffer."""
        if self.is_reading():
            self._reading_paused = True

    def resume_reading(self) -> None:
        """Read again; what waits arrives in the next loop turn."""
        if not self._closing and self._reading_paused:
            self._reading_paused = False
            self.incoming.schedule()

    # Writing

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Send a copy of ``data``; after the loss of the connection it is thrown away.

        Raises:
            TypeError: ``data`` is not a bytes-like object.
            RuntimeError: after `write_eof`.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be a bytes-like object, not {type(data).__name__!r}")
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        chunk = bytes(data)
        if chunk and not self._losing:
            self.outgoing.send(chunk)
            self._pause_protocol_if_full()

    def write_eof(self) -> None:
        """Close this direction once all bytes are delivered; the other one stays open."""
        if not self._closing and not self._eof_written:
            self._eof_written = True
            self.outgoing.send_eof()

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes written beyond what is delivered and the link's capacity."""
        return max(0, self.outgoing.pending - self.outgoing.capacity)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the limits ``(low, high)`` in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the protocol is told to pause and to resume writing.

        Args:
            high: ``pause_writing`` is called above this number of bytes; 64 KiB by default, or
                four times ``low``.
            low: ``resume_writing`` is called at or below this; a quarter of ``high`` by default.

        Raises:
            ValueError: not ``high >= low >= 0``.
        """
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high = high
        self._low = low
        self._pause_protocol_if_full()

    # The end

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._closing

    def close(self) -> None:
        """Deliver what was written, then call ``connection_lost(None)``; read no more.

        It waits as long as the link is stalled or the peer does not read; `abort` does not.
        """
        if self._closing:
            return
        self._closing = True
        if not self.get_write_buffer_size():
            self._schedule_loss(None)
        self.incoming.schedule()  # what the peer sends is thrown away from now on

    def abort(self) -> None:
        """Throw away what is in the write buffer, then call ``connection_lost(None)``."""
        self._lose(None)

    # What the links call

    def link_intake(self) -> Intake:
        """Tell what happens to the bytes that arrive now; called by the link."""
        if self._lost:
            return Intake.GONE
        if self._closing:
            return Intake.DISCARD
        if self._reading_paused:
            return Intake.HOLD
        return Intake.READ

    def link_receive(self, limit: int) -> None:
        """Give the protocol at most ``limit`` bytes; called by the link."""
        protocol = self._protocol
        # A class may be both, so the order of the tests matters; it is asyncio's.
        step = "get_buffer"
        try:
            if isinstance(protocol, asyncio.BufferedProtocol):
                with memoryview(protocol.get_buffer(-1)) as buffer:
                    if not len(buffer):
                        raise RuntimeError("get_buffer() returned an empty buffer")
                    size = min(limit, len(buffer))
                    buffer[:size] = self.incoming.take(size)
                # No view is left on the buffer: the protocol may resize it.
                step = "buffer_updated"
                protocol.buffer_updated(size)
            else:
                step = "data_received"
                cast(asyncio.Protocol, protocol).data_received(self.incoming.take(limit))
        except Exception as exc:  # noqa: BLE001 - the loop's edge: reported, as asyncio does
            self._fail(exc, step)

    def link_eof(self) -> None:
        """Tell the protocol that the peer sends no more; called by the link."""
        protocol = cast(asyncio.Protocol, self._protocol)
        try:
            keep_open = protocol.eof_received()
        except Exception as exc:  # noqa: BLE001 - the loop's edge: reported, as asyncio does
            self._fail(exc, "eof_received")
            return
        if not keep_open:
            self.close()

    def link_drained(self) -> None:
        """Look at the write buffer, which has become smaller; called by the link."""
        if self._losing:
            return
        if self._writing_paused and self.get_write_buffer_size() <= self._low:
            self._writing_paused = False
            try:
                self._protocol.resume_writing()
            except Exception as exc:  # noqa: BLE001 - the loop's edge: reported, as asyncio does
                self._report(exc, "protocol.resume_writing() failed")
        if self._closing and not self.get_write_buffer_size():
            self._schedule_loss(None)

    def link_broken(self, exc: Exception | None) -> None:
        """Lose the connection; called by the link."""
        self._lose(exc)

    # Inside

    def _pause_protocol_if_full(self) -> None:
        if self._writing_paused or self.get_write_buffer_size() <= self._high:
            return
        self._writing_paused = True
        try:
            self._protocol.pause_writing()
        except Exception as exc:  # noqa: BLE001 - write() must not fail: reported, as asyncio does
            self._report(exc, "protocol.pause_writing() failed")

    def _fail(self, exc: Exception, step: str) -> None:
        if not isinstance(exc, OSError):
            self._report(exc, f"Fatal error: protocol.{step}() call failed.")
        self._lose(exc)

    def _report(self, exc: Exception, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    def _lose(self, exc: Exception | None) -> None:
        if not self._losing:
            self.outgoing.drop(keep=self.outgoing.capacity)
            self._closing = True
            self._schedule_loss(exc)

    def _schedule_loss(self, exc: Exception | None) -> None:
        if not self._losing:
            self._losing = True
            self._loop.call_soon(self._call_connection_lost, exc)

    def _call_connection_lost(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._lost = True
            self.outgoing.send_eof()
            self.incoming.schedule()


def memory_pair(
    client: asyncio.BaseProtocol,
    server: asyncio.BaseProtocol,
    *,
    to_server: Link | None = None,
    to_client: Link | None = None,
    client_address: object = ("127.0.0.1", 50000),
    server_address: object = ("127.0.0.1", 8060),
    extra: Mapping[str, Any] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Join two protocols by a connection in memory.

    ``connection_made`` is called for the server, then for the client, in the next turn of the
    loop; bytes flow from then on.

    Args:
        client: one protocol, an `asyncio.Protocol` or `asyncio.BufferedProtocol`.
        server: the other one.
        to_server: the `Link` from client to server with its faults; by default one without.
        to_client: the same for the other direction.
        client_address: ``sockname`` of the client's transport, ``peername`` of the server's.
        server_address: the reverse.
        extra: more for ``get_extra_info`` of both transports.
        loop: where the protocols are called, by default the running loop.

    Returns:
        The client's transport and the server's.

    Raises:
        RuntimeError: no loop is given and none runs, or a link is part of a pair already.
    """
    if loop is None:
        loop = asyncio.get_running_loop()
    up = Link() if to_server is None else to_server
    down = Link() if to_client is None else to_client
    shared = dict(extra or {})
    client_end = MemoryTransport(
        loop, client, up, down, shared | {"sockname": client_address, "peername": server_address}
    )
    server_end = MemoryTransport(
        loop, server, down, up, shared | {"sockname": server_address, "peername": client_address}
    )
    up.join(loop, sender=client_end, receiver=server_end)
    down.join(loop, sender=server_end, receiver=client_end)
    # Whatever is written from now on is delivered in a later turn than this.
    loop.call_soon(server.connection_made, server_end)
    loop.call_soon(client.connection_made, client_end)
    loop.call_soon(up.start)
    loop.call_soon(down.start)
    return client_end, server_end
