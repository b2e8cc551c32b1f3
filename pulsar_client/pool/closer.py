"""Closes connections in a bounded time, and keeps their slots until they are gone (I2)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pulsar_client.pool.ledger import CLOSING, Entry, Ledger

__all__ = ["Closer"]

_logger = logging.getLogger("pulsar_client.pool")

#: Seconds that a connection may take to close before it is aborted.
_CLOSE_LIMIT = 10.0
#: Seconds that a connection may take to be gone after it was aborted.
_ABORT_LIMIT = 1.0


class Closer:
    """Sees connections off.

    Args:
        ledger: the book of the pool.
        owner: what log lines call the pool; only its ``repr`` is used.
        gone: called when a connection is gone, with its entry.
    """

    def __init__(self, ledger: Ledger, *, owner: object, gone: Callable[[Entry], None]) -> None:
        self._ledger = ledger
        self._owner = owner
        self._tell = gone
        self._tasks: set[asyncio.Task[None]] = set()
        # Set when nothing may take its time any more.
        self._hurry: asyncio.Future[None] | None = None

    def close(self, entry: Entry, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connection of an entry for which ``begin_close`` was called."""
        connection = entry.connection
        try:
            ending = connection.close()
        except (Exception, asyncio.CancelledError):
            _logger.exception("%r: closing %r failed", self._owner, connection)
            self.abort(connection)
            ending = None
        if hasattr(ending, "__await__") and not loop.is_closed():
            if self._hurry is None:
                self._hurry = loop.create_future()
            task = loop.create_task(
                self._see_off(entry, ending, self._hurry), name=f"close for {self._owner!r}"
            )
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, entry, ending))
        else:
            _drop(ending)
            self._gone(entry)

    def hurry(self) -> None:
        """Abort what is being closed, and from now on whatever does not close at once."""
        if self._hurry is None:
            self._hurry = asyncio.get_running_loop().create_future()
        if not self._hurry.done():
            self._hurry.set_result(None)

    def abort(self, connection: Any) -> None:
        """Abort a connection, if it can be."""
        abort = getattr(connection, "abort", None)
        try:
            if abort is not None:
                abort()
        except Exception:
            _logger.exception("%r: aborting %r failed", self._owner, connection)

    async def _see_off(
        self, entry: Entry, ending: Awaitable[Any], hurry: asyncio.Future[None]
    ) -> None:
        """Wait for the end of a close, and do what it takes that there is one."""
        connection = entry.connection
        closing = asyncio.ensure_future(_outcome(ending))
        # Cancelled before its first step it has not even begun to wait.
        closing.add_done_callback(lambda _: _drop(ending))
        try:
            either: list[asyncio.Future[Any]] = [closing, hurry]
            await asyncio.wait(either, timeout=_CLOSE_LIMIT, return_when=asyncio.FIRST_COMPLETED)
            if not closing.done():
                self.abort(connection)
                await asyncio.wait([closing], timeout=_ABORT_LIMIT)
            if closing.done():
                failure = closing.result()
                if failure is not None:
                    _logger.debug("%r: closing %r: %r", self._owner, connection, failure)
            else:
                _logger.warning("%r: %r does not close, forgotten", self._owner, connection)
        finally:
            closing.cancel()
            self._gone(entry)

    def _ended(self, entry: Entry, ending: Awaitable[Any], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if entry.state == CLOSING:
            # Cancelled before its first step, at the end of the loop: nothing of it has run.
            _drop(ending)
            self._gone(entry)

    def _gone(self, entry: Entry) -> None:
        self._ledger.end_close(entry)
        self._tell(entry)


def _drop(ending: object) -> None:
    """Give up a close that nobody can wait for."""
    if asyncio.iscoroutine(ending):
        ending.close()


async def _outcome(ending: Awaitable[Any]) -> BaseException | None:
    """Await a close and return, not raise, what it raises: the connection is gone either way."""
    try:
        await ending
    except Exception as exc:  # noqa: BLE001 - reported by the caller
        return exc
    return None
