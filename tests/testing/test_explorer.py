"""`explore_cancellation`: every point is visited, each planted bug is found and named."""

import asyncio
import re
import socket
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from toy_pools import Converts, LosesSlots, Swallows, ToyPool, contended

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing import (
    CancellationFailure,
    VirtualClockLoop,
    conservation,
    explore_cancellation,
    settled,
)


def resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


# -- which points ------------------------------------------------------------------------------


async def test_every_suspension_is_visited_at_every_moment() -> None:
    seen: list[tuple[str, int]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        for step in ("one", "two"):
            arrived = loop.create_future()
            loop.call_soon(loop.call_soon, resolve, arrived)
            try:
                await arrived
            except asyncio.CancelledError:
                seen.append((step, arrived.done() and not arrived.cancelled()))
                raise

    checks: list[int] = []
    report = await explore_cancellation(scenario, check=checks.append, turns=5)
    # As it is suspended, one turn later, two turns later (the future is done by then), and in the
    # turn of the wake-up.
    expected = [("one", False)] * 2 + [("one", True)] * 2
    expected += [("two", False)] * 2 + [("two", True)] * 2
    assert seen == expected
    assert report.suspensions == 2
    assert report.points == len(expected)
    # The runs that ended before their point are checked too, and the first and last ones.
    assert report.runs == len(checks)
    assert checks[0] == checks[-1] == 0
    assert sorted(set(checks)) == [0, 1, 2, 3]
    assert str(report) == "cancelled at 8 points of 2 suspensions: all clean"


async def test_bare_turns_of_the_loop_are_points() -> None:
    """Each has two: as it is suspended, and before it goes on in the next turn."""

    async def scenario() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    report = await explore_cancellation(scenario)
    assert (report.suspensions, report.points) == (2, 4)


async def test_without_a_suspension_there_is_no_point() -> None:
    async def scenario() -> int:
        return 1

    report = await explore_cancellation(scenario)
    assert (report.suspensions, report.points, report.runs) == (0, 0, 3)


async def test_any_awaitable_is_a_scenario() -> None:
    def scenario() -> Awaitable[None]:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(resolve, future)
        return future

    assert (await explore_cancellation(scenario)).suspensions == 1


def test_on_a_virtual_clock_hours_are_no_time() -> None:
    async def scenario() -> None:
        await asyncio.sleep(3.0)
        await asyncio.sleep(3.0)

    async def main() -> None:
        report = await explore_cancellation(scenario)
        assert report.suspensions == 2
        assert report.points == 2 * 5

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


async def test_the_first_run_raises_what_the_scenario_raises() -> None:
    async def scenario() -> None:
        await asyncio.sleep(0)
        raise LookupError("as it is")

    with pytest.raises(LookupError, match="as it is"):
        await explore_cancellation(scenario)


async def test_a_scenario_that_owns_tasks_needs_more_turns() -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))

    with pytest.raises(CancellationFailure, match="within 1 turn of the loop"):
        await explore_cancellation(scenario)
    assert (await explore_cancellation(scenario, within=3)).points > 1


async def test_cancelling_the_explorer_ends_the_scenario() -> None:
    ended = asyncio.Event()

    async def scenario() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    exploring = asyncio.ensure_future(explore_cancellation(scenario))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    exploring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exploring
    assert ended.is_set()


@pytest.mark.parametrize(
    ("option", "value"),
    [("turns", -1), ("within", 0), ("timeout", -1.0), ("grace", float("nan"))],
)
async def test_bad_options(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=option):
        await explore_cancellation(asyncio.sleep, **{option: value})  # type: ignore[arg-type]


# -- planted bugs ------------------------------------------------------------------------------


def fresh(kind: type[ToyPool]) -> tuple[Callable[[], Awaitable[None]], Callable[[int], Any]]:
    """A scenario with a pool of its own in each run, and its check."""
    pools: list[ToyPool] = []

    async def scenario() -> None:
        pools.append(kind(1))
        await contended(pools[-1])

    async def check(_point: int) -> None:
        conservation(pools[-1])
        await settled(pools[-1], timeout=0.05)

    return scenario, check


async def test_a_pool_that_is_right() -> None:
    scenario, check = fresh(ToyPool)
    report = await explore_cancellation(scenario, check=check)
    assert report.suspensions == 3
    assert report.points > 6


async def test_a_slot_lost_between_hand_over_and_wake_up() -> None:
    """I6, I1: exactly this turn, and the stack leads to the line that waited."""
    scenario, check = fresh(LosesSlots)
    with pytest.raises(CancellationFailure) as caught:
        await explore_cancellation(scenario, check=check)
    failure = caught.value
    assert failure.point == 2
    assert "the check failed" in failure.problem
    assert "in_use 1" in failure.problem
    assert "await waiter" in failure.stack[-1]
    assert "contended" in failure.stack[1]
    for part in ("suspension 2", failure.moment, failure.problem, failure.stack[-1].rstrip()):
        assert part in str(failure)


