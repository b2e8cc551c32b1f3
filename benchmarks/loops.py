"""The event loops that are measured."""

import asyncio
import importlib.util
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["available", "run_in"]

T = TypeVar("T")


def available() -> list[str]:
    """The loops that can be measured here."""
    return ["asyncio", "uvloop"] if importlib.util.find_spec("uvloop") else ["asyncio"]


def run_in(loop: str, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop of that name."""
    factory = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
