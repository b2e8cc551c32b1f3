"""The virtual clock: it jumps, it never hangs, and threads don't fool it."""

import asyncio
import concurrent.futures
import functools
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from pulsar_client.exceptions import ConfigError, PulsarClientError
from pulsar_client.testing import Deadlock, VirtualClockLoop

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)


def test_a_sleep_takes_virtual_time_only() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert loop.time() == 0.0
        await asyncio.sleep(3600.0)
        return loop.time()

    start = time.monotonic()
    assert run(main()) == 3600.0
    assert time.monotonic() - start < 60.0


def test_timers_run_in_order_and_at_their_time() -> None:
    seen: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def note(name: str) -> None:
            seen.append((name, loop.time()))

        loop.call_later(0.3, note, "late")
        loop.call_later(0.1, note, "early")
        loop.call_at(0.2, note, "middle")
        loop.call_later(0.05, note, "cancelled").cancel()
        loop.call_later(0.4, done.set_result, None)
        await done

    run(main())
    assert seen == [("early", 0.1), ("middle", 0.2), ("late", 0.3)]


def test_ready_callbacks_come_before_a_jump() -> None:
    async def main() -> float:
        async with asyncio.timeout(1.0):
            for _ in range(1000):
                await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run(main()) == 0.0


def test_timeouts_expire() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30.0):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(30.0)


@pytest.mark.parametrize("days", [1, 2.5, 100])
def test_far_timers_are_reached_exactly(days: float) -> None:
    # Beyond 2**53 ns a float can't tell a timer that is due from one that is not.
    loop = VirtualClockLoop(horizon=104 * 86400.0)
    try:
        loop.run_until_complete(asyncio.sleep(days * 86400.0))
        loop.run_until_complete(asyncio.sleep(1e-9))
        assert loop.time() == pytest.approx(days * 86400.0)
    finally:
        loop.close()


def test_a_deadlock_is_raised_and_names_who_waits() -> None:
    cleaned = []

    async def inner() -> None:
        await asyncio.Event().wait()

    async def waiter() -> None:
        try:
            await inner()
        finally:
            await asyncio.sleep(5.0)  # a clean-up may take its time
            cleaned.append(asyncio.get_running_loop().time())

    async def main() -> None:
        other = asyncio.create_task(waiter(), name="the-other")
        await asyncio.sleep(1.0)
        await asyncio.gather(other, waiter())

    with pytest.raises(Deadlock, match="deadlock at 1 s") as caught:
        run(main())
    message = str(caught.value)
    assert "3 pending tasks" in message
    assert "the-other: " in message
    assert "waiter waits in Event.wait (" in message
    assert isinstance(caught.value, PulsarClientError)
    assert cleaned == [6.0, 6.0]


@pytest.mark.allow_loop_errors  # the stubborn task is destroyed while it waits
def test_a_task_that_ignores_its_cancellation_does_not_hang_the_runner() -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.Event().wait()
                return

    with pytest.raises(Deadlock) as caught:
        run(stubborn())
    assert isinstance(caught.value.__context__, Deadlock)


def test_a_periodic_task_does_not_hide_a_deadlock() -> None:
    cleaned: list[bool] = []

    async def tick() -> None:
        while True:
            await asyncio.sleep(10.0)

    async def main() -> None:
        ticking = asyncio.create_task(tick(), name="ticking")
        try:
            await asyncio.Event().wait()
        finally:
            ticking.cancel()
            await asyncio.sleep(20.0)  # beyond the horizon
            cleaned.append(True)

    factory = functools.partial(VirtualClockLoop, horizon=100.0)
    with (
        asyncio.Runner(loop_factory=factory) as runner,
        pytest.raises(Deadlock, match=r"horizon 100 s(?s:.*)ticking"),
    ):
        runner.run(main())
    assert cleaned == [True]


def test_a_job_in_a_thread_is_no_deadlock_and_takes_no_time() -> None:
    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        may_end = threading.Event()
        loop.call_later(0.0, may_end.set)

        def job() -> str:
            assert may_end.wait(60.0)
            return "done"

        async with asyncio.timeout(5.0):  # virtual: the clock must not jump over the job
            result = await asyncio.to_thread(job)
        return result, loop.time()

    assert run(main()) == ("done", 0.0)


def test_a_job_in_an_executor_of_the_user() -> None:
    async def main() -> int:
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            return await asyncio.get_running_loop().run_in_executor(executor, sum, (1, 2, 3))

    assert run(main()) == 6


def test_a_job_may_take_longer_than_the_patience() -> None:
    factory = functools.partial(VirtualClockLoop, patience=0.0)
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(asyncio.to_thread(threading.Event().wait, 0.05)) is False


def test_the_end_of_the_loop_waits_for_its_threads() -> None:
    ended = threading.Event()

    def job() -> None:
        started.set()
        threading.Event().wait(0.05)
        ended.set()

    async def main() -> None:
        job_done = asyncio.get_running_loop().run_in_executor(None, job)
        assert started.wait(60.0)
        job_done.cancel()

    started = threading.Event()
    factory = functools.partial(VirtualClockLoop, patience=0.0)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert ended.is_set()


def test_a_job_may_wait_for_a_timer_of_the_loop() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()

        async def slow() -> float:
            await asyncio.sleep(60.0)
            return loop.time()

        def job() -> float:
            return asyncio.run_coroutine_threadsafe(slow(), loop).result(60.0)

        return await asyncio.to_thread(job)

    factory = functools.partial(VirtualClockLoop, patience=0.01)
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) >= 60.0


def test_a_call_from_a_thread_unknown_to_the_loop_is_waited_for() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()
        go = threading.Event()

        def job() -> None:
            assert go.wait(60.0)
            loop.call_soon_threadsafe(done.set_result, "called")

        thread = threading.Thread(target=job)
        thread.start()
        loop.call_soon(loop.call_soon, go.set)
        try:
            return await done
        finally:
            thread.join()

    factory = functools.partial(VirtualClockLoop, patience=60.0)
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) == "called"


def test_a_thread_that_keeps_quiet_does_not_hide_a_deadlock() -> None:
    quit_ = threading.Event()
    thread = threading.Thread(target=quit_.wait)
    thread.start()
    try:
        factory = functools.partial(VirtualClockLoop, patience=0.01)
        with asyncio.Runner(loop_factory=factory) as runner, pytest.raises(Deadlock):
            runner.run(asyncio.Event().wait())
    finally:
        quit_.set()
        thread.join()


def test_sockets_are_refused() -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            with pytest.raises(RuntimeError, match="no I/O"):
                await asyncio.get_running_loop().sock_recv(left, 1)

    run(main())


def test_it_works_in_debug_mode() -> None:
    with asyncio.Runner(loop_factory=VirtualClockLoop, debug=True) as runner:
        runner.run(asyncio.sleep(10.0))
        assert runner.get_loop().time() == 10.0


@pytest.mark.parametrize("horizon", [0.0, -1.0, 1e9, float("nan")])
def test_a_bad_horizon_is_named(horizon: float) -> None:
    with pytest.raises(ConfigError, match=str(horizon).split("e")[0]):
        VirtualClockLoop(horizon=horizon)


def test_a_bad_patience_is_named() -> None:
    with pytest.raises(ConfigError, match="-1"):
        VirtualClockLoop(patience=-1)
