"""An event that may fire many times, and what a callback is."""

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

__all__ = ["Callback", "Event", "check_callback"]

#: Called as ``callback(sender, exc=None, **kw)``; data events pass ``data=``.
Callback = Callable[..., object]

logger = logging.getLogger("pulsar_client.events")


def check_callback(callback: object, name: str) -> None:
    """Refuse what can't be called.

    Raises:
        TypeError: the message names the event and the value.
    """
    if not callable(callback):
        raise TypeError(
            f"callback of event {name!r} is {callback!r}, expected a callable "
            "taking (sender, exc=None, **kw)"
        )


class Event:
    """An event that may fire many times.

    Args:
        name: what it is called in log lines and ``repr``.
        logger: where failing callbacks are logged with their traceback.
    """

    __slots__ = ("_callbacks", "_logger", "name")

    def __init__(self, name: str, *, logger: logging.Logger = logger) -> None:
        self.name = name
        self._callbacks: list[Callback] = []
        self._logger = logger

    def __repr__(self) -> str:
        return f"<Event {self.name!r}: {len(self._callbacks)} callbacks>"

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """The bound callbacks, in the order in which they are called."""
        return tuple(self._callbacks)

    def bind(self, callback: Callback) -> None:
        """Add a callback; binding the same one again changes nothing.

        Raises:
            TypeError: ``callback`` is not callable.
        """
        check_callback(callback, self.name)
        if callback not in self._callbacks:
            self._callbacks.append(callback)

    def unbind(self, callback: Callback) -> int:
        """Remove a callback and return how many were removed, 0 or 1."""
        try:
            self._callbacks.remove(callback)
        except ValueError:
            return 0
        return 1

    def fire(self, arg: object, **kw: Any) -> None:
        """Call every callback with ``(arg, **kw)``; a failing one is logged, the others run."""
        for callback in tuple(self._callbacks):
            try:
                result = callback(arg, **kw)
            except (Exception, asyncio.CancelledError):
                self._logger.exception("callback %r of event %r failed", callback, self.name)
                continue
            if result is not None and inspect.iscoroutine(result):
                result.close()
                self._logger.error(
                    "callback %r of event %r is a coroutine function; only one-time events "
                    "can wait for coroutines",
                    callback,
                    self.name,
                )
