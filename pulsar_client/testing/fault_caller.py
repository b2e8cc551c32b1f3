"""Calls the faults of a storm now and then: after so many exchanges, or when none ends any more.

It does not know what a fault does; a fault that raises ends the calls with its exception.
"""

import asyncio
import inspect
import random
from collections.abc import Callable

from pulsar_client.testing.storm_report import StormReport

__all__ = ["FaultCaller"]

# Seconds without the end of any exchange after which the next fault is due.
_STARVED = 0.05


class FaultCaller:
    """Calls faults, one after the other.

    Args:
        report: counts the exchanges, and here the faults.
        faults: functions and coroutine functions without arguments.
        every: exchanges from one fault to the next, on average.
    """

    def __init__(
        self, report: StormReport, faults: tuple[Callable[[], object], ...], every: int
    ) -> None:
        self._report = report
        self._faults = faults
        self._every = every
        self._random = random.Random(f"{report.seed} faults")
        self._due = asyncio.Event()
        self._next = self._random.uniform(0, 2 * every)
        self._over = not faults

    def count(self) -> None:
        """An exchange has ended."""
        if self._report.exchanges >= self._next:
            self._due.set()

    def stop(self) -> None:
        """Call no more faults."""
        self._over = True
        self._due.set()

    async def run(self) -> None:
        """Call faults until `stop`."""
        while not self._over:
            await self._wait()
            if self._over:
                return
            self._due.clear()
            fault = self._random.choice(self._faults)
            name = getattr(fault, "__name__", None) or repr(fault)
            self._report.faults[name] += 1
            result = fault()
            if inspect.isawaitable(result):
                await result
            self._next = self._report.exchanges + self._random.uniform(0, 2 * self._every)

    async def _wait(self) -> None:
        """Wait for so many exchanges, or until none ends any more."""
        while not self._due.is_set():
            before = self._report.exchanges
            try:
                async with asyncio.timeout(_STARVED):
                    await self._due.wait()
            except TimeoutError:
                if self._report.exchanges == before:
                    return
