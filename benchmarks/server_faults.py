"""The faults that servers are compared by: what is done to a server, and what comes of it.

Each takes a server and the turn: what needs the machine for itself is done by one server at a
time.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from benchmarks.server_clients import FAILURES, LIMIT, Kept, Load, ask, load
from benchmarks.server_rivals import Rival, Running, Settings

__all__ = ["FAULTS", "QUICK", "Fault", "Limits", "Outcome"]


@dataclass(frozen=True)
class Limits:
    """How long and how often, seconds."""

    #: A worker that is killed has lived for so long.
    age: float = 11.0
    crashes: float = 10.0
    replaced: float = 30.0
    timeout: int = 5
    graceful: int = 3
    ended: float = 45.0
    reloads: int = 5
    reloaded: float = 60.0
    connections: int = 200
    settle: float = 2.0


@dataclass(frozen=True)
class Outcome:
    """A figure, or None if there is none; what is said beside it; how many failed of how many."""

    value: float | None
    said: str = ""
    failed: tuple[int, ...] = ()
    tried: tuple[int, ...] = ()


Turn = asyncio.Lock
Measure = Callable[[Rival, Limits, Turn], Awaitable[Outcome]]


@dataclass(frozen=True)
class Fault:
    """What is measured, its unit, and how."""

    name: str
    title: str
    unit: str
    measure: Measure


async def _new_worker(server: Running, known: set[int], done: Load, limit: float) -> float | None:
    """Seconds until a process that is not known has answered; None if none has by then."""
    begun = time.monotonic()
    await server.until(lambda: bool(done.pids - known) or server.ended, limit)
    return time.monotonic() - begun if done.pids - known else None


def _said(server: Running, limit: float | None = None) -> str:
    """That the server has ended, or that the limit was reached, if so."""
    if server.ended:
        return f"the server ends, exit code {server.process.returncode}"
    return "" if limit is None else f"not in {limit:g} s"


async def killed(rival: Rival, limits: Limits, turn: Turn) -> Outcome:
    """Kill -9 of a worker."""
    with Running(rival, Settings()) as server:
        known = set(await server.started())
        await asyncio.sleep(limits.age)
        async with turn:
            os.kill(min(known), signal.SIGKILL)
            # Every connection is begun after the kill.
            async with load(server.port, new=4, kept=0, pause=0.005) as done:
                seconds = await _new_worker(server, known, done, limits.replaced)
                await asyncio.sleep(0.5)
            said = _said(server, limits.replaced if seconds is None else None)
        return Outcome(seconds, said, (done.new_failed,), (done.new,))


async def crash_loop(rival: Rival, limits: Limits, turn: Turn) -> Outcome:
    """Workers that die half a second after their start."""
    async with turn:
        with Running(rival, Settings(workers=2, die_after=0.5)) as server:
            await server.until(lambda: bool(server.recorded("boot")), 60.0)
            await server.until(lambda: server.ended, limits.crashes)
            return Outcome(len(server.recorded("boot")), _said(server))


async def blocked(rival: Rival, limits: Limits, turn: Turn) -> Outcome:
    """A handler that does not give the event loop back."""
    settings = Settings(workers=2, timeout=limits.timeout)
    with Running(rival, settings) as server:
        known = set(await server.started())
        await asyncio.sleep(limits.settle)
        client = asyncio.create_task(ask(server.port, "/block", limits.replaced * 2))
        try:
            await server.until(lambda: bool(server.recorded("block")), 30.0)
            async with load(server.port, new=2, kept=0, pause=0.05) as done:
                seconds = await _new_worker(server, known, done, limits.replaced)
        finally:
            client.cancel()
            with suppress(asyncio.CancelledError, *FAILURES):
                await client
        said = _said(server, limits.replaced if seconds is None else None)
        return Outcome(seconds, said if rival.has_timeout else f"{said}, no time-out to set")


async def _terminated(rival: Rival, limits: Limits, settings: Settings) -> Outcome:
    """TERM, while one request would be answered after a second and another one never is."""
    with Running(rival, settings) as server:
        await server.started()
        await asyncio.sleep(limits.settle)
        clients = [
            asyncio.create_task(ask(server.port, path, limits.ended * 2))
            for path in ("/hang", "/slow")
        ]
        try:
            await server.until(
                lambda: all(map(server.recorded, ("hang", "slow"))) or server.ended, 30.0
            )
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            ended = await server.until(lambda: server.ended, limits.ended)
            seconds = time.monotonic() - begun
            await asyncio.wait(clients[1:], timeout=LIMIT)
            answered = clients[1].done() and clients[1].exception() is None
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        slow = "" if answered else ", a request of 1 s is cut"
        if not ended:
            return Outcome(None, f"not in {limits.ended:g} s{slow}")
        return Outcome(seconds, f"exit code {server.process.returncode}{slow}")


async def terminated(rival: Rival, limits: Limits, turn: Turn) -> Outcome:
    """TERM while a handler hangs, with a graceful time-out."""
    return await _terminated(rival, limits, Settings(workers=2, graceful=limits.graceful))


async def terminated_by_default(rival: Rival, limits: Limits, turn: Turn) -> Outcome:
    """The same with the server's defaults."""
    return await _terminated(rival, limits, Settings(workers=2))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _reload(server: Running, old: list[int], limit: float) -> list[int] | None:
    """Send HUP; wait for new workers and for the end of the old ones; None if not in time."""
    before = len(server.recorded("boot"))

    def complete() -> bool:
        new = len(server.recorded("boot")) - before
        return server.ended or (new >= server.settings.workers and not any(map(_alive, old)))

    server.process.send_signal(signal.SIGHUP)
    if not await server.until(complete, limit) or server.ended:
        return None
    return server.recorded("boot")[before:]


