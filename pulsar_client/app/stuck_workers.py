"""Workers whose event loop is stuck (P7): they are found, and ended so that their stacks are left.

This knows neither the settings of today nor what becomes of a worker's place.
"""

import asyncio
import logging
import signal
from collections.abc import Mapping

from pulsar_client.app.service_manager import ServiceManager
from pulsar_client.app.worker_handle import WorkerHandle

__all__ = ["StuckWorkers"]

logger = logging.getLogger("pulsar_client.app")

# A beat may come so much after it was due, with nothing stuck: loops round timers up.
_LATE = 0.01
# One that is aborted has this long to write its stacks and die.
_ABORT_TIME = 2.0
# If this process looks so late, all may have stood still: each gets a pause to beat first.
_STOOD_STILL = 0.1
_PAUSE = 0.5
# Without a time-out the service manager is not told that all is well after such a silence.
_LONG_SILENCE = 2.0


class StuckWorkers:
    """Looks at the workers at the first moment when one of them can be stuck.

    Args:
        workers: those that there are, by process id; the owner changes it.
        manager: is told regularly that all is well, if it wants to know.
    """

    def __init__(self, workers: Mapping[int, WorkerHandle], manager: ServiceManager) -> None:
        self._workers = workers
        self._manager = manager
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False

    def look(self) -> None:
        """End the workers that are stuck; called once, it goes on by itself."""
        now = asyncio.get_running_loop().time()
        timer, self._timer = self._timer, None
        if timer is not None and now > timer.when() + _STOOD_STILL and not self._paused:
            self._paused = True
            self._look_within(_PAUSE)
            return
        self._paused = False
        for worker in tuple(self._workers.values()):
            if worker.timeout and worker.state != "stuck":
                left = worker.timeout + _LATE - worker.silence
                if left < 0:
                    self._end(worker)
                else:
                    self._look_within(max(left, 0.001))  # at 0 it might be as early again
        if self._manager.watchdog is not None:
            self._look_within(self._manager.watchdog / 3)
            silences = ((w.silence, w.timeout) for w in self._workers.values())
            if all(silence <= max(timeout, _LONG_SILENCE) for silence, timeout in silences):
                self._manager.alive()

    def expect(self, worker: WorkerHandle) -> None:
        """Look in time for a worker that is ready now."""
        if worker.timeout:
            self._look_within(worker.timeout + _LATE)

    def _look_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self.look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, worker: WorkerHandle) -> None:
        text = "worker %d (pid %d): its loop has been stuck for %.1f s"
        logger.error(text, worker.idx, worker.pid, worker.silence)
        worker.state = "stuck"
        worker.cause = "stuck"
        # faulthandler writes the stacks of all threads before it dies of this.
        worker.signal(signal.SIGABRT)
        asyncio.get_running_loop().call_later(_ABORT_TIME, self._kill, worker)

    def _kill(self, worker: WorkerHandle) -> None:
        if self._workers.get(worker.pid) is worker:
            worker.signal(signal.SIGKILL)
