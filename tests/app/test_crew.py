"""When dead workers are replaced, to the instant: on a virtual clock."""

import asyncio
from typing import cast

from virtual_clock import virtual

from pulsar_client.app.crew import Crew
from pulsar_client.app.restarts import FIRST, LONG_LIFE, RestartDelay
from pulsar_client.app.worker_handle import WorkerHandle


class Worker:
    """One that was started; `ready` and `die` are called by the test."""

    reason = cause = None

    def __init__(self, idx: int) -> None:
        self.idx = idx
        self.born = asyncio.get_running_loop().time()
        self.ready_at: float | None = None

    @property
    def life(self) -> float:
        ready_at = self.ready_at
        return 0.0 if ready_at is None else asyncio.get_running_loop().time() - ready_at


class Started:
    """A crew without processes, whose delays have no jitter, and what it has started."""

    def __init__(self, size: int = 1) -> None:
        self.workers: list[Worker] = []
        self.event = asyncio.Event()
        self.failed: list[str] = []
        #: How many of the next starts fail.
        self.no_process = 0
        self.crew = Crew(
            size,
            self._start,
            5.0,
            on_ready=lambda crew: None,
            on_failed=lambda crew, reason: self.failed.append(reason),
        )
        for place in self.crew.places:
            place.delay = RestartDelay(lambda: 0.0)
        self.crew.start()
        for worker in self.workers:
            self.ready(worker)

    def _start(self, idx: int) -> WorkerHandle:
        if self.no_process:
            self.no_process -= 1
            raise OSError("no more processes")
        self.workers.append(Worker(idx))
        self.event.set()
        return cast("WorkerHandle", self.workers[-1])

    def ready(self, worker: Worker) -> None:
        worker.ready_at = asyncio.get_running_loop().time()
        self.crew.ready(cast("WorkerHandle", worker))

    def die(self, worker: Worker) -> None:
        self.crew.ended(cast("WorkerHandle", worker), "was killed")

    async def until(self, count: int) -> None:
        """Wait for the start of so many, the first ones included."""
        while len(self.workers) < count:
            self.event.clear()
            await self.event.wait()

    async def live(self, seconds: float) -> float:
        """The newest worker lives for so long; give the seconds until it is replaced."""
        loop, worker, count = asyncio.get_running_loop(), self.workers[-1], len(self.workers)
        if worker.ready_at is None:
            self.ready(worker)
        await asyncio.sleep(seconds)
        died = loop.time()
        self.die(worker)
        await self.until(count + 1)
        return self.workers[-1].born - died


def rounded(delays: list[float]) -> list[float]:
    return [round(delay, 6) for delay in delays]


@virtual
async def test_p6_p9_the_first_death_is_replaced_at_once_further_ones_later_and_later() -> None:
    """P6, P9: the delay begins with the second early death, and doubles."""
    started = Started()
    delays = [await started.live(0.5) for _ in range(10)]
    assert rounded(delays) == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert started.crew.restarts == {"was killed": 10}
    assert not started.failed


@virtual
async def test_p6_p9_a_long_life_ends_the_pattern() -> None:
    """P6: kill -9 of a worker that lived for 10 s is replaced at once."""
    started = Started()
    delays = [await started.live(life) for life in (0.5, 0.5, 0.5, LONG_LIFE, 0.5, 0.5)]
    assert rounded(delays) == [0.0, 0.25, 0.5, 0.0, 0.0, 0.25]
    assert [await started.live(LONG_LIFE) for _ in range(5)] == [0.0] * 5


@virtual
async def test_p9_two_workers_that_die_after_half_a_second_start_twelve_times_in_ten() -> None:
    """P9: each of them by its own count."""
    started = Started(2)
    loop = asyncio.get_running_loop()
    seen = 0
    while len(started.workers) < 14:
        for worker in started.workers[seen:]:
            if worker.ready_at is None:
                started.ready(worker)
            loop.call_later(0.5, started.die, worker)
        seen = len(started.workers)
        await started.until(seen + 1)
    for idx in (0, 1):
        births = [worker.born for worker in started.workers if worker.idx == idx]
        assert rounded(births) == [0.0, 0.5, 1.25, 2.25, 3.75, 6.25, 10.75]


@virtual
async def test_a_worker_that_can_not_be_started_is_tried_again() -> None:
    """As long as the system has no process to give: never without a pause."""
    started = Started()
    started.no_process = 3
    assert rounded([await started.live(LONG_LIFE)]) == [FIRST + FIRST + 2 * FIRST]


@virtual
async def test_a_crew_that_is_dismissed_starts_none_that_waits() -> None:
    started = Started()
    await started.live(0.5)
    started.ready(started.workers[-1])
    started.die(started.workers[-1])
    started.crew.dismiss()
    await asyncio.sleep(100)
    assert len(started.workers) == 2
