"""When a queue counts as standing, who is turned away, and when that ends."""

import random
from collections import deque

import pytest

from pulsar_client.pool.codel import CoDel

TARGET, INTERVAL = 0.02, 0.1


@pytest.fixture
def codel() -> CoDel:
    return CoDel(TARGET, INTERVAL)


def served(
    codel: CoDel, load: float, seconds: float, start: float = 0.0
) -> tuple[int, int, float]:
    """Serve a queue in steps of a millisecond: how many in all, how many turned away, the longest
    wait of the last second of those who were served."""
    arrivals = random.Random(2)
    queue: deque[float] = deque()
    count = shed = 0
    longest = 0.0
    for step in range(round(seconds * 1000)):
        now = start + step / 1000
        queue.extend([now] * (int(load) + (arrivals.random() < load % 1)))
        while queue:
            came = queue.popleft()
            if queue and codel.sheds(now - came, now):
                shed += 1
                continue
            count += 1
            if now >= start + seconds - 1:
                longest = max(longest, now - came)
            break
    return count, shed, longest


def test_a_queue_that_is_long_for_a_moment_is_left_alone(codel: CoDel) -> None:
    """Fifty callers at once, served within an interval; then the same again after a while."""
    for burst in range(5):
        for number in range(50):
            assert not codel.sheds(number * 0.0015, burst + number * 0.0015)


def test_i10_nobody_is_turned_away_below_the_capacity(codel: CoDel) -> None:
    _, shed, _ = served(codel, 0.8, 60.0)
    assert shed == 0


@pytest.mark.parametrize("load", [1.5, 2.0, 4.0])
def test_under_steady_overload_nearly_all_are_served_in_time(codel: CoDel, load: float) -> None:
    """Not now and then in time, and in between too late."""
    count, shed, longest = served(codel, load, 20.0)
    assert count >= 19_900  # every millisecond somebody is served: shedding costs no work
    assert shed >= 0.9 * (load - 1) * 20_000
    assert longest <= 2 * TARGET


def test_it_ends_with_the_overload(codel: CoDel) -> None:
    _, shed, _ = served(codel, 3.0, 5.0)
    assert shed
    served(codel, 0.8, 2 * INTERVAL, start=5.0)
    _, shed, _ = served(codel, 0.8, 60.0, start=6.0)
    assert shed == 0


def test_the_clock_may_stand_still_or_jump(codel: CoDel) -> None:
    """I34: after a pause in which nobody was served, the one who waited through it is told so."""
    assert not codel.sheds(0.0, 0.0)
    assert not codel.sheds(0.0, 1000.0)
    assert not codel.sheds(0.01, 1000.0)
    assert not codel.sheds(0.01, 5000.0)
