"""How the system finds out that a TCP peer has silently vanished (I23).

A peer whose machine or network is gone says nothing: without these options an idle connection to
it looks healthy for ever, and one with unacknowledged data for a quarter of an hour.

This module knows sockets only.
"""

import math
import socket
from dataclasses import dataclass

__all__ = ["KeepAlive"]

# The names differ: macOS calls TCP_KEEPIDLE otherwise, and only Linux has the user time-out.
_IDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_INTERVAL = getattr(socket, "TCP_KEEPINTVL", None)
_COUNT = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)

# What Linux takes: seconds of the probes, number of probes, milliseconds of the user time-out.
_MAX_SECONDS = 32767
_MAX_COUNT = 127
_MAX_USER_TIMEOUT = 2**31 / 1000 - 1


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """The TCP options of one connection; validated when it is made.

    Args:
        idle: seconds without traffic after which the peer is probed, rounded up to whole ones;
            None for no probes.
        interval: seconds between two probes that are not answered, rounded up to whole ones.
        count: probes without an answer after which the connection is lost.
        user_timeout: seconds for which sent data may go unacknowledged, or data wait because the
            peer's window is closed, before the connection is lost; None for the system's own
            patience.

    Raises:
        ValueError: a value out of range; the message names it.
    """

    idle: float | None
    interval: float
    count: int
    user_timeout: float | None

    def __post_init__(self) -> None:
        if self.idle is not None:
            _check_range("keep_alive", self.idle, 1, _MAX_SECONDS, "seconds", " or None")
        _check_range("keep_alive_interval", self.interval, 1, _MAX_SECONDS, "seconds", "")
        if not isinstance(self.count, int):
            raise ValueError(f"keep_alive_count is {self.count!r}, expected an int >= 1")
        _check_range("keep_alive_count", self.count, 1, _MAX_COUNT, "probes", "")
        if self.user_timeout is not None:
            _check_range(
                "user_timeout", self.user_timeout, 0.001, _MAX_USER_TIMEOUT, "seconds", " or None"
            )

    def apply(self, sock: socket.socket) -> None:
        """Set the options on a TCP socket; one of another kind is left alone.

        Where the system lacks an option it is passed over.

        Raises:
            OSError: the system refuses a value.
        """
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if self.idle is not None:
            if _IDLE is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _IDLE, math.ceil(self.idle))
            if _INTERVAL is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _INTERVAL, math.ceil(self.interval))
            if _COUNT is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _COUNT, self.count)
            # Last: the first probe is timed from here.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self.user_timeout is not None and _USER_TIMEOUT is not None:
            milliseconds = math.ceil(self.user_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, milliseconds)


def _check_range(
    name: str, value: float, least: float, most: float, unit: str, or_none: str
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}, expected {least:g} to {most:.0f} {unit}{or_none}")
