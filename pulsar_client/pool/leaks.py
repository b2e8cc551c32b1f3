"""Finds leases that are held too long, and those that were forgotten.

This module knows where a lease was taken and where its task stands; it knows no connections.
"""

import asyncio
import logging
import sys
import traceback
from types import CodeType, CoroutineType, FrameType
from typing import Any
from weakref import ref

__all__ = ["Hold", "Leaks", "describe_site"]

_logger = logging.getLogger("pulsar_client.pool")

#: Frames that are kept of each stack.
_DEPTH = 30


class Hold:
    """A lease under observation: where it was taken, by which task, since when."""

    __slots__ = ("_stack", "_task", "connection", "reported", "since")

    def __init__(self, connection: Any, since: float, frame: FrameType | None) -> None:
        self.connection = connection
        self.since = since
        self.reported = False
        # Only what a lease can afford: traceback's own summary asks the file system for each
        # file, and to know the number of a line takes time too.  That is for the report.
        self._stack: list[tuple[CodeType, int]] = []
        while frame is not None and len(self._stack) < _DEPTH:
            self._stack.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        task = asyncio.current_task()
        self._task = None if task is None else ref(task)

    def acquired_at(self) -> str:
        """The stack that took the lease, innermost call last, as in a traceback."""
        return "".join(
            traceback.format_list(
                [
                    traceback.FrameSummary(code.co_filename, _line(code, last), code.co_name)
                    for code, last in reversed(self._stack)
                ]
            )
        )

    def stands_at(self) -> str:
        """Where the task that took the lease stands now."""
        task = None if self._task is None else self._task()
        if task is None:
            return "its task is gone"
        if task.done():
            return f"its task is done: {task!r}"
        if task is asyncio.current_task():
            return f"its task {task.get_name()!r} is the one that runs now"
        return f"its task {task.get_name()!r} stands at:\n{''.join(_await_chain(task))}"


class Leaks:
    """Reports leases that are held longer than a limit, and that they came back after all.

    Args:
        owner: what log lines call the pool; only its ``repr`` is used.
        after: the limit, in seconds.
    """

    def __init__(self, owner: object, after: float) -> None:
        self._owner = owner
        self._after = after
        # In the order in which they began: the first is the first to be late.
        self._holds: dict[Hold, None] = {}
        self._reported: set[Hold] = set()

    def begin(self, connection: Any, now: float, frame: FrameType) -> Hold:
        """A lease has begun."""
        hold = Hold(connection, now, frame)
        self._holds[hold] = None
        return hold

    def end(self, hold: Hold, now: float) -> None:
        """A lease has ended."""
        self._holds.pop(hold, None)
        if hold in self._reported:
            self._reported.discard(hold)
            _logger.warning(
                "%r: the lease of %r that was held too long came back after %.3g s",
                self._owner,
                hold.connection,
                now - hold.since,
            )

    def forget(self, hold: Hold) -> None:
        """A lease was garbage collected, and reported as such."""
        self._holds.pop(hold, None)
        self._reported.discard(hold)

    def report(self, now: float) -> float | None:
        """Log those that are late; when to look again, None if nothing is held."""
        for hold in tuple(self._holds):
            due = hold.since + self._after
            if due > now:
                return due
            del self._holds[hold]
            self._reported.add(hold)
            _logger.warning(
                "%r: a lease of %r is held since %.3g s; it was taken at:\n%s%s",
                self._owner,
                hold.connection,
                now - hold.since,
                hold.acquired_at(),
                hold.stands_at(),
            )
        return None


def describe_site(site: CodeType | Hold | None, instruction: int) -> str:
    """Where a lease was taken: a line, or a whole stack if it was under observation."""
    if isinstance(site, Hold):
        return f"it was taken at:\n{site.acquired_at()}"
    if site is None:
        return "where it was taken is unknown"
    return (
        f"it was taken at {site.co_filename}:{_line(site, instruction)} in {site.co_qualname} "
        "(Pool(leak_after=...) shows the whole stack)"
    )


def _line(code: CodeType, instruction: int) -> int | None:
    """The line that an instruction belongs to."""
    for start, end, number in code.co_lines():
        if start <= instruction < end:
            return number
    return code.co_firstlineno


def caller_of(depth: int) -> FrameType:
    """The frame ``depth`` calls above the caller."""
    return sys._getframe(depth + 1)


def _await_chain(task: "asyncio.Task[Any]") -> list[str]:
    """The stack of a suspended task: what it awaits, down to where it waits."""
    lines = []
    awaited: Any = task.get_coro()
    while isinstance(awaited, CoroutineType) and awaited.cr_frame is not None:
        frame = awaited.cr_frame
        lines += traceback.format_list(
            traceback.StackSummary.extract([(frame, frame.f_lineno)].__iter__())
        )
        awaited = awaited.cr_await
    if awaited is not None and not isinstance(awaited, CoroutineType):
        lines.append(f"  which waits for {awaited!r}\n")
    return lines
