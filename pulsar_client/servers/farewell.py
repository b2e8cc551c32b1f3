"""How a server that closes parts with its connections.

One with a request in flight may finish it.  One that is idle is closed at once, after a last look
for bytes that have arrived.  One that has not sent anything yet gets a moment for its first
request: its client has only just connected, and can't know.  This module must not know of sockets
that listen, or of deadlines: whoever closes the server cuts what is left.
"""

import asyncio
import contextlib
import select
import socket
from collections.abc import Iterable
from typing import Any

__all__ = ["Farewell"]

#: Seconds without a request after which a connection counts as idle: a client that is busy with
#: it asks again sooner, and has the answer and the end of the connection together.
_QUIET = 0.05


class Farewell:
    """Closes connections as soon as they can be closed without harm.

    Args:
        loop: the event loop.
        first_byte: seconds that a connection has for its first request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, first_byte: float) -> None:
        self._loop = loop
        self._first_byte = first_byte
        self._timers: list[asyncio.TimerHandle] = []

    async def begin(self, protocols: Iterable[Any]) -> None:
        """Say it to all the connections of the server."""
        for _ in range(2):
            await asyncio.sleep(0)  # what the loop has seen arrive reaches its connection
        protocols = tuple(protocols)
        arrived = _with_bytes_waiting(protocols)
        for protocol in protocols:
            if protocol in arrived:
                _send_reply_and_end_together(protocol)
                self._give_time(protocol, self._first_byte)
            else:
                self.say(protocol)

    def say(self, protocol: Any) -> None:
        """Close a connection when its request is done."""
        _send_reply_and_end_together(protocol)
        if getattr(protocol, "requests_processed", 1) == 0:
            self._give_time(protocol, self._first_byte)
        else:
            self._give_time(protocol, min(_QUIET, self._first_byte))

    def end(self) -> None:
        """Wait for nobody any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _give_time(self, protocol: Any, seconds: float) -> None:
        close_after_request = getattr(protocol, "close_after_request", None)
        if close_after_request is not None:
            close_after_request()
        self._timers.append(self._loop.call_later(seconds, _close_when_idle, protocol))


def _send_reply_and_end_together(protocol: Any) -> None:
    """Let the last reply leave with the end of the connection behind it, in one packet.

    A client that asks without a pause would have sent its next request before it could know.
    """
    sock = getattr(protocol, "sock", None)
    transport = getattr(protocol, "transport", None)
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None):
        return
    if transport is None or transport.get_extra_info("sslcontext") is not None:
        return  # what says goodbye in TLS needs an answer before the end
    if hasattr(socket, "TCP_CORK"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)


def _close_when_idle(protocol: Any) -> None:
    """Close a connection when its request is done; one without requests, at once."""
    if hasattr(protocol, "close_after_request") and _with_bytes_waiting((protocol,)):
        return  # a request has just come: the connection is closed when that is done
    close = getattr(protocol, "close_when_idle", None) or protocol.close
    close()


def _with_bytes_waiting(protocols: Iterable[Any]) -> set[Any]:
    """Those for which the system has bytes, or the end of them, that were not read yet."""
    if not hasattr(select, "poll"):
        return set()
    poll = select.poll()
    of_descriptor = {}
    for protocol in protocols:
        sock = getattr(protocol, "sock", None)
        descriptor = -1 if sock is None else sock.fileno()
        if descriptor >= 0:
            poll.register(descriptor, select.POLLIN)
            of_descriptor[descriptor] = protocol
    return {of_descriptor[descriptor] for descriptor, _ in poll.poll(0)}
