"""The workers of one generation: a place for each, and who is in it.

A crew keeps its places filled, replaces who has died or served enough, and grows and shrinks.  It
does not know signals, and not the crew that comes after it.
"""

import asyncio
import logging
from collections.abc import Callable

from pulsar_client.app.restarts import RestartDelay
from pulsar_client.app.worker_handle import WorkerHandle

__all__ = ["Crew", "Place"]

logger = logging.getLogger("pulsar_client.app")


class Place:
    """One of the workers that are wanted, whichever process it is at the moment."""

    def __init__(self, idx: int) -> None:
        self.idx = idx
        self.worker: WorkerHandle | None = None
        self.successor: WorkerHandle | None = None
        self.delay = RestartDelay()
        self.timer: asyncio.TimerHandle | None = None


class Crew:
    """Keeps so many workers running.

    Args:
        size: how many.
        start: starts a worker with this ``idx``; may raise OSError.
        grace: seconds that a worker gets to finish.
        on_ready: called once, when all are ready for the first time.
        on_failed: called with the reason when one ends before that.
    """

    def __init__(
        self,
        size: int,
        start: Callable[[int], WorkerHandle],
        grace: float,
        *,
        on_ready: Callable[["Crew"], object],
        on_failed: Callable[["Crew", str], object],
    ) -> None:
        self.places = [Place(idx) for idx in range(size)]
        self.grace = grace
        self.was_ready = False
        self.retired = False
        #: Workers that were replaced, by cause.
        self.restarts: dict[str, int] = {}
        self._start = start
        self._on_ready = on_ready
        self._on_failed = on_failed

    @property
    def size(self) -> int:
        """How many workers are wanted."""
        return len(self.places)

    def start(self) -> None:
        """Start all.

        Raises:
            OSError, RuntimeError: one can't be started.
        """
        for place in self.places:
            place.worker = self._start(place.idx)

    def grow(self) -> None:
        """Have one more."""
        place = Place(len(self.places))
        self.places.append(place)
        self._fill(place)

    def shrink(self) -> bool:
        """Have one less; tell whether that was possible."""
        if len(self.places) == 1:
            return False
        place = self.places.pop()
        self._leave(place, "TTOU")
        return True

    def retire(self, cause: str) -> None:
        """Let all finish; none is replaced any more."""
        self.dismiss()
        for place in self.places:
            self._leave(place, cause)

    def dismiss(self) -> None:
        """Start none any more; those that run run on."""
        self.retired = True
        for place in self.places:
            if place.timer is not None:
                place.timer.cancel()
                place.timer = None

    def _leave(self, place: Place, cause: str) -> None:
        if place.timer is not None:
            place.timer.cancel()
            place.timer = None
        for worker in (place.worker, place.successor):
            if worker is not None:
                worker.stop(self.grace, cause)

    # What becomes of workers

    def place_of(self, worker: WorkerHandle) -> Place | None:
        """Give the place that a worker has or will have."""
        for place in self.places:
            if worker in (place.worker, place.successor):
                return place
        return None

    def ready(self, worker: WorkerHandle) -> None:
        """A worker accepts connections."""
        place = self.place_of(worker)
        if self.retired or place is None:
            worker.stop(self.grace, worker.cause or "not needed")
            return
        if place.successor is worker:
            old, place.worker, place.successor = place.worker, worker, None
            if old is not None:
                old.stop(self.grace, "max_requests")
        if not self.was_ready and all(
            p.worker is not None and p.worker.ready_at is not None for p in self.places
        ):
            self.was_ready = True
            self._on_ready(self)

    def enough(self, worker: WorkerHandle) -> None:
        """A worker has served enough requests: it goes when its successor is ready (P19)."""
        place = self.place_of(worker)
        if self.retired or place is None or place.worker is not worker or place.successor:
            return
        self._count("max_requests")
        try:
            place.successor = self._start(place.idx)
        except (OSError, RuntimeError) as error:
            logger.error("can't start a successor of %r: %s", worker, error)

    def ended(self, worker: WorkerHandle, cause: str) -> None:
        """A worker's process is gone."""
        place = self.place_of(worker)
        if place is None or self.retired:
            return
        if not self.was_ready:
            self._on_failed(self, worker.reason or f"a worker {cause} before it was ready")
            return
        if place.successor is worker:
            # The old one serves on, and asks again for a successor after as many requests.
            place.successor = None
            logger.error("the successor of %r %s before it was ready", place.worker, cause)
            self._fill_later(place, place.delay.after(0.0), cause)
            return
        place.worker = None
        if place.successor is not None:
            # The one that was to come has the place now.
            place.worker, place.successor = place.successor, None
            return
        self._count(worker.cause or cause)
        self._fill_later(place, place.delay.after(worker.life), cause)

    def _count(self, cause: str) -> None:
        self.restarts[cause] = self.restarts.get(cause, 0) + 1

    def _fill_later(self, place: Place, delay: float, cause: str) -> None:
        if delay == 0:
            self._fill(place)
            return
        logger.warning("worker %d %s again: next try in %.2g s", place.idx, cause, delay)
        place.timer = asyncio.get_running_loop().call_later(delay, self._fill, place)

    def _fill(self, place: Place) -> None:
        """Start a worker for an empty place, or the successor of one that has served enough."""
        place.timer = None
        try:
            worker = self._start(place.idx)
        except (OSError, RuntimeError) as error:
            delay = max(0.25, place.delay.after(0.0))
            logger.error("can't start a worker: %s; next try in %.2g s", error, delay)
            place.timer = asyncio.get_running_loop().call_later(delay, self._fill, place)
            return
        if place.worker is None:
            place.worker = worker
        else:
            place.successor = worker

    def kill(self) -> None:
        """Kill all at once."""
        self.dismiss()
        for worker in self.workers():
            worker.kill()

    def workers(self) -> list[WorkerHandle]:
        """Give all that there are."""
        both = [worker for place in self.places for worker in (place.worker, place.successor)]
        return [worker for worker in both if worker is not None]
