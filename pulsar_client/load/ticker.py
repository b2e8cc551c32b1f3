"""A timer that is on time: asyncio's own rounds to a millisecond, a timerfd does not.

On Linux the kernel's timer is watched by the loop like a socket; elsewhere, and on loops that have
no descriptors to watch, ``call_at`` must do.
"""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Ticker", "make_ticker"]

_CLOCK_MONOTONIC = 1  # what time.monotonic() reads on Linux
_TFD_TIMER_ABSTIME = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = getattr(os, "O_CLOEXEC", 0)


class Ticker(Protocol):
    """Calls back once at each moment it was armed for."""

    def arm(self, when: float) -> None:
        """Call back at `when`, a moment of the clock; an earlier order is replaced."""

    def close(self) -> None:
        """Call back no more."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class TimerfdTicker:
    """The kernel's timer; late by some ten microseconds.

    Raises:
        OSError: the system has no such timer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("no timerfd on this system")
        # os.timerfd_create is there from Python 3.13 on; the C library has it everywhere.
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._settime = libc.timerfd_settime
        self._descriptor = descriptor
        self._spec = _TimerSpec()
        self._address = ctypes.byref(self._spec)
        self._callback = callback
        self._loop = loop
        try:
            loop.add_reader(descriptor, self._expired)
        except BaseException:
            os.close(descriptor)
            raise

    def arm(self, when: float) -> None:
        """Call back at `when`; at once if that is over."""
        # A zero would disarm the timer: the first nanosecond since boot is over as well.
        moment = max(1, int(when * 1e9))
        value = self._spec.value
        value.seconds, value.nanoseconds = divmod(moment, 1_000_000_000)
        self._settime(self._descriptor, _TFD_TIMER_ABSTIME, self._address, None)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _expired(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return  # it was armed anew since the loop saw it
        self._callback()


class CallAtTicker:
    """The loop's own timer, for a clock that need not be that of the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        callback: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._callback = callback
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, when: float) -> None:
        """Call back at `when`; in the next turn if that is over."""
        self.close()
        delay = max(0.0, when - self._clock())
        self._handle = self._loop.call_at(self._loop.time() + delay, self._callback)

    def close(self) -> None:
        """Cancel the timer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def make_ticker(
    loop: asyncio.AbstractEventLoop, callback: Callable[[], None], clock: Callable[[], float]
) -> Ticker:
    """Make the best ticker that there is for a loop and a clock.

    The callback may come early by what a timer rounds: look at the clock, and arm again.
    """
    if clock is time.monotonic:
        try:
            return TimerfdTicker(loop, callback)
        except (OSError, AttributeError, NotImplementedError):
            pass  # no such timer, or a loop that watches no descriptors
    return CallAtTicker(loop, callback, clock)
