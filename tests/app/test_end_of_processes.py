"""How long a process may still be there after it was told to end: on clocks that stand still."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from virtual_clock import virtual

from pulsar_client.app import single_process, worker_process
from pulsar_client.app.arbiter import Arbiter
from pulsar_client.app.configuration import Configuration
from pulsar_client.app.settings import Settings
from pulsar_client.app.single_process import SingleProcess

GRACE = 5.0


class Worker:
    """A process that does not end; keeps what it is told and the signals it gets."""

    def __init__(self) -> None:
        self.graces: list[float] = []
        self.signals: list[tuple[float, int]] = []

    def stop(self, grace: float, cause: str, *, last: bool) -> None:
        assert (cause, last) == ("stop", True)
        self.graces.append(grace)

    def signal(self, number: int) -> None:
        self.signals.append((round(asyncio.get_running_loop().time(), 6), number))


def of_settings(kind: Any) -> Any:
    configuration = Configuration(Settings(graceful_timeout=GRACE), {})
    unused: dict[str, Any] = {"load": None, "open_listeners": None}
    return kind(SimpleNamespace(name="none"), configuration, **unused)


async def told(*signals: tuple[float, str]) -> Worker:
    """Tell an arbiter with one worker to stop, at these times; give that worker."""
    arbiter, worker = of_settings(Arbiter), Worker()
    arbiter.workers[1] = worker
    loop = asyncio.get_running_loop()
    for when, name in signals:
        loop.call_at(when, arbiter._stop, name)
    await asyncio.sleep(100)
    arbiter.workers.clear()
    await arbiter._end()
    return worker


@virtual
async def test_p13_what_is_left_is_killed_within_a_second_after_the_grace() -> None:
    """P13: half a second is left for its end and for that of the arbiter."""
    worker = await told((0.0, "SIGTERM"))
    assert worker.graces == [GRACE]
    assert worker.signals == [(GRACE + 0.5, signal.SIGKILL)]


@virtual
async def test_p13_a_second_signal_kills_within_a_second() -> None:
    """P13: and once."""
    worker = await told((0.0, "SIGTERM"), (2.0, "SIGINT"))
    assert worker.graces == [GRACE, 0.0]
    assert worker.signals == [(2.0 + 0.5, signal.SIGKILL)]


@virtual
async def test_quit_kills_within_a_second() -> None:
    worker = await told((0.0, "SIGQUIT"))
    assert worker.graces == [0.0]
    assert worker.signals == [(0.5, signal.SIGKILL)]


class Still:
    """Stands for the modules ``threading`` and ``time``: nothing runs, nothing waits."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.waited: list[float] = []
        self.threads: list[Callable[[], object]] = []
        self.timers: list[tuple[float, Any]] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def Event(self) -> Any:
        return SimpleNamespace(wait=self.waited.append)

    def Thread(self, *, target: Any, args: Any, daemon: bool) -> Any:
        assert daemon  # or the end of the process waits for it
        return SimpleNamespace(start=lambda: self.threads.append(lambda: target(*args)))

    def Timer(self, seconds: float, function: Any, args: Any) -> Any:
        return SimpleNamespace(start=lambda: self.timers.append((seconds, function)))


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Still:
    still = Still()
    for module in (single_process, worker_process):
        monkeypatch.setattr(module, "threading", still)
    monkeypatch.setattr(single_process, "time", still)
    return still


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the exit codes with which the process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_p13_a_single_process_ends_within_a_second_after_the_grace(
    still: Still, ended: list[int]
) -> None:
    """P13: whatever its loop and its log do."""
    process = of_settings(SingleProcess)
    process._loop = SimpleNamespace(call_soon_threadsafe=lambda *call: None)
    process._on_signal(signal.SIGTERM)
    still.now += 2.0
    process._on_signal(signal.SIGINT)
    still.now += 0.1
    process._on_signal(signal.SIGINT)
    first, second = still.threads  # the third signal makes it no later
    still.now = 1000.0
    first()
    still.now = 1002.0
    second()
    assert still.waited == [pytest.approx(GRACE + 0.7), pytest.approx(0.7)]
    assert ended == [0, 0]
    # From then on the last words have this long.
    assert still.timers == [(0.2, os._exit)] * 2


def test_p12_a_worker_ends_within_two_seconds_of_its_arbiter(
    still: Still, ended: list[int]
) -> None:
    """P12: its loop has one of them, and is not waited for if there is none yet."""
    lifeline, held = os.pipe()
    order: Any = SimpleNamespace(lifeline=lifeline)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = worker_process._Process(order, ours)
        os.close(held)
        process.watch_lifeline()
        assert (still.waited, ended) == ([], [1])
        calls: list[Any] = []
        process.loop = SimpleNamespace(call_soon_threadsafe=lambda *call: calls.append(call))  # type: ignore[assignment]
        worker: Any = SimpleNamespace(stop="stop")
        process.worker = worker
        process.watch_lifeline()
        assert (still.waited, ended) == ([1.0], [1, 1])
        assert calls == [("stop", 0.0)]
    os.close(lifeline)
