"""Overload, forks and other loops, the numbers a pool tells."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pool_kit import Judging, Source, at_rest, task, turns, virtual

from pulsar_client import Pool, PoolOverloaded, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate

ROOT = Path(__file__).resolve().parents[2]


def now() -> float:
    return asyncio.get_running_loop().time()


# -- overload ------------------------------------------------------------------------------------


async def load(pool: Pool, rate: float, held: float, seconds: float) -> list[tuple[str, float]]:
    """Callers that come at a rate and hold their lease for a while: how each ended, and when."""
    ends: list[tuple[str, float]] = []

    async def call() -> None:
        began = now()
        try:
            async with pool.connect(timeout=30.0):
                ends.append(("ok", now() - began))
                await asyncio.sleep(held)
        except (PoolOverloaded, PoolTimeout) as exc:
            ends.append((type(exc).__name__, now() - began))

    calls = []
    until = now() + seconds
    while now() < until:
        calls.append(task(call()))
        await asyncio.sleep(1 / rate)
    await asyncio.gather(*calls)
    return ends


@virtual
async def test_i10_below_the_capacity_nobody_is_turned_away() -> None:
    pool = Pool(Source(Judging), 2, queue_target=0.02)
    ends = await load(pool, rate=18.0, held=0.1, seconds=60.0)
    assert {end for end, _ in ends} == {"ok"}
    at_rest(pool)
    await pool.close()


@virtual
async def test_at_twice_the_capacity_those_who_are_served_are_served_soon() -> None:
    pool = Pool(Source(Judging), 2, queue_target=0.2)
    ends = await load(pool, rate=40.0, held=0.1, seconds=60.0)
    waits = [wait for end, wait in ends if end == "ok"]
    assert len(waits) > 0.95 * 20 * 60
    assert max(waits[200:]) < 1.0
    shed = [end for end, _ in ends if end != "ok"]
    assert set(shed) == {"PoolOverloaded"}
    assert pool.stats().overloads == len(shed) > 0.4 * len(ends)
    at_rest(pool)
    await pool.close()


@virtual
async def test_i10_the_last_in_the_queue_is_never_turned_away() -> None:
    """However long it waited: nobody is helped by that."""
    pool = Pool(Source(Judging), 1, queue_target=0.01, queue_interval=0.02)
    for _ in range(20):
        lease = await pool.connect()
        waiting = task(pool.connect())
        await asyncio.sleep(5.0)
        lease.close()
        (await waiting).close()
    assert pool.stats().overloads == 0
    await pool.close()


@pytest.mark.parametrize("end", ["served", "cancelled", "timed out", "turned away", "closed"])
@virtual
async def test_i9_one_who_waited_leaves_nothing_behind(end: str) -> None:
    """Whatever became of it: a pool that sheds remembers since when each waits."""
    pool = Pool(Source(Judging), 1, queue_target=0.01)
    for _ in range(10):
        lease = await pool.connect()
        waiting = [task(pool.connect(timeout=1.0)) for _ in range(3)]
        await turns(2)
        assert len(pool._leases.waiting._since) == 3
        if end == "cancelled":
            for one in waiting:
                one.cancel()
        elif end == "timed out":
            await asyncio.sleep(2.0)
        elif end == "turned away":
            await asyncio.sleep(0.9)
        elif end == "closed":
            pool.close()
        lease.close()
        for one in waiting:
            try:
                (await one).close()
            except (asyncio.CancelledError, Exception):
                continue
        await turns(2)
        assert not pool._leases.waiting._since
        if end == "closed":
            break
    await pool.close()


# -- other loops and processes -------------------------------------------------------------------


def test_i31_every_use_from_another_loop_is_refused() -> None:
    from pulsar_client import PoolConnection

    pool = Pool(Source(Judging), 2)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def use() -> Any:
        async with pool.connect() as lease:
            return lease.connection

    connection = first.run_until_complete(use())

    async def misuse(how: Any) -> None:
        async def step() -> None:
            result = how()
            if hasattr(result, "__await__"):
                await result

        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await step()

    for how in (
        lambda: pool.connect(),
        lambda: pool.connect(timeout=0),
        lambda: pool.connect(exclusive=True),
        lambda: pool.__aenter__(),
        lambda: pool.resize(1),
        lambda: pool.expire(),
        lambda: pool.close(),
        lambda: PoolConnection(pool, connection),
    ):
        second.run_until_complete(misuse(how))
    assert (pool.available, pool.pool_size, connection.closed) == (1, 2, False)

    async def end() -> None:
        await pool.close()

    first.run_until_complete(end())
    first.close()
    second.close()


FORK = """
    import asyncio, gc, os, socket, sys

    import pulsar_client
    from pulsar_client import AbstractClient, Connection, Pool, PoolConnection, TcpServer

    OPTIONS = {options}

    async def reset(connection):
        connection.write(b"RESET")

    def refused(call):
        try:
            call()
        except RuntimeError as exc:
            assert "forked" in str(exc), exc
        else:
            raise AssertionError("not refused")

    def child(pool, lease, idle, loop):
        pool.stats(), repr(pool)
        assert idle in pool
        refused(lambda: pool.connect().__await__().send(None))
        refused(lambda: pool.connect(timeout=0).__await__().send(None))
        refused(lambda: pool.connect(exclusive=True).__await__().send(None))
        refused(pool.close)
        refused(pool.expire)
        refused(lambda: pool.resize(3))
        refused(lambda: PoolConnection(pool, idle))
        refused(lambda: lease.write(b"from the child"))
        refused(lambda: lease.connection.write(b"from the child"))

        async def elsewhere():
            refused(lambda: pool.connect().__await__().send(None))
            refused(pool.close)

        asyncio.run(elsewhere())
        lease.close()  # a release can't fail; nor does it write, or close, or start anything
        ready = len(loop._ready) if hasattr(loop, "_ready") else 0
        assert ready <= BEFORE, (ready, BEFORE)
        gc.collect()

    async def main():
        global BEFORE
        received = []

        class Server(asyncio.Protocol):
            def connection_made(self, transport):
                received.append("made")
            def data_received(self, data):
                received.append(data)
            def eof_received(self):
                received.append("eof")
            def connection_lost(self, exc):
                received.append("lost")

        loop = asyncio.get_running_loop()
        server = await loop.create_server(Server, "127.0.0.1", 0)
        client = AbstractClient(protocol_factory=Connection)
        address = server.sockets[0].getsockname()[:2]
        if "reset" in OPTIONS:
            OPTIONS["reset"] = reset
        pool = Pool(lambda: client.create_connection(address), 3, **OPTIONS)
        lease, other = await pool.connect(), await pool.connect()
        third = await pool.connect()
        idle = other.connection
        if "reset" in OPTIONS:
            pool._leases.resets._reset, keep = None, pool._leases.resets._reset
        other.close()
        if "reset" in OPTIONS:
            pool._leases.resets._reset = keep
        while received.count("made") < 3:
            await asyncio.sleep(0)
        BEFORE = len(loop._ready) if hasattr(loop, "_ready") else 0
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(pool, lease, idle, loop)
                status = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert set(received) == {{"made"}}, received  # neither bytes nor an end of file
        assert not idle.closed and not lease.connection.closed
        lease.connection.write(b"still mine")
        while b"still mine" not in received:
            await asyncio.sleep(0)
        third.close(discard=True)
        lease.close(discard=True)
        await pool.close()
        server.close()
        print("done")

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    "options", ["{}", "{'min_size': 2, 'max_age': 60.0}", "{'reset': True, 'leak_after': 60.0}"]
)
def test_i31_a_fork_neither_writes_to_inherited_sockets_nor_closes_them(options: str) -> None:
    """Everything that is asked of the pool in the child is refused, and the parent goes on."""
    source = textwrap.dedent(FORK).format(options=options)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", source],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert "never awaited" not in done.stderr
    assert "destroyed but it is pending" not in done.stderr


