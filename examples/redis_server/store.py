"""What the server keeps: values with a time to live, within a limit of bytes, and channels.

This module knows neither connections nor how replies look.
"""

import re
from collections.abc import Callable
from typing import Any

from examples.redis_server.replies import RedisFault

__all__ = ["Store", "number_of"]

#: What a key costs beside its bytes and those of its value.
_OVERHEAD = 100
_BIGGEST = 2**63
_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def number_of(text: bytes) -> int:
    """The number that a text is.

    Raises:
        RedisFault: it is none of 64 bits.
    """
    number = int(text) if _NUMBER.fullmatch(text) else _BIGGEST
    if not -_BIGGEST <= number < _BIGGEST:
        raise RedisFault("ERR value is not an integer or out of range")
    return number


class Store:
    """Values by key.

    Args:
        clock: seconds, from anywhere on.
        max_memory: the most bytes of keys and values; a command that needs more is refused.
    """

    def __init__(self, clock: Callable[[], float], max_memory: int) -> None:
        self.clock = clock
        self.max_memory = max_memory
        self.used = 0
        #: Those who listen to a channel.
        self.channels: dict[bytes, set[Any]] = {}
        self._values: dict[bytes, bytes] = {}
        self._deadlines: dict[bytes, float] = {}

    def __len__(self) -> int:
        self._drop_expired()
        return len(self._values)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        if self._deadlines and self._deadlines.get(key, self.clock() + 1.0) <= self.clock():
            self.delete(key)
        return self._values.get(key)

    def set(self, key: bytes, value: bytes, seconds: float | None = None) -> None:
        """Store a value, for so many seconds or for ever.

        Raises:
            RedisFault: there is no room for it.
        """
        self._make_room(key, value)
        self.delete(key)
        self._values[key] = value
        self.used += len(key) + len(value) + _OVERHEAD
        if seconds is not None:
            self._deadlines[key] = self.clock() + seconds

    def add(self, key: bytes, amount: int) -> int:
        """Add to the number stored, 0 if there is none; the time to live stays."""
        value = self.get(key)
        number = amount + (0 if value is None else number_of(value))
        if not -_BIGGEST <= number < _BIGGEST:
            raise RedisFault("ERR increment or decrement would overflow")
        deadline = self._deadlines.get(key)
        self.set(key, b"%d" % number)
        if deadline is not None:
            self._deadlines[key] = deadline
        return number

    def delete(self, key: bytes) -> bool:
        """Forget a key; True if there was one."""
        self._deadlines.pop(key, None)
        value = self._values.pop(key, None)
        if value is None:
            return False
        self.used -= len(key) + len(value) + _OVERHEAD
        return True

    def expire(self, key: bytes, seconds: float) -> bool:
        """Give a key so many seconds to live; True if there is one."""
        if self.get(key) is None:
            return False
        if seconds <= 0:
            self.delete(key)
        else:
            self._deadlines[key] = self.clock() + seconds
        return True

    def seconds_left(self, key: bytes) -> float | None:
        """How long a key that exists has to live; None for ever."""
        deadline = self._deadlines.get(key)
        return None if deadline is None else deadline - self.clock()

    def clear(self) -> None:
        """Forget everything but the channels."""
        self._values.clear()
        self._deadlines.clear()
        self.used = 0

    def _make_room(self, key: bytes, value: bytes) -> None:
        needed = len(key) + len(value) + _OVERHEAD
        if self.used + needed > self.max_memory:
            self._drop_expired()
            old = self._values.get(key)
            if old is not None:
                needed -= len(key) + len(old) + _OVERHEAD
            if self.used + needed > self.max_memory:
                raise RedisFault("OOM command not allowed when used memory > 'maxmemory'.")

    def _drop_expired(self) -> None:
        now = self.clock()
        for key in [key for key, deadline in self._deadlines.items() if deadline <= now]:
            self.delete(key)
