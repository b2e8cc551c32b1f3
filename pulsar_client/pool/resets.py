"""Cleans connections up after a lease: in tasks of the pool, in a bounded time (I13)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pulsar_client.pool.ledger import Entry

__all__ = ["Resets"]

_logger = logging.getLogger("pulsar_client.pool")

#: Seconds that a reset may take.
_LIMIT = 5.0


class Resets:
    """Runs the user's ``reset`` on connections that come back.

    Args:
        reset: a coroutine function that takes a connection, or None.
        owner: what log lines call the pool; only its ``repr`` is used.
        ended: called once a reset has ended or run out of time, with the entry and whether the
            connection is clean.
    """

    def __init__(
        self,
        reset: Callable[[Any], Awaitable[Any]] | None,
        *,
        owner: object,
        ended: Callable[[Entry, bool], None],
    ) -> None:
        self._reset = reset
        self._owner = owner
        self._told = ended
        self._running: dict[Entry, tuple[asyncio.Task[None], asyncio.TimerHandle]] = {}

    @property
    def wanted(self) -> bool:
        """True if connections are reset at all."""
        return self._reset is not None

    def __contains__(self, entry: Entry) -> bool:
        """True while a connection is being reset."""
        return entry in self._running

    def begin(self, entry: Entry, loop: asyncio.AbstractEventLoop) -> None:
        """Reset a connection whose lease has ended."""
        task = loop.create_task(self._run(entry.connection), name=f"reset for {self._owner!r}")
        self._running[entry] = task, loop.call_later(_LIMIT, self._late, entry)
        task.add_done_callback(partial(self._ended, entry))

    def cancel(self) -> None:
        """Clean nothing up any more: the connections are closed, each when its task has ended.

        The limit goes on to hold for one that ignores that.
        """
        for task, _ in tuple(self._running.values()):
            task.cancel()

    async def _run(self, connection: Any) -> None:
        assert self._reset is not None
        await self._reset(connection)

    def _late(self, entry: Entry) -> None:
        _logger.warning(
            "%r: the reset of %r took more than %g s", self._owner, entry.connection, _LIMIT
        )
        self._give_up(entry)

    def _give_up(self, entry: Entry) -> None:
        """Not even a reset that ignores its cancellation holds the slot."""
        task, timer = self._running.pop(entry)
        timer.cancel()
        task.cancel()
        self._told(entry, False)

    def _ended(self, entry: Entry, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, Exception):
            _logger.warning(
                "%r: the reset of %r failed", self._owner, entry.connection, exc_info=failure
            )
        if entry in self._running:
            _, timer = self._running.pop(entry)
            timer.cancel()
            self._told(entry, failure is None and not task.cancelled())
