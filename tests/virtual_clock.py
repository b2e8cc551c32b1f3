"""Tests on a virtual clock, where an hour takes no time.

Not a test module.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from pulsar_client.testing import VirtualClockLoop

__all__ = ["virtual"]

P = ParamSpec("P")


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine test on a virtual clock."""

    @functools.wraps(test)
    def on_virtual_clock(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            runner.run(test(*args, **kwargs))

    return on_virtual_clock