async def reloaded(rival: Rival, limits: Limits, turn: Turn) -> Outcome:
    """HUP, under load; the figure is seconds a reload, until the old workers have gone."""
    settings = Settings(workers=2, graceful=10)
    async with turn:
        with Running(rival, settings) as server:
            workers = await server.started()
            await asyncio.sleep(limits.settle)
            seconds = 0.0
            async with load(server.port, new=10, kept=10, pause=0.01) as done:
                for _ in range(limits.reloads):
                    begun = time.monotonic()
                    new = await _reload(server, workers, limits.reloaded)
                    if new is None:
                        return Outcome(None, _said(server, limits.reloaded))
                    workers = new
                    seconds += time.monotonic() - begun
                    await asyncio.sleep(0.5)
            failed = (done.new_failed, done.kept_failed)
            return Outcome(seconds / limits.reloads, "", failed, (done.new, done.kept))


async def spread(rival: Rival, limits: Limits, turn: Turn) -> Outcome:
    """Connections that arrive 1 ms apart, each with a request; (most - fewest) / mean a worker."""
    settings = Settings()
    with Running(rival, settings) as server:
        known = await server.started()
        await asyncio.sleep(limits.settle)
        connections: list[Kept] = []
        begin = time.monotonic()

        async def connect(number: int) -> int:
            await asyncio.sleep(begin + number * 0.001 - time.monotonic())
            connection = await Kept.open(server.port)
            connections.append(connection)
            return await connection.ask()

        async with turn, asyncio.timeout(60.0):
            begin = time.monotonic()
            pids = await asyncio.gather(*map(connect, range(limits.connections)))
        for connection in connections:
            connection.close()
        counts = Counter(dict.fromkeys(known, 0)) + Counter(pids)
        shares = [counts.get(pid, 0) for pid in known]
        said = "/".join(map(str, sorted(shares)))
        return Outcome((max(shares) - min(shares)) * len(shares) / sum(shares), said)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill", "kill -9 of a worker, until its replacement answers", "s", killed),
        Fault("crash", "boots in 10 s, 2 workers that die after 0.5 s", "", crash_loop),
        Fault("block", "blocked loop, until a new worker answers, time-out 5 s", "s", blocked),
        Fault("term", "TERM with a hung request, graceful time-out 3 s", "s", terminated),
        Fault("default", "TERM with a hung request, defaults", "s", terminated_by_default),
        Fault("reload", "a HUP under load", "s", reloaded),
        Fault("spread", "connections 1 ms apart: (most - fewest) / mean", "", spread),
    )
}

#: For a quick look: the same with shorter waits.
QUICK = replace(Limits(), age=0.0, crashes=2.0, ended=15.0, reloads=1, connections=50)
