"""The Redis-like server of the examples beside a bare one, under ``redis-benchmark``."""

import asyncio
import shutil
import subprocess
import time

from benchmarks.pairing import Case, Goal, Result, Side, Slice, cpu_of, run_case
from benchmarks.report import line
from benchmarks.server_process import ServerProcess

__all__ = ["served"]

PIPELINED = 16


def loading(server: ServerProcess, command: str, requests: int) -> Side:
    """So many requests of ``redis-benchmark``; the server's CPU time is what counts."""
    words = ["redis-benchmark", "-p", str(server.address[1]), "-t", command, "-q"]
    words += ["-n", str(requests), "-P", str(PIPELINED)]

    async def side() -> Slice:
        cpu, wall = cpu_of(server.pid) or 0.0, time.perf_counter()
        await asyncio.to_thread(
            subprocess.run, words, stdout=subprocess.DEVNULL, check=True, timeout=60
        )
        wall = time.perf_counter() - wall
        return Slice(requests, (cpu_of(server.pid) or wall) - cpu, wall)

    return side


async def served(loop: str, core: int | None, rounds: int, requests: int) -> list[Result]:
    """Measure both servers on the loop of that name."""
    if shutil.which("redis-benchmark") is None:
        print("redis-benchmark is not installed: the server is left out")
        return []
    results = []
    with (
        ServerProcess("redis-library", loop, core) as ours,
        ServerProcess("redis-bare", loop, core) as bare,
    ):
        for command in ("set", "get"):
            case = Case(
                "F5",
                f"server, {command.upper()}, redis-benchmark -P {PIPELINED}",
                loop,
                "library",
                sides={
                    "library": loading(ours, command, requests),
                    "bare server": loading(bare, command, requests),
                },
                goals={"bare server": Goal(0.7, at_most=False)},
            )
            for result in await run_case(case, rounds, 3):
                print(line(result), flush=True)
                results.append(result)
    return results
