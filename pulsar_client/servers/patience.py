"""How long a server waits for a peer that owes it something.

A peer owes the first byte of a new connection, the rest of a request it has begun, and to take
what was written to it.  Requests cost nothing for that: one sweep for all connections looks now
and then at what each one waits for, and remembers those only that wait for their peer.

How long a connection may be idle is not decided here, nor how long a handler may work.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

__all__ = ["Limits", "Patience"]

#: Connections looked at in one turn of the loop.
_AT_ONCE = 500
# The sweep comes so many times within the shortest limit, and once a second at least.
_SWEEPS_A_LIMIT = 16
_LONGEST_PERIOD = 1.0

_FIRST_BYTE, _MESSAGE, _WRITE = "first byte", "rest of a request", "reply to be taken"


@dataclass(frozen=True)
class Limits:
    """Seconds that a peer has; None for ever."""

    first_byte: float | None = None
    message: float | None = None
    write: float | None = None


class Patience:
    """Cuts the connections whose peers take too long.

    Args:
        loop: the event loop.
        protocols: the connections of a server, which change.
        limits: how long each wait may take.
        logger: gets a debug line for each connection that is cut.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocols: Collection[Any],
        limits: Limits,
        logger: logging.Logger,
    ) -> None:
        self._loop = loop
        self._protocols = protocols
        self._logger = logger
        self._limits = {
            _FIRST_BYTE: limits.first_byte,
            _MESSAGE: limits.message,
            _WRITE: limits.write,
        }
        seconds = [limit for limit in self._limits.values() if limit is not None]
        self._period = min([limit / _SWEEPS_A_LIMIT for limit in seconds] + [_LONGEST_PERIOD])
        self._handle: asyncio.Handle | None = None
        # For a connection and what it waits for: a mark that changes with any progress, and since
        # when it has not.
        self._waits: dict[tuple[Any, str], tuple[int, float]] = {}
        self._found: dict[tuple[Any, str], tuple[int, float]] = {}
        self._left: list[Any] = []
        self._enabled = bool(seconds)

    def start(self) -> None:
        """Begin to look; does nothing when there is no limit."""
        if self._enabled:
            self._handle = self._loop.call_later(self._period, self._sweep)

    def stop(self) -> None:
        """Look no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._waits.clear()
        self._found.clear()
        self._left.clear()

    def _sweep(self) -> None:
        self._left = list(self._protocols)
        self._found = {}
        self._look()

    def _look(self) -> None:
        """Look at some connections; the others get their turn in between."""
        now = self._loop.time()
        for _ in range(min(_AT_ONCE, len(self._left))):
            protocol = self._left.pop()
            try:
                self._look_at(protocol, now)
            except Exception:
                self._logger.exception("%s: can't tell what it waits for", protocol)
        if self._left:
            self._handle = self._loop.call_soon(self._look)
        else:
            self._waits = self._found
            self._handle = self._loop.call_later(self._period, self._sweep)

    def _look_at(self, protocol: Any, now: float) -> None:
        for what, mark in _waits_for(protocol):
            limit = self._limits[what]
            if limit is None:
                continue
            before, since = self._waits.get((protocol, what), (None, now))
            if before != mark:
                since = now
            if now - since >= limit:
                self._logger.debug(
                    "%s: waited %g s for the %s, closing", protocol, now - since, what
                )
                if what is _WRITE:
                    protocol.abort()  # it takes nothing: nor would it take the rest
                else:
                    protocol.close()
                return
            self._found[protocol, what] = (mark, since)


def _waits_for(protocol: Any) -> list[tuple[str, int]]:
    """What a connection waits for its peer for, each with a mark that changes with progress."""
    waits: list[tuple[str, int]] = []
    if protocol.closed:
        return waits  # its own close watches over it
    unsent = protocol._unsent()
    if unsent:
        waits.append((_WRITE, protocol._written - unsent))
    consumer = getattr(protocol, "_current_consumer", None)
    requests: int = getattr(protocol, "requests_processed", 1)
    if requests == 0:
        if not protocol._written and (consumer is None or not consumer._started):
            # Unless the server speaks first: then the peer may have nothing to say.
            waits.append((_FIRST_BYTE, 0))
    elif (
        consumer is not None
        and consumer._started
        and not consumer._done
        # It has all of its request if it answers, works, or says so.
        and not consumer._sent
        and not consumer._tasks
        and consumer.request is None
        # The server itself does not read.
        and not getattr(protocol, "_read_holds", 0)
    ):
        waits.append((_MESSAGE, requests))
    return waits
