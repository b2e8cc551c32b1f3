"""Taking connections off listening sockets: a few at a time, and only while there is room.

The loop's own servers take as many connections as the backlog holds whenever they wake up, can't
be told to wait, and turn in circles when the process has no descriptor left.  This module must
not know of protocols, requests or settings; it does not make the sockets.
"""

import asyncio
import errno
import logging
import math
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

__all__ = ["Acceptor"]

#: Connections taken off a socket when the loop wakes up for it: few enough for the other workers
#: that wait for the same socket, and for the connections that are served already.
ACCEPTS_A_WAKEUP = 4
#: Seconds until the next try when the system can't give a descriptor.
_RETRY_AFTER = 0.25
#: Seconds between two log lines about that.
_LOG_EVERY = 1.0

# The peer gave up, or broke the rules, while it waited in the queue: the next one is fine.
_PEER_ERRORS = (errno.ECONNABORTED, errno.EPROTO)


class Acceptor:
    """Accepts connections and gives each a transport and a protocol.

    Args:
        loop: the event loop.
        sockets: listening and non-blocking; whoever made them closes them.
        make_protocol: called without arguments for each connection; must not raise.
        admit: called before each accept; gives the seconds to wait before the next one, 0 for
            none and ``math.inf`` until :meth:`resume` is called.  None to accept always.
        on_change: called when the number in :attr:`arriving` has changed.
        logger: where it logs.
        options: keyword arguments of ``loop.connect_accepted_socket``: ``ssl`` and its time-outs.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket],
        make_protocol: Callable[[], Any],
        *,
        admit: Callable[[], float] | None,
        on_change: Callable[[], None] | None,
        logger: logging.Logger,
        options: dict[str, Any],
    ) -> None:
        self._loop = loop
        self._sockets = tuple(sockets)
        self._make_protocol = make_protocol
        self._admit = admit
        self._on_change = on_change
        self._logger = logger
        self._options = options
        self._listening = False
        self._stopped = False
        self._retry: asyncio.TimerHandle | None = None
        self._quiet_until = -math.inf
        # Accepted, and their connection_made was not called yet.
        self._arriving: set[Any] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        # The loop's own servers, on a loop that can't watch a socket for us.
        self._servers: list[Any] = []

    @property
    def arriving(self) -> int:
        """How many accepted connections have not reached their protocol yet."""
        return len(self._arriving)

    async def start(self, backlog: int) -> None:
        """Begin to accept.

        Raises:
            RuntimeError: connections can't be held back on this loop, and ``admit`` was given.
        """
        try:
            self._listen()
        except NotImplementedError:
            # Windows' default loop.
            if self._admit is not None:
                raise RuntimeError(
                    f"{type(self._loop).__name__} can't hold connections back: max_connections "
                    "and accept_gate need an event loop with add_reader()"
                ) from None
            await self._start_servers(backlog)

    def resume(self) -> None:
        """There may be room again: stop waiting."""
        if not self._listening and not self._stopped and not self._servers:
            self._listen()

    def stop(self) -> None:
        """Accept no more; the sockets may be closed then."""
        self._stopped = True
        self._pause()
        for server in self._servers:
            server.close()

    def drain(self, limit: int) -> int:
        """Accept what waits in the queues of the sockets, after :meth:`stop`.

        Closing a listening socket resets the connections in its queue, which their clients take
        for made.  ``admit`` is not asked.

        Args:
            limit: connections taken off each socket at most; others may listen on it too, and
                more connections may arrive as fast as they are taken.

        Returns:
            How many were accepted.
        """
        count = 0
        for sock in self._sockets:
            for _ in range(limit):
                try:
                    connection, _ = sock.accept()
                except OSError as exc:
                    if exc.errno in _PEER_ERRORS:
                        continue
                    break  # nothing waits, or there is no descriptor for it
                count += 1
                self._connect(connection)
        return count

    async def wait_arrived(self) -> None:
        """Wait until every accepted connection has its protocol, or is lost."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def abort(self) -> None:
        """Cut the connections that have no protocol yet."""
        for task in self._tasks:
            task.cancel()
        await self.wait_arrived()

    def arrived(self, protocol: Any) -> None:
        """A protocol has its connection: it counts as arriving no more."""
        self._arriving.discard(protocol)

    # Inside

    def _listen(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for sock in self._sockets:
            self._loop.add_reader(sock, self._ready, sock)
        self._listening = True

    def _pause(self, seconds: float = math.inf) -> None:
        if self._listening:
            self._listening = False
            for sock in self._sockets:
                self._loop.remove_reader(sock)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if seconds < math.inf:
            self._retry = self._loop.call_later(seconds, self._listen)

    def _ready(self, sock: socket.socket) -> None:
        """Connections wait on a socket: take a few of them."""
        try:
            for _ in range(ACCEPTS_A_WAKEUP):
                if self._admit is not None:
                    seconds = self._admit()
                    if seconds > 0:
                        self._pause(seconds)
                        return
                try:
                    connection, _ = sock.accept()
                except BlockingIOError:
                    return
                except OSError as exc:
                    if exc.errno in _PEER_ERRORS:
                        continue
                    self._failed(exc)
                    return
                self._connect(connection)
        except Exception as exc:  # noqa: BLE001 - the loop calls us, and would at once again
            self._failed(exc)

    def _failed(self, exc: Exception) -> None:
        """Try again later: the connection still waits, so the loop would call at once again."""
        self._pause(_RETRY_AFTER)
        now = self._loop.time()
        if now >= self._quiet_until:
            self._quiet_until = now + _LOG_EVERY
            self._logger.error(
                "can't accept connections: %s; trying again every %g s",
                exc.strerror if isinstance(exc, OSError) else repr(exc),
                _RETRY_AFTER,
                exc_info=None if isinstance(exc, OSError) else exc,
            )

    def _connect(self, connection: socket.socket) -> None:
        protocol = self._make_protocol()
        self._arriving.add(protocol)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: protocol, connection, **self._options)
        )
        self._tasks.add(task)
        task.add_done_callback(partial(self._connected, protocol, connection))
        if self._on_change is not None:
            self._on_change()

    def _connected(
        self, protocol: Any, connection: socket.socket, task: asyncio.Task[Any]
    ) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (exc := task.exception()) is not None:
            # Before the transport had it; a second close does no harm.
            connection.close()
            if not task.cancelled():
                self._lost(exc)
        if protocol in self._arriving:
            self._arriving.discard(protocol)
            if self._on_change is not None:
                self._on_change()
            self.resume()

    def _lost(self, exc: BaseException | None) -> None:
        if isinstance(exc, OSError):
            # Whatever a peer does in its handshake is worth a debug line at most.
            self._logger.debug("a connection was lost before it was made: %s", exc)
        else:
            self._logger.error("a connection could not be made", exc_info=exc)

    async def _start_servers(self, backlog: int) -> None:
        for sock in self._sockets:
            create: Any = self._loop.create_server
            kw = dict(self._options)
            if sock.family == getattr(socket, "AF_UNIX", None):
                create = self._loop.create_unix_server
                if sys.version_info >= (3, 13):
                    # The file belongs to whoever made the socket.
                    kw["cleanup_socket"] = False
            self._servers.append(
                await create(self._make_protocol, sock=sock, backlog=backlog, **kw)
            )
