"""Flow control: what a protocol does when its transport's write buffer is full, and drained.

The transport calls :meth:`FlowControl.pause_writing` above its high-water mark and
:meth:`FlowControl.resume_writing` below the low one; in between ``write`` returns an awaitable.
This module knows nothing of requests.
"""

import asyncio
from collections.abc import Generator
from typing import Any

from pulsar_client.events import EventHandler

__all__ = ["FlowControl"]


def _check_limit(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{name} is {value!r}, expected a number of bytes >= 0 or None")


class _Drained:
    """What ``write`` returns while writing is paused; it costs nothing until it is awaited."""

    __slots__ = ("_flow",)

    def __init__(self, flow: "FlowControl") -> None:
        self._flow = flow

    def __await__(self) -> Generator[Any, None, None]:
        flow = self._flow
        while flow._paused:
            waiter = asyncio.get_running_loop().create_future()
            if flow._drain_waiters is None:
                flow._drain_waiters = []
            flow._drain_waiters.append(waiter)
            try:
                yield from waiter
            finally:
                # Cancelled: an abandoned wait costs no memory.
                if flow._drain_waiters is not None and waiter in flow._drain_waiters:
                    flow._drain_waiters.remove(waiter)
        if flow._drain_error is not None:
            raise flow._drain_error


class FlowControl(EventHandler):
    """The write side's back-pressure, as a base of protocols.

    Args:
        low_limit: bytes in the write buffer below which writing goes on; None for the loop's own.
        high_limit: bytes in the write buffer above which writing pauses; None for the loop's own.
        **kw: passed to the next class.

    Raises:
        ValueError: a limit is no number of bytes, or the low one is above the high one.
    """

    _low_limit: int | None = None
    _high_limit: int | None = None
    _sets_events = True
    _paused: bool
    _drain_waiters: list[asyncio.Future[None]] | None = None
    _drain_error: BaseException | None = None

    def __init__(
        self, low_limit: int | None = None, high_limit: int | None = None, **kw: Any
    ) -> None:
        _check_limit("low_limit", low_limit)
        _check_limit("high_limit", high_limit)
        if low_limit is not None and high_limit is not None and low_limit > high_limit:
            raise ValueError(
                f"low_limit is {low_limit} and high_limit is {high_limit} bytes, "
                "expected low_limit <= high_limit"
            )
        super().__init__(**kw)
        self._paused = False
        if low_limit is not None:
            self._low_limit = low_limit
        if high_limit is not None:
            self._high_limit = high_limit

    @property
    def writing_paused(self) -> bool:
        """True while the transport asks not to be given more."""
        return self._paused

    def pause_writing(self) -> None:
        """Called by the transport when its buffer goes over the high-water mark.

        Raises:
            RuntimeError: writing is paused already.
        """
        if self._paused:
            raise RuntimeError("pause_writing() was called twice without resume_writing()")
        self._paused = True

    def resume_writing(self, exc: BaseException | None = None) -> None:
        """Called by the transport when its buffer is below the low-water mark.

        Args:
            exc: what those who wait for the buffer to drain get instead of going on.

        Raises:
            RuntimeError: writing is not paused.
        """
        if not self._paused:
            raise RuntimeError("resume_writing() was called without pause_writing()")
        self._paused = False
        if exc is not self._drain_error:
            self._drain_error = exc
        waiters = self._drain_waiters
        if waiters is not None:
            self._drain_waiters = None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _set_write_limits(self, transport: asyncio.WriteTransport) -> None:
        """Hand the limits to the transport: its parameters are (high, low), in that order."""
        if self._low_limit is not None or self._high_limit is not None:
            transport.set_write_buffer_limits(high=self._high_limit, low=self._low_limit)

    def _drained(self) -> _Drained:
        """An awaitable of the caller's own that is done when writing may go on."""
        return _Drained(self)
