"""Leases held too long: where they were taken, where their task stands, that they return."""

import asyncio
import gc
import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
from pool_kit import Judging, Source, task, turns, virtual

from pulsar_client import Pool


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "pulsar_client.pool" and record.levelno == logging.WARNING
    ]


async def take_and_wait(pool: Pool, event: asyncio.Event) -> None:
    async with pool.connect():
        await event.wait()


def line_of(function: Any, text: str) -> int:
    """The number of the line of a function that has this in it."""
    lines, start = inspect.getsourcelines(function)
    return start + next(number for number, line in enumerate(lines) if text in line)


@virtual
async def test_a_lease_that_is_held_too_long(caplog: pytest.LogCaptureFixture) -> None:
    async with Pool(Source(Judging), 2, name="books", leak_after=10.0) as pool:
        event = asyncio.Event()
        holding = task(take_and_wait(pool, event))
        await asyncio.sleep(9.0)
        assert not reports(caplog)
        await asyncio.sleep(2.0)
        (report,) = reports(caplog)
        name = Path(__file__).name
        for part in (
            "'books'",
            "<Judging 0>",
            "is held since 10 s",
            # Where it was taken, and where its task stands now: the same function, another line.
            f'{name}", line {line_of(take_and_wait, "pool.connect")}, in take_and_wait',
            f'{name}", line {line_of(take_and_wait, "event.wait")}, in take_and_wait',
            "async with pool.connect():",
            "await event.wait()",
        ):
            assert part in report
        await asyncio.sleep(100.0)
        assert len(reports(caplog)) == 1  # once a lease
        event.set()
        await holding
        assert "that was held too long came back after 111 s" in reports(caplog)[1]
        assert len(reports(caplog)) == 2


@virtual
async def test_a_lease_whose_task_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    async def keep(pool: Pool) -> Any:
        return await pool.connect()

    async with Pool(Source(Judging), 2, leak_after=10.0) as pool:
        taking = task(keep(pool))
        lease = await taking
        await asyncio.sleep(11.0)
        (report,) = reports(caplog)
        assert "its task is done" in report
        assert "in keep" in report
        lease.close()


@virtual
async def test_leases_in_time_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    async with Pool(Source(Judging), 2, leak_after=10.0) as pool:
        for _ in range(20):
            async with pool.connect():
                await asyncio.sleep(9.0)
        await asyncio.sleep(100.0)
    assert not reports(caplog)


@virtual
async def test_i30_a_forgotten_lease_has_its_whole_stack() -> None:
    """With ``leak_after`` the one warning shows the calls that led to the lease."""

    async def inner(pool: Pool) -> None:
        lease = await pool.connect()
        assert not lease.closed

    async def outer(pool: Pool) -> None:
        await inner(pool)

    async with Pool(Source(Judging), 1, leak_after=10.0) as pool:
        with pytest.warns(ResourceWarning, match=r"in outer[\s\S]*in inner") as caught:
            await forget(outer(pool))
        assert len(caught) == 1
        await turns(2)
        async with pool.connect(timeout=5.0):
            pass


async def forget(work: Any) -> None:
    """Run something and collect what it has forgotten."""
    await work
    gc.collect()
