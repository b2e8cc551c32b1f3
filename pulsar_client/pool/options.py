"""What a pool can be told, checked in one place (values out of range are named)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from tenacity import AsyncRetrying

from pulsar_client.durations import check_seconds

__all__ = ["PoolOptions"]

Action = Callable[[Any], Awaitable[Any]]

#: Connections that are opened at once unless ``max_dialling`` says otherwise.
_DIALS_AT_ONCE = 8


@dataclass(slots=True)
class PoolOptions:
    """The options of a pool; see :class:`~pulsar_client.Pool` for what each does.

    Raises:
        ValueError, TypeError: an option is out of range; the message names it and its value.
    """

    pool_size: int = 10
    timeout: float | None = 30.0
    min_size: int = 0
    max_waiting: int | None = None
    max_idle: float | None = None
    max_age: float | None = None
    max_uses: int | None = None
    lifo: bool = True
    max_dialling: int | None = None
    share: int = 1
    check: Action | None = None
    reset: Action | None = None
    on_connect: Action | None = None
    retry: AsyncRetrying | None = None
    leak_after: float | None = None
    queue_target: float | None = None
    queue_interval: float = 0.1

    def __post_init__(self) -> None:
        check_count("pool_size", self.pool_size, 1)
        check_seconds("timeout", self.timeout)
        check_count("min_size", self.min_size, 0)
        check_floor(self.min_size, self.pool_size)
        check_count("max_waiting", self.max_waiting, 0, optional=True)
        _check_positive("max_idle", self.max_idle)
        _check_positive("max_age", self.max_age)
        check_count("max_uses", self.max_uses, 1, optional=True)
        if not isinstance(self.lifo, bool):
            raise TypeError(f"lifo is {self.lifo!r}, expected True or False")
        check_count("max_dialling", self.max_dialling, 1, optional=True)
        check_count("share", self.share, 1)
        for name in ("check", "reset", "on_connect"):
            action = getattr(self, name)
            if action is not None and not callable(action):
                raise TypeError(
                    f"{name} is {action!r}, expected a coroutine function that takes a connection"
                )
        if self.retry is not None and not isinstance(self.retry, AsyncRetrying):
            raise TypeError(f"retry is {self.retry!r}, expected a tenacity.AsyncRetrying or None")
        _check_positive("leak_after", self.leak_after)
        _check_positive("queue_target", self.queue_target)
        _check_positive("queue_interval", self.queue_interval, optional=False)

    @property
    def plain(self) -> bool:
        """True if a lease has nothing to look at but whether the connection is good."""
        return (
            self.lifo
            and self.max_idle is self.max_age is self.max_uses is None
            and self.check is self.reset is None
        )

    @property
    def dials_at_once(self) -> int:
        """How many connections may be being opened at the same time."""
        return self.max_dialling or _DIALS_AT_ONCE


def check_count(name: str, value: object, least: int, *, optional: bool = False) -> None:
    """Refuse anything but an int of at least ``least``, or None if that is allowed."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        suffix = " or None" if optional else ""
        raise ValueError(f"{name} is {value!r}, expected an int >= {least}{suffix}")


def check_floor(min_size: int, pool_size: int) -> None:
    """Refuse to keep more connections than there may be."""
    if min_size > pool_size:
        raise ValueError(
            f"min_size is {min_size!r}, expected at most pool_size, which is {pool_size!r}"
        )


def _check_positive(name: str, value: object, *, optional: bool = True) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
        suffix = " or None" if optional else ""
        raise ValueError(f"{name} is {value!r}, expected seconds > 0{suffix}")