async def test_a_slot_lost_in_a_pool_that_all_runs_share() -> None:
    """I1: without a check the next run hangs; it names the cancellation before."""
    pool = LosesSlots(1)
    with pytest.raises(CancellationFailure, match=r"did not end.* at suspension 2") as caught:
        await explore_cancellation(lambda: contended(pool), timeout=0.5)
    assert "await waiter" in caught.value.stack[-1]
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_a_cancellation_that_is_swallowed() -> None:
    """I11: answered with another attempt."""
    scenario, check = fresh(Swallows)
    with pytest.raises(CancellationFailure, match="did not end the scenario within 1 turn"):
        await explore_cancellation(scenario, check=check)


async def test_a_cancellation_that_is_swallowed_at_once() -> None:
    """I11: the result is there in time and must not be."""

    async def scenario() -> str:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return "nothing happened"
        return "slept"

    with pytest.raises(CancellationFailure, match="returned 'nothing happened'"):
        await explore_cancellation(scenario)


async def test_a_cancellation_that_is_swallowed_for_ever() -> None:
    """I11: the explorer does not hang with it."""
    stubborn = 0

    async def scenario() -> None:
        nonlocal stubborn
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            while stubborn < 5:
                stubborn += 1
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass

    with pytest.raises(CancellationFailure, match=r"then it was in:\n.*\n.*Event\(\)\.wait"):
        await explore_cancellation(scenario)
    assert stubborn == 5


async def test_a_cancellation_that_is_turned_into_an_error() -> None:
    """I11: the error is attached."""
    scenario, check = fresh(Converts)
    with pytest.raises(CancellationFailure, match="turned into ConnectionError") as caught:
        await explore_cancellation(scenario, check=check)
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_a_cancellation_nobody_asked_for() -> None:
    async def scenario() -> None:
        raise asyncio.CancelledError

    with pytest.raises(CancellationFailure, match="cancelled itself"):
        await explore_cancellation(scenario)


async def test_one_turn_too_late() -> None:
    """I11: a clean-up that waits for a turn."""

    async def scenario() -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, resolve, future)
        try:
            await future
        finally:
            await asyncio.sleep(0)

    with pytest.raises(CancellationFailure, match="within 1 turn") as caught:
        await explore_cancellation(scenario)
    assert "await asyncio.sleep(0)" in caught.value.problem
    assert "await future" in "".join(caught.value.stack)
    assert (await explore_cancellation(scenario, within=2)).points > 2


async def test_a_task_left_behind() -> None:
    """I3: only its name tells whose it is."""
    left: list[asyncio.Task[Any]] = []

    async def scenario() -> None:
        dial = asyncio.get_running_loop().create_task(asyncio.sleep(5.0), name="orphaned dial")
        left.append(dial)
        await asyncio.sleep(0)
        dial.cancel()

    with pytest.raises(CancellationFailure, match="orphaned dial"):
        await explore_cancellation(scenario, grace=0.01)
    for task in left:
        task.cancel()


class LeakyDial:
    """Dials a listener; planted bug: a cancelled dial does not close its socket."""

    def __init__(self, address: tuple[str, int], *, keeps: bool) -> None:
        self.address = address
        self.keeps = keeps
        self.kept: list[socket.socket] = []
        self.made: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    async def __call__(self) -> None:
        sock = socket.socket()
        self.made.add(sock)
        if self.keeps:
            self.kept.append(sock)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, self.address)
        await asyncio.sleep(0)
        sock.close()


@pytest.fixture
def address() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "left-to-its-destructor"])
async def test_a_socket_left_behind(address: tuple[str, int], keeps: bool) -> None:
    """I3: also one that only the collector would close."""
    dial = LeakyDial(address, keeps=keeps)
    with pytest.raises(CancellationFailure, match="AF_INET SOCK_STREAM") as caught:
        await explore_cancellation(dial, grace=0.01)
    assert re.search(r"(\d+) open sockets where (\d+) were before; new:", str(caught.value))
    assert caught.value.point == 1
    assert "sock_connect" in "".join(caught.value.stack)
    for sock in dial.made:
        sock.close()


async def test_what_stays_open_on_purpose_is_not_left_behind(address: tuple[str, int]) -> None:
    """A pool outside of the scenario keeps its connection, also one that replaces another."""
    kept: list[socket.socket] = []

    async def scenario() -> None:
        while kept:
            kept.pop().close()
        kept.append(socket.create_connection(address))
        await asyncio.sleep(0)

    assert (await explore_cancellation(scenario, grace=0.01)).points == 2
    kept.pop().close()


async def test_a_check_that_fails() -> None:
    def check(point: int) -> None:
        assert point < 2, "planted"

    async def scenario() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with pytest.raises(CancellationFailure, match="AssertionError: planted") as caught:
        await explore_cancellation(scenario, check=check)
    assert caught.value.point == 2
    assert isinstance(caught.value.__cause__, AssertionError)


async def test_a_scenario_broken_by_an_earlier_cancellation() -> None:
    """The run that fails is not the one that was cancelled: both are named."""
    broken = False

    async def scenario() -> None:
        nonlocal broken
        if broken:
            raise LookupError("out of order")
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            broken = True
            raise

    with pytest.raises(CancellationFailure, match=r"LookupError.*at suspension 1, as it was"):
        await explore_cancellation(scenario)
