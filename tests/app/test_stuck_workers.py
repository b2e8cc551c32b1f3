"""When stuck workers are looked for and what is done to them, on a virtual clock."""

import asyncio
import itertools
import signal
from typing import cast

import pytest
from virtual_clock import virtual

from pulsar_client.app.service_manager import ServiceManager
from pulsar_client.app.stuck_workers import StuckWorkers
from pulsar_client.app.worker_handle import WorkerHandle
from pulsar_client.testing import VirtualClockLoop

TIMEOUT = 5.0
#: Seconds by which a stuck loop is found late on purpose.
LATE = 0.01
BEAT = 0.5


class Worker:
    """Beats until it is blocked, and keeps what is done to it."""

    def __init__(self, pid: int, *, blocked: float = 1e9, timeout: float = TIMEOUT) -> None:
        self.idx = self.pid = pid
        self.state = "ready"
        self.cause: str | None = None
        self.timeout = timeout
        self.blocked = blocked
        self.signals: list[tuple[float, int]] = []

    @property
    def silence(self) -> float:
        now = asyncio.get_running_loop().time()
        last = min(now, self.blocked) // BEAT * BEAT
        return max(0.0, now - last - BEAT)

    def signal(self, number: int) -> None:
        self.signals.append((asyncio.get_running_loop().time(), number))


class Watch(StuckWorkers):
    """Keeps when it looked."""

    def __init__(self, *workers: Worker, watchdog: float | None = None) -> None:
        self.manager = ServiceManager({})
        self.manager.watchdog = watchdog
        self.there = {worker.pid: worker for worker in workers}
        super().__init__(cast("dict[int, WorkerHandle]", self.there), self.manager)
        self.looks: list[float] = []
        self.look()

    def look(self) -> None:
        self.looks.append(asyncio.get_running_loop().time())
        super().look()


@virtual
async def test_p7_a_stuck_worker_is_found_at_the_first_moment_that_is_certain() -> None:
    """P7: `timeout` after the next beat was due; not at a look that happens to come later."""
    stuck, healthy = Worker(1, blocked=7.3), Worker(2)
    watch = Watch(healthy, stuck)
    await asyncio.sleep(100)
    due = 7.0 + BEAT + TIMEOUT + LATE
    (when, number), (later, last) = stuck.signals
    assert due <= when <= due + 0.002
    assert number == signal.SIGABRT
    assert (stuck.state, stuck.cause) == ("stuck", "stuck")
    assert later == pytest.approx(when + 2.0)  # it is still there
    assert last == signal.SIGKILL
    assert healthy.signals == []
    # The look is as rare as that allows.
    assert len(watch.looks) <= 100 / (TIMEOUT - BEAT)
    watch.close()


@virtual
async def test_p7_one_that_dies_of_the_abort_is_not_killed() -> None:
    """P7: its number may be another process by then."""
    stuck = Worker(1, blocked=1.0)
    watch = Watch(stuck)
    await asyncio.sleep(8.0)
    del watch.there[1]
    watch.there[1] = Worker(1)
    await asyncio.sleep(20)
    assert [number for _, number in stuck.signals] == [signal.SIGABRT]
    assert watch.there[1].signals == []
    watch.close()


@virtual
async def test_p7_each_worker_has_the_timeout_that_it_began_with() -> None:
    """P7: a reload may have changed it; 0 is never."""
    never, long = Worker(1, blocked=0.0, timeout=0.0), Worker(2, timeout=30.0)
    watch = Watch(never, long)
    await asyncio.sleep(10)
    short = watch.there[3] = Worker(3, blocked=10.0, timeout=1.0)
    watch.expect(cast("WorkerHandle", short))
    await asyncio.sleep(100)
    assert short.signals[0][0] == pytest.approx(10.0 + BEAT + 1.0 + LATE, abs=0.002)
    assert not never.signals
    assert not long.signals
    watch.close()


@virtual
async def test_nobody_is_looked_at_without_workers_that_have_a_timeout() -> None:
    watch = Watch(Worker(1, timeout=0.0))
    await asyncio.sleep(1000)
    assert watch.looks == [0.0]
    watch.close()


def test_p7_workers_that_stood_still_with_the_arbiter_are_not_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P7: the whole group was stopped, or the machine: its first turn finds old beats only."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stopped, stuck = Worker(1), Worker(2)
        watch = Watch(stopped, stuck)
        await asyncio.sleep(20)
        real, hour = loop.time, 3600.0
        stopped.blocked = stuck.blocked = loop.time()
        monkeypatch.setattr(loop, "time", lambda: real() + hour)
        await asyncio.sleep(0.1)
        assert stopped.silence > TIMEOUT
        stopped.blocked = 1e9  # it beats
        await asyncio.sleep(2)
        assert not stopped.signals
        assert stuck.signals[0][1] == signal.SIGABRT
        await asyncio.sleep(100)
        assert not stopped.signals
        watch.close()

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


@virtual
async def test_the_service_manager_hears_that_all_is_well() -> None:
    """Three times as often as it wants; not while a worker is stuck and still there."""
    told: list[float] = []
    stuck = Worker(1, blocked=30.0)
    watch = Watch(stuck, watchdog=3.0)
    watch.manager.alive = lambda: told.append(asyncio.get_running_loop().time())  # type: ignore[method-assign]
    await asyncio.sleep(60)
    assert all(b - a <= 1.0 + 1e-6 for a, b in itertools.pairwise(told))
    assert max(told) == pytest.approx(30.0 + BEAT + TIMEOUT, abs=1.0)
    watch.close()
