"""From one generation of workers to the next.

A reload is over when the old workers have stopped accepting: only then is it certain that the next
connection comes to a new one.
"""

import asyncio
from collections.abc import Callable, Iterable

from pulsar_client.app.configuration import Configuration
from pulsar_client.app.crew import Crew
from pulsar_client.app.listeners import Listeners
from pulsar_client.app.worker_handle import WorkerHandle

__all__ = ["Handover", "Reload"]

# A worker whose loop is stuck does not accept either: it is not waited for much longer.
_PATIENCE = 1.0


class Reload:
    """What a reload makes, and what takes over when it succeeds."""

    def __init__(self, configuration: Configuration, listeners: Listeners, crew: Crew) -> None:
        self.configuration = configuration
        self.listeners = listeners
        self.crew = crew


class Handover:
    """Waits until the old workers have stopped accepting, or are gone.

    Args:
        workers: the old ones.
        done: called once.
    """

    def __init__(self, workers: Iterable[WorkerHandle], done: Callable[[], object]) -> None:
        self._left = set(workers)
        self._done = done
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_PATIENCE if self._left else 0.0, self._finish)

    def has_stopped(self, worker: WorkerHandle) -> None:
        """A worker accepts no more."""
        if worker in self._left:
            self._left.discard(worker)
            if not self._left:
                self._timer.cancel()
                self._finish()

    def cancel(self) -> None:
        """Wait no more: everything ends."""
        self._left.clear()
        self._timer.cancel()

    def _finish(self) -> None:
        self._left.clear()
        self._done()
