"""Everything a pool awaits, ending in every way, cancelled at every point.

Dial, ``on_connect``, ``check``, ``reset`` and ``close()`` each end well, with an error, late or
never: 1,024 pools, and in each the caller is cancelled at each of its suspensions.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from pool_kit import Slow, Source, at_rest, run

from pulsar_client import Pool, PoolOverloaded, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate, conservation, explore_cancellation, gate_matrix

LONG = os.environ.get("PULSAR_CLIENT_LONG") == "1"

#: Seconds: as long as a caller waits; less than what is SLOW takes in all.
DEADLINE = 4.0


class Case:
    """One combination: a pool for each run, and what must hold after it."""

    def __init__(self, *gates: Gate) -> None:
        self.gates = gates
        self.pool: Pool | None = None

    async def scenario(self) -> None:
        """Two leases one after the other, the second of a used connection, which is dropped."""
        dial, on_connect, check, reset, close = self.gates

        def hook(gate: Gate) -> Any:
            async def act(connection: Any) -> None:
                if self.open:
                    await gate.pass_through(error=ValueError("no"))

            return act

        class Closing(Slow):
            gate = close

        self.open = True
        self.source = Source(Closing, dial)
        self.pool = pool = Pool(
            self.source,
            1,
            on_connect=hook(on_connect),
            check=hook(check),
            reset=hook(reset),
        )
        for discard in (False, True):
            began = asyncio.get_running_loop().time()
            try:
                lease = await pool.connect(timeout=DEADLINE)
            except (PoolTimeout, PoolUnavailable):
                # I12: over in time, whatever is stuck.
                assert asyncio.get_running_loop().time() - began <= DEADLINE + 0.05
            else:
                conservation(pool)
                lease.close(discard=discard)

    async def whole(self, _point: int) -> None:
        """I1, I5: the slot can be had once things work; I29: and nothing is left at the end."""
        pool = self.pool
        assert pool is not None
        conservation(pool)
        self.open = False
        self.source.gates = [Gate.OK]
        await asyncio.sleep(2.1)  # the longest backoff
        lease = await pool.connect(timeout=60.0)
        assert (pool.in_use, pool.stats().size) == (1, 1)
        lease.close()
        await asyncio.sleep(20.0)  # resets have 5 s, closes 11 s
        at_rest(pool)
        await pool.close(1.0)
        assert pool.stats().size == 0
        assert self.source.dialling == self.source.open == 0
        assert self.source.peak <= 1  # I2
        assert asyncio.all_tasks() == {asyncio.current_task()}
        loop: Any = asyncio.get_running_loop()
        assert not [handle for handle in loop._scheduled if not handle.cancelled()]


@pytest.fixture
def quiet() -> Iterator[None]:
    """Hooks fail by the thousand."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dial", list(Gate))
def test_every_end_of_every_step_cancelled_everywhere(dial: Gate) -> None:
    """I1, I2, I3, I5, I6, I11, I12, I13, I29."""

    async def main() -> None:
        points = 0
        for gates in gate_matrix(4):
            case = Case(dial, *gates)
            try:
                explored = await explore_cancellation(
                    case.scenario,
                    check=case.whole,
                    turns=3 if LONG else 0,
                    timeout=30.0,
                )
            except BaseException as exc:
                exc.add_note(f"dial, on_connect, check, reset, close: {case.gates}")
                raise
            points += explored.points
        assert points >= 256 * 2

    run(main())


class Ageing(Case):
    """A pool whose connections grow old, idle and in use, and that keeps a floor."""

    def __init__(self, share: int, *gates: Gate) -> None:
        super().__init__(*gates)
        self.share = share

    async def scenario(self) -> None:
        """Leases that end before and after the age, with others behind them in the queue."""
        (dial,) = self.gates
        self.source = Source(Slow, Gate.OK, dial, Gate.OK)
        self.pool = pool = Pool(
            self.source,
            2,
            min_size=1,
            max_age=10.0,
            max_idle=7.0,
            queue_target=0.5,
            share=self.share,
        )

        async def hold(seconds: float) -> None:
            with contextlib.suppress(PoolTimeout, PoolOverloaded, PoolUnavailable):
                async with pool.connect(timeout=DEADLINE, exclusive=True):
                    await asyncio.sleep(seconds)

        loop = asyncio.get_running_loop()
        self.others = [loop.create_task(hold(seconds)) for seconds in (3.0, 11.0)]
        await asyncio.sleep(0)
        await hold(0.1)
        await asyncio.sleep(8.0)
        await hold(12.0)

    async def whole(self, _point: int) -> None:
        """I1, I2, I25; and nothing is left at the end."""
        pool = self.pool
        assert pool is not None
        conservation(pool)
        await asyncio.gather(*self.others)
        await asyncio.sleep(60.0)
        # An old one may be on its way out, or its successor on its way in.
        assert (pool.available, pool.in_use, pool.stats().waiting) == (1, 0, 0)
        async with pool.connect(timeout=DEADLINE):
            conservation(pool)
        await pool.close(1.0)
        assert self.source.dialling == self.source.open == 0
        assert self.source.peak <= 2
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("dial", [Gate.OK, Gate.ERROR, Gate.SLOW])
@pytest.mark.parametrize("share", [1, 4])
def test_a_pool_that_keeps_a_floor_of_young_connections_cancelled_everywhere(
    share: int, dial: Gate
) -> None:
    """I1, I2, I5, I6, I9, I11, I24, I25."""

    async def main() -> None:
        case = Ageing(share, dial)
        explored = await explore_cancellation(case.scenario, check=case.whole, timeout=60.0)
        assert explored.points >= 10

    run(main())


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("when", range(8))
def test_closed_in_the_middle_of_every_step(when: int) -> None:
    """I29: at once or at the time-out, whatever hangs; new callers and waiters fail."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        for gates in gate_matrix(5):
            case = Case(*gates)
            caller = loop.create_task(case.scenario())
            await asyncio.sleep(0)
            for _ in range(when):
                await asyncio.sleep(0.3 if when > 4 else 0)
            pool = case.pool
            assert pool is not None
            began = loop.time()
            await pool.close(2.0)
            note = f"dial, on_connect, check, reset, close: {gates}"
            assert loop.time() - began <= 2.0 + 1.0 + 0.3, note
            assert pool.stats().size == 0, note
            await asyncio.wait([caller])
            failure = caller.exception()
            assert failure is None or type(failure).__name__ == "PoolClosed", note
            assert loop.time() - began <= 3.3, note
            assert case.source.open == 0, note
            assert asyncio.all_tasks() == {asyncio.current_task()}, note
            assert not [one for one in loop._scheduled if not one.cancelled()], note

    run(main())
