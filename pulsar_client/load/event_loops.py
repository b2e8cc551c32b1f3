"""Which event loop a run uses."""

import asyncio
import importlib.util
from collections.abc import Callable

from pulsar_client.exceptions import ConfigError

__all__ = ["LOOPS", "loop_factory"]

LOOPS = ("auto", "asyncio", "uvloop")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Find what makes the event loop called `name`; None for asyncio's own.

    Raises:
        ConfigError: uvloop is wanted and not installed.
    """
    present = importlib.util.find_spec("uvloop") is not None
    if name == "asyncio" or (name == "auto" and not present):
        return None
    if not present:
        raise ConfigError(f"the loop is {name!r}, but uvloop is not installed")
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
