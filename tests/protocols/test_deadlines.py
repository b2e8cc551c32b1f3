"""Many deadlines and one timer: in time, in order, bounded, on the loop's clock (I34)."""

import asyncio
import random
from typing import Any

import pytest

from pulsar_client.protocols.deadlines import DeadlineQueue
from pulsar_client.testing import VirtualClockLoop


class Item:
    """Over when somebody says so."""

    over = False

    def done(self) -> bool:
        return self.over


class Expired:
    """What has expired, and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.items: list[tuple[Item, float, float]] = []
        self.queue: DeadlineQueue[Item] = DeadlineQueue(self.loop, self.expire)

    def expire(self, item: Item, seconds: float) -> None:
        self.items.append((item, seconds, self.loop.time()))


def run(main: Any) -> None:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


def test_each_expires_at_its_time_in_their_order() -> None:
    async def main() -> None:
        seen = Expired()
        times = [3.0, 1.0, 2.0, 1.0, 5.0, 0.0]
        items = [Item() for _ in times]
        began = seen.loop.time()
        for item, seconds in zip(items, times, strict=True):
            seen.queue.add(item, seconds)
        await asyncio.sleep(10)
        assert [item for item, _, _ in seen.items] == [items[i] for i in (5, 1, 3, 2, 0, 4)]
        for _, seconds, when in seen.items:
            assert abs(when - began - seconds) < 1e-6
        assert len(seen.queue) == 0

    run(main)


def test_what_is_done_in_time_never_expires() -> None:
    async def main() -> None:
        seen = Expired()
        items = [Item() for _ in range(10)]
        for item in items:
            seen.queue.add(item, 1.0)
        for item in items[::2]:
            item.over = True
        await asyncio.sleep(2)
        assert [item for item, _, _ in seen.items] == items[1::2]

    run(main)


def test_one_timer_for_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[float] = []

    async def main() -> None:
        seen = Expired()
        call_at = seen.loop.call_at

        def counted(when: float, *args: Any) -> asyncio.TimerHandle:
            timers.append(when)
            return call_at(when, *args)

        monkeypatch.setattr(seen.loop, "call_at", counted)
        for _ in range(10_000):
            item = Item()
            seen.queue.add(item, 5.0)
            item.over = True
        monkeypatch.undo()
        await asyncio.sleep(6)
        assert not seen.items

    run(main)
    assert len(timers) == 1


def test_entries_are_bounded_by_what_is_not_done() -> None:
    async def main() -> None:
        seen = Expired()
        alive: list[Item] = []
        chance = random.Random(3)
        for number in range(20_000):
            item = Item()
            seen.queue.add(item, chance.choice((1.0, 1000.0, chance.random() * 100 + 1)))
            alive.append(item)
            if len(alive) > 100:
                alive.pop(chance.randrange(100)).over = True
            assert len(seen.queue) <= 2 * 101 + 257, number
        seen.queue.clear()

    run(main)


def test_clearing_forgets_items_and_timer() -> None:
    async def main() -> None:
        seen = Expired()
        seen.queue.add(Item(), 1.0)
        seen.queue.clear()
        await asyncio.sleep(5)
        assert not seen.items
        seen.queue.add(Item(), 1.0)  # and it can be used again
        await asyncio.sleep(5)
        assert len(seen.items) == 1

    run(main)


def test_items_can_be_added_while_others_expire() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        began = loop.time()

        def expire(item: Item, seconds: float) -> None:
            seen.append(round(loop.time() - began, 6))
            if len(seen) < 5:
                queue.add(Item(), 1.0)

        queue: DeadlineQueue[Item] = DeadlineQueue(loop, expire)
        queue.add(Item(), 1.0)
        await asyncio.sleep(100)
        assert seen == [1, 2, 3, 4, 5]

    run(main)


def test_as_a_plain_model_has_it() -> None:
    async def main() -> None:
        chance = random.Random(11)
        seen = Expired()
        expected: list[tuple[float, int]] = []
        items: dict[int, Item] = {}
        for number in range(500):
            item = items[number] = Item()
            seconds = chance.random() * 10
            began = seen.loop.time()
            seen.queue.add(item, seconds)
            end = chance.random() * 15
            if end < seconds:
                seen.loop.call_at(began + end, setattr, item, "over", True)
            else:
                expected.append((began + seconds, number))
            await asyncio.sleep(chance.random() * 0.1)
        await asyncio.sleep(20)
        assert [item for item, _, _ in seen.items] == [items[n] for _, n in sorted(expected)]

    run(main)