# -- numbers -------------------------------------------------------------------------------------


@virtual
async def test_i35_the_numbers_of_a_life() -> None:
    source = Source(Judging, Gate.SLOW, Gate.OK, Gate.ERROR)
    pool = Pool(source, 2, name="db", max_waiting=0)
    one = await pool.connect()
    two = await pool.connect()
    with pytest.raises(PoolOverloaded):
        await pool.connect()
    two.close(discard=True)
    with pytest.raises(PoolUnavailable):
        await pool.connect()
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=0)
    one.close()
    for _ in range(8):
        async with pool.connect():
            pass
    stats = pool.stats()
    assert (stats.name, stats.pool_size, stats.min_size) == ("db", 2, 0)
    assert (stats.leases, stats.waits, stats.opened, stats.closed) == (10, 4, 2, 1)
    assert (stats.timeouts, stats.overloads, stats.failed_dials, stats.leaked) == (1, 1, 1, 0)
    assert (stats.opened_by, stats.closed_by) == ({"demand": 2}, {"discarded": 1})
    assert stats.reuse_ratio == 0.8
    assert stats.longest_wait == pytest.approx(1.0)
    assert stats.wait_time.count == 10
    assert stats.dial_time.maximum == pytest.approx(1.0)
    text = repr(stats)
    for part in ("'db'", "1 of 2 slots", "reuse 80.0%", "1 discarded", "1 timeouts"):
        assert part in text, text
    with pytest.raises(AttributeError):
        stats.leases = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        stats.closed_by["lost"] = 3  # type: ignore[index]
    assert pool.stats().leases == 10
    await pool.close()


@virtual
async def test_repr_of_every_state() -> None:
    source = Source(Judging, Gate.SLOW)
    pool = Pool(source, 2, name="db")
    assert repr(pool) == "<Pool 'db' open: 0 in use, 0 available, 0 waiting>"
    waiting = task(pool.connect())
    await turns(2)
    assert repr(pool) == "<Pool 'db' open: 0 in use, 0 available, 1 dialling, 1 waiting>"
    lease = await waiting
    assert repr(pool) == "<Pool 'db' open: 1 in use, 0 available, 0 waiting>"
    assert repr(lease) == "<PoolConnection of 'db': <Judging 0>>"
    pool.close()
    assert repr(pool) == "<Pool 'db' closing: 1 in use, 0 available, 0 waiting>"
    lease.close()
    assert repr(lease) == "<PoolConnection of 'db': released>"
    assert repr(pool) == "<Pool 'db' closed: 0 in use, 0 available, 0 waiting>"
    gc.collect()
