"""The transport of a datagram socket: reads until nothing is left, sends without waiting.

The loops' own transports read one datagram a turn (asyncio), lose the peer's address of an error,
and can't answer from the address that was asked.  This one needs ``add_reader`` and ``add_writer``
of a loop and nothing else.  It must not know of consumers, requests or producers.
"""

import asyncio
import errno
import socket
import sys
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from typing import Any

from pulsar_client.protocols.datagram_options import (
    AskedAddress,
    enable_asked_address,
    enable_error_queue,
    grow_receive_buffer,
    read_error,
    receive_asked,
)

__all__ = ["DatagramSocketTransport", "open_datagram_transport"]

#: Datagrams, or errors, that are read in one turn of the loop.
_BURST = 64
#: No datagram of UDP has more bytes.
_LONGEST = 65535
#: What a queued datagram counts beside its bytes, so that empty ones are bounded too.
_OVERHEAD = 64
_HIGH_WATER = 65536
#: The error is news of an earlier datagram, not of the one that is being sent.
_UNREACHABLE = {
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EPROTO,
}


class DatagramSocketTransport(asyncio.DatagramTransport):
    """Reads and writes a datagram socket for a protocol.

    The protocol gets ``datagrams_received(datagrams)``, an iterator of pairs of data and address,
    of which it takes no more once its attribute ``interrupted`` is true,
    ``datagram_truncated(data, address)``, ``peer_error_received(exc, address, quoted)`` where the
    system tells who could not be reached, else ``error_received(exc)``, and the calls of flow
    control.  Its attribute ``send_now`` is a function that sends ``(data, address)`` or raises an
    ``OSError``, which then is for `not_sent`; None while that can't be.

    Args:
        loop: a loop that has ``add_reader``.
        sock: a non-blocking datagram socket, bound or connected; closed with the transport.
        protocol: who gets what arrives.
        max_datagram: bytes; what is longer is reported as truncated.
        max_queued: bytes that may wait until the system takes them; what comes on top is dropped.
        renewable: nobody relies on the local port, see `renew`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: Any,
        *,
        max_datagram: int,
        max_queued: int,
        renewable: bool = False,
    ) -> None:
        try:
            peer = sock.getpeername()
        except OSError:
            peer = None
        super().__init__()
        self._information = {"socket": sock, "sockname": sock.getsockname(), "peername": peer}
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._connected = peer is not None
        self._max_datagram = max_datagram
        self._may_truncate = max_datagram < _LONGEST
        self._max_queued = max_queued
        self._renewable = renewable and self._connected
        self._errors_name_peers = False
        self._receive: Any = sock.recvfrom
        #: The protocol's ``send_now``, whenever nothing is queued: without a call of ours.
        self._send_now: Any = None
        self._queue: deque[tuple[bytes, Any]] = deque()
        self._queued = 0
        self._high = _HIGH_WATER
        self._low = _HIGH_WATER // 4
        self._protocol_paused = False
        self._reading = False
        self._closing = False

    def __repr__(self) -> str:
        state = "closing" if self._closing else "reading" if self._reading else "paused"
        return f"<DatagramSocketTransport {state}, {self._queued} bytes queued>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``"socket"``, ``"sockname"`` or ``"peername"``; else the default."""
        return self._information.get(name, default)

    def start(self) -> None:
        """Begin to read.

        Raises:
            NotImplementedError: the loop has no ``add_reader``; nothing was done to the socket.
        """
        self.resume_reading()
        self._prepare()

    def _prepare(self) -> None:
        # Not before it is sure that somebody reads what these bring.
        self._errors_name_peers = enable_error_queue(self._sock)
        self._receive = self._sock.recvfrom
        if self._connected:
            return
        self._send_now = self._send
        if enable_asked_address(self._sock):
            self._receive = partial(receive_asked, self._sock)
        elif self._sock.family in (socket.AF_INET, socket.AF_INET6):
            self._send_now = self._sock.sendto  # a peer of another family may have no address
        self._protocol.send_now = self._send_now

    # Reading

    def resume_reading(self) -> None:
        """Begin to read, or go on after `pause_reading`; idempotent.

        Raises:
            NotImplementedError: the loop has no ``add_reader``.
        """
        if not self._reading and not self._closing:
            self._loop.add_reader(self._sock.fileno(), self._read)
            self._reading = True

    def pause_reading(self) -> None:
        """Leave what arrives to the system's buffer; idempotent."""
        self._protocol.interrupted = True
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def is_reading(self) -> bool:
        """True unless reading is paused or over."""
        return self._reading

    def read_now(self) -> bool:
        """Take a burst of what has arrived, before the end, say; True if there may be more."""
        return self._reading and self._read()

    def _read(self) -> bool:
        # Reads in C whenever the protocol asks for the next: no function of ours is between them.
        sizes = repeat(self._max_datagram + 1, _BURST)
        datagrams: Iterator[tuple[bytes, Any]] = map(self._receive, sizes)
        self._protocol.interrupted = False
        while True:
            try:
                self._protocol.datagrams_received(
                    self._complete(datagrams) if self._may_truncate else datagrams
                )
            except (BlockingIOError, InterruptedError):
                if sizes.__length_hint__() == _BURST - 1:
                    self._watch_again()
                return False
            except OSError as exc:
                self._failed(exc)
                if self._protocol.interrupted:
                    return False
            else:
                return not self._protocol.interrupted

    def _complete(self, datagrams: Iterator[tuple[bytes, Any]]) -> Iterator[tuple[bytes, Any]]:
        """Report those that are too long, give the others."""
        for data, address in datagrams:
            if len(data) <= self._max_datagram:
                yield data, address
            else:
                self._protocol.datagram_truncated(data, address)
            if self._protocol.interrupted:
                return

    def _failed(self, exc: OSError) -> None:
        """The socket has an error: of a datagram sent before, to whoever it was."""
        # A handler that has paused reading may be the one that sends.
        before, told = self._protocol.interrupted, False
        if self._errors_name_peers:
            for _ in range(_BURST):
                try:
                    entry = read_error(self._sock)
                except OSError:
                    break
                told = True
                self._protocol.interrupted = False
                self._protocol.peer_error_received(*entry)
                if self._protocol.interrupted:
                    return  # the rest is of a socket that is closed, or will be told again
        if not told:
            self._protocol.error_received(exc)
        self._protocol.interrupted |= before
        self._watch_again()

    def _watch_again(self) -> None:
        # uvloop stops watching a descriptor that had an error, and tells nobody.
        descriptor = self._sock.fileno()
        if self._reading:
            self._loop.remove_reader(descriptor)
            self._loop.add_reader(descriptor, self._read)
        if self._queue:
            self._loop.remove_writer(descriptor)
            self._loop.add_writer(descriptor, self._flush)

    # Sending

    def sendto(self, data: Any, addr: Any = None) -> bool:  # type: ignore[override]
        """Send a datagram, or queue it while the system takes none.

        Args:
            data: bytes; none at all is a datagram too.
            addr: where to; None on a connected socket.

        Returns:
            False if the queue is full and the datagram was dropped.

        Raises:
            OSError: the system refuses it: too long, no route, no such address.
        """
        if self._closing:
            return False
        if self._queue:
            return self._enqueue(data, addr)
        try:
            self._send(data, addr)
        except OSError as exc:
            return self.not_sent(exc, data, addr)
        return True

    def _send(self, data: Any, addr: Any) -> None:
        if addr is None:
            self._sock.send(data)
        elif type(addr) is AskedAddress:
            self._sock.sendmsg([data], addr.reply_with, 0, addr)
        else:
            self._sock.sendto(data, addr)

    def not_sent(self, exc: OSError, data: Any, addr: Any) -> bool:
        """What becomes of a datagram that the system did not take; as of `sendto`.

        Args:
            exc: what it said: it has no room, or what became of an earlier datagram, or what is
                wrong with this one.
            data: the datagram.
            addr: where to.
        """
        if isinstance(exc, BlockingIOError | InterruptedError):
            return self._enqueue(data, addr)
        if exc.errno not in _UNREACHABLE:
            raise exc
        self._failed(exc)
        if self._closing:
            return False
        try:
            self._send(data, addr)
        except (BlockingIOError, InterruptedError):
            return self._enqueue(data, addr)
        return True

    def _enqueue(self, data: Any, addr: Any) -> bool:
        size = len(data) + _OVERHEAD
        if self._queued + size > self._max_queued:
            return False
        if not self._queue:
            self._loop.add_writer(self._sock.fileno(), self._flush)
            self._protocol.send_now = None
        self._queue.append((bytes(data), addr))
        self._queued += size
        if self._queued > self._high and not self._protocol_paused:
            self._protocol_paused = True
            self._protocol.pause_writing()
        return True

    def _flush(self) -> None:
        """The system takes datagrams again: send what is queued, a burst of it at most."""
        queue = self._queue
        for number in range(_BURST):
            if not queue:
                break
            if not self._send_queued(*queue[0]):
                if not number:
                    self._watch_again()
                break
            if queue:  # it was not aborted by whoever was told of an error
                data, _ = queue.popleft()
                self._queued -= len(data) + _OVERHEAD
                if not queue:
                    self._loop.remove_writer(self._sock.fileno())
                    if self._closing:
                        self._loop.call_soon(self._end, None)
                    else:
                        self._protocol.send_now = self._send_now
        if self._protocol_paused and self._queued <= self._low:
            self._protocol_paused = False
            self._protocol.resume_writing()

    def _send_queued(self, data: bytes, addr: Any) -> bool:
        """Send the oldest; False if the system takes no more."""
        try:
            try:
                self._send(data, addr)
            except OSError as exc:
                if exc.errno not in _UNREACHABLE:
                    raise
                self._failed(exc)
                if self._queue:
                    self._send(data, addr)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self._protocol.send_failed(exc, addr)
        return True

    def get_write_buffer_size(self) -> int:
        """Bytes that wait until the system takes them, with a little for each datagram."""
        return self._queued

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high-water mark, in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks for flow control, in bytes; as for any transport of asyncio."""
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high is {high!r} and low {low!r}, expected high >= low >= 0")
        self._high, self._low = high, low

    def renew(self) -> bool:
        """Go on with a fresh socket, connected to the same peer from another port.

        What still comes for the old one reaches nobody.

        Returns:
            False if it can't: the socket is not connected, its port was chosen by the user, it is
            closing, or datagrams are queued.

        Raises:
            OSError: there is no other socket to be had; the old one is still in use.
        """
        if not self._renewable or self._closing or self._queue:
            return False
        old = self._sock
        new = socket.socket(old.family, old.type, old.proto)
        try:
            new.setblocking(False)
            size = old.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            grow_receive_buffer(new, size // 2 if sys.platform == "linux" else size)
            host, _, *rest = old.getsockname()
            new.bind((host, 0, *rest))
            new.connect(old.getpeername())
        except BaseException:
            new.close()
            raise
        reading = self._reading
        self.pause_reading()
        old.close()
        self._sock = new
        self._information.update(socket=new, sockname=new.getsockname())
        self._prepare()
        if reading:
            self.resume_reading()
        return True

    # The end

    def is_closing(self) -> bool:
        """True once it is closed or aborted."""
        return self._closing

    def close(self) -> None:
        """Stop reading, send what is queued, then close the socket; idempotent."""
        if self._closing:
            return
        self.pause_reading()
        self._closing = True
        self._protocol.send_now = None
        if not self._queue:
            self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        """Close without sending what is queued."""
        self.pause_reading()
        if self._queue:
            self._loop.remove_writer(self._sock.fileno())
            self._queue.clear()
            self._queued = 0
            self._protocol_paused = False  # the protocol is told of its end
        elif self._closing:
            return  # its end is on the way
        self._closing = True
        self._protocol.send_now = None
        self._loop.call_soon(self._end, None)

    def _end(self, exc: OSError | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._sock.close()


async def open_datagram_transport(
    sock: socket.socket, protocol: Any, *, renewable: bool = False
) -> None:
    """Give a datagram socket to a protocol, which gets ``connection_made``.

    The protocol's ``max_datagram`` and ``max_queued`` are the transport's.  Where the loop has no
    ``add_reader`` its own transport is used: it does the same, slower, without the peer of an
    error and without the address that was asked.

    Raises:
        OSError: the loop can't use the socket; it is closed then.
    """
    loop = asyncio.get_running_loop()
    transport = DatagramSocketTransport(
        loop,
        sock,
        protocol,
        max_datagram=protocol.max_datagram,
        max_queued=protocol.max_queued,
        renewable=renewable,
    )
    try:
        transport.start()
    except NotImplementedError:
        try:
            await loop.create_datagram_endpoint(lambda: protocol, sock=sock)
        except BaseException:
            sock.close()
            raise
        return
    protocol.connection_made(transport)
