"""The idle time-out of a connection: one timer, re-armed lazily.

Reads and writes only store the loop's time; the timer looks at it when it fires and goes on for
the rest of the time.  This module knows nothing of requests but the question whether one is in
flight.
"""

import asyncio
from typing import Any

from pulsar_client.durations import check_seconds
from pulsar_client.events import EventHandler

__all__ = ["Timeout"]


class Timeout(EventHandler):
    """Closes a connection that was idle for ``timeout`` seconds.

    A connection with a request in flight is not idle, however long the request takes.

    Args:
        timeout: seconds without a byte in either direction; None or 0 for never.
        **kw: passed to the next class.

    Raises:
        ValueError: ``timeout`` is negative or not a number.
    """

    _sets_events = True
    _timeout: float | None = None
    _last_activity = 0.0
    _idle_handle: asyncio.TimerHandle | None = None

    def __init__(self, timeout: float | None = None, **kw: Any) -> None:
        super().__init__(**kw)
        if timeout is not None:
            self.timeout = timeout

    @property
    def timeout(self) -> float | None:
        """Idle seconds after which the connection closes; None means never.

        May be set at any time; the new time counts from now.
        """
        return self._timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        check_seconds("timeout", value)
        self._timeout = value or None
        if self._idle_handle is not None:
            self._idle_handle.cancel()
            self._idle_handle = None
        self._start_idle_timer()

    def _is_connected(self) -> bool:
        """True between ``connection_made`` and the loss: a timer makes sense."""
        raise NotImplementedError

    def _is_busy(self) -> bool:
        """True while a request is in flight."""
        raise NotImplementedError

    def _is_sending(self) -> bool:
        """True while the peer has not taken all that was written."""
        raise NotImplementedError

    def _idle_expired(self) -> None:
        """Close the connection: it was idle for too long."""
        raise NotImplementedError

    def _start_idle_timer(self) -> None:
        if self._timeout is not None and self._is_connected():
            loop = asyncio.get_running_loop() if self._loop is None else self._loop
            self._last_activity = loop.time()
            self._idle_handle = loop.call_later(self._timeout, self._check_idle, loop)

    def _stop_idle_timer(self) -> None:
        if self._idle_handle is not None:
            self._idle_handle.cancel()
            self._idle_handle = None

    def _check_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        timeout = self._timeout
        if timeout is None:
            return
        now = loop.time()
        if self._is_busy() or self._is_sending():
            self._last_activity = now
        remaining = self._last_activity + timeout - now
        if remaining > 0:
            self._idle_handle = loop.call_later(remaining, self._check_idle, loop)
        else:
            self._idle_handle = None
            self._idle_expired()
