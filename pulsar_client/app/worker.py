"""One process that serves: its servers, its signals, its graceful end.

It works for the arbiter, or alone with ``--concurrency thread``.  It does not bind, and does not
decide when another worker is needed.
"""

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from pulsar_client.app import scoreboard
from pulsar_client.app.fair_share import FairShare
from pulsar_client.app.logs import CountingHandler
from pulsar_client.app.settings import Settings

__all__ = ["Worker", "beat_interval"]

logger = logging.getLogger("pulsar_client.app")

# Seconds between two beats: by so much a stuck loop is found later than it could be, and so old
# are the numbers that others see.
_BEAT = 0.1
# Seconds between two looks whether a worker that is full has room again.
_FULL_PAUSE = 0.01
# What the servers get to abort what is left.
_ABORT_TIME = 0.3


def beat_interval(settings: Settings) -> float:
    """Give the seconds between two beats of a worker with these settings."""
    return min(_BEAT, settings.timeout / 4) if settings.timeout else _BEAT


class Worker:
    """Serves sockets until it is told to stop.

    Args:
        application: whose ``worker_start`` makes the servers.
        settings: the settings.
        sockets: the listening sockets, a list for each address of ``bind``.
        sslcontext: for TLS, or None.
        idx: which of the workers it is, from 0.
        row: where it tells its numbers, if anybody reads them.

    Attributes:
        servers: what ``worker_start`` has added; closed at the end.
    """

    def __init__(
        self,
        application: Any,
        settings: Settings,
        sockets: Sequence[Sequence[socket.socket]],
        *,
        sslcontext: ssl.SSLContext | None = None,
        idx: int = 0,
        row: scoreboard.Row | None = None,
    ) -> None:
        self.application = application
        self.settings = settings
        self.sockets = [list(group) for group in sockets]
        self.sslcontext = sslcontext
        self.idx = idx
        self.pid = os.getpid()
        self.servers: list[Any] = []
        self.logger = logger
        #: Called once when ``max_requests`` is reached; the worker goes on until it is told.
        self.on_enough_requests: Callable[[], object] | None = None
        #: Called once when no server accepts any more.
        self.on_closed: Callable[[], object] | None = None
        self.lag = 0.0
        self.errors = CountingHandler()
        #: Who accepts the next connection, if there are other workers.
        self.share: FairShare | None = None
        self._row = row
        self._told: asyncio.Event | None = None
        self._grace: float | None = None
        self._cut = False
        self._last = True
        self._beat_handle: asyncio.TimerHandle | None = None
        limit = settings.max_requests
        # Spread, or workers that began together would end together (P19).
        self._enough = limit + random.randint(0, limit // 10) if limit else 0
        self._interval = beat_interval(settings)

    def __repr__(self) -> str:
        return f"<Worker {self.idx} pid {self.pid}: {len(self.servers)} servers>"

    def server_options(self) -> dict[str, Any]:
        """Give the keyword arguments that every server of this worker gets."""
        settings = self.settings
        options: dict[str, Any] = {
            "logger": logger,
            "keep_alive": settings.keep_alive or None,
            "handshake_timeout": settings.handshake_timeout,
            "first_byte_timeout": settings.first_byte_timeout or None,
            "message_timeout": settings.message_timeout or None,
            "write_timeout": settings.write_timeout or None,
            "max_message": settings.max_message or None,
            "on_connections": self._connections_changed,
        }
        if settings.max_connections and len(self.sockets) == 1:
            options["max_connections"] = settings.max_connections
        if self.share is not None or settings.max_connections:
            options["accept_gate"] = self._gate
        return options

    def _gate(self) -> float:
        """Seconds until a server may accept the next connection."""
        limit = self.settings.max_connections
        if limit and self.connections >= limit:
            # Of all addresses together: a server does not know when another one has room.
            return _FULL_PAUSE
        return 0.0 if self.share is None else self.share()

    # Numbers

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return sum(getattr(server, "connections", 0) for server in self.servers)

    @property
    def requests(self) -> int:
        """How many requests its connections have started."""
        return sum(server.requests_processed for server in self.servers)

    @property
    def accepted(self) -> int:
        """How many connections there were in all."""
        return sum(server.sessions for server in self.servers)

    def tell(self) -> None:
        """Write the numbers to the row."""
        row = self._row
        if row is not None:
            row[scoreboard.CONNECTIONS] = self.connections
            row[scoreboard.ACCEPTED] = self.accepted
            row[scoreboard.REQUESTS] = self.requests
            row[scoreboard.ERRORS] = self.errors.count
            row[scoreboard.LAG] = int(self.lag * 1e6)

    def _connections_changed(self, count: int) -> None:
        if self._row is not None:
            accepted = self.accepted
            # The others look at these two when the next connection comes.
            self._row[scoreboard.RANK] += accepted - self._row[scoreboard.ACCEPTED]
            limit = self.settings.max_connections
            if limit and self._grace is None:
                # One that is full is not waited for.
                full = self.connections >= limit
                state = scoreboard.NOT_ACCEPTING if full else scoreboard.ACCEPTING
                self._row[scoreboard.STATE] = state
            self.tell()

    def _beat(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        self.lag = max(0.0, loop.time() - due)
        self.tell()
        if self._row is not None:
            self._row[scoreboard.BEAT] = time.monotonic_ns()
        if self._enough and self.on_enough_requests is not None and self.requests >= self._enough:
            self._enough = 0
            self.on_enough_requests()
        due = loop.time() + self._interval
        self._beat_handle = loop.call_at(due, self._beat, due)

    # Life

    async def serve(self, ready: Callable[[], object]) -> None:
        """Start the servers, serve, and end when told to.

        Args:
            ready: called when all accept connections.

        Raises:
            Exception: whatever ``worker_start`` raises.

        When it is over, connections may be left that were cut: the end of the process, or of the
        loop, closes them.
        """
        self._told = asyncio.Event()
        logging.getLogger("pulsar_client").addHandler(self.errors)
        closing: asyncio.Task[None] | None = None
        try:
            await self.application.worker_start(self)
            if self.share is not None:
                self.share.begin()
            self._beat(asyncio.get_running_loop().time())
            if self._row is not None:
                self._row[scoreboard.STATE] = scoreboard.ACCEPTING
            ready()
            await self._told_to_stop()
            closing = asyncio.get_running_loop().create_task(self._close())
            while not closing.done() and not self._cut:
                told = asyncio.ensure_future(self._told.wait())
                await asyncio.wait({closing, told}, return_when=asyncio.FIRST_COMPLETED)
                told.cancel()
        finally:
            if self._beat_handle is not None:
                self._beat_handle.cancel()
            if closing is None or not closing.done():
                await self._abort(closing)
            logging.getLogger("pulsar_client").removeHandler(self.errors)

    async def _told_to_stop(self) -> None:
        assert self._told is not None
        while self._grace is None:
            await self._told.wait()
        self._told.clear()

    def stop(self, grace: float, *, last: bool = True) -> None:
        """Stop accepting and finish what is in flight.

        Args:
            grace: seconds after which what is left is cut; 0 cuts at once.
            last: nobody else will accept what waits in the queues of the sockets: do it.
        """
        self._last = last
        if self._row is not None:
            self._row[scoreboard.STATE] = scoreboard.NOT_ACCEPTING
        self._cut = self._cut or grace <= 0
        if self._grace is None:
            self._grace = grace
        if self._told is not None:
            self._told.set()

    async def _close(self) -> None:
        assert self._grace is not None
        loop = asyncio.get_running_loop()
        closing = [
            loop.create_task(self.application.close_server(server, self._grace, last=self._last))
            for server in self.servers
        ]
        # Each stops accepting as the first thing it does, in a task of its own.
        for _ in range(3):
            await asyncio.sleep(0)
        if self.on_closed is not None:
            self.on_closed()
        results = await asyncio.gather(*closing, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                self.logger.error("a server did not close", exc_info=result)
        self.tell()

    async def _abort(self, closing: asyncio.Task[None] | None) -> None:
        """Leave nothing that accepts; whatever is still open goes with the loop."""
        if closing is not None:
            closing.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ABORT_TIME):
                await asyncio.gather(
                    *(
                        self.application.close_server(server, 0.0, last=False)
                        for server in self.servers
                    ),
                    return_exceptions=True,
                )

    # Signals

    def on_signal(self, number: int) -> None:
        """Do what TERM, INT or QUIT asks for: a second one cuts what the first lets finish."""
        quick = number == getattr(signal, "SIGQUIT", None) or self._grace is not None
        self.stop(0.0 if quick else self.settings.graceful_timeout)
