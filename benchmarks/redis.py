"""``python -m benchmarks.redis``: GET on a real Redis, against other clients (F6).

Then the example's Redis-like server against a bare one, under ``redis-benchmark -P 16``.

It starts a ``redis-server`` of its own.  All clients run in this process and on this loop, in
turns.  Rates are by the clock: part of the work is done in other threads and in the server.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import loops
from benchmarks.__main__ import MALLOC, machine, usable_cores, version
from benchmarks.pairing import Case, Goal, Result, Side, Slice, run_case
from benchmarks.redis_peers import CLIENTS, Get
from benchmarks.redis_served import served
from benchmarks.report import LINE, line
from benchmarks.server_process import pin

KEY = "benchmark:key"
VALUE = b"v" * 64
TASKS = (50, 1)
#: Requests of a slice: each client gets about the same time.
OPERATIONS = {"redis": 0.1, "coredis": 0.1, "valkey-glide": 0.3}
#: What our rate must be, over the other's: with 50 tasks, and with one.
GOALS = {
    "by hand": (0.5, 0.85),
    "redis": (10.0, None),
    "coredis": (10.0, None),
    "valkey-glide": (3.0, None),
}


@contextmanager
def redis_server(core: int | None) -> Iterator[int]:
    """A server on a free port of the loopback, with the value in it."""
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("redis-server is not installed")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            if core is not None and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, {core})
            _store_value(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(20)


def _store_value(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(b"SET %s %s\r\n" % (KEY.encode(), VALUE))
                if sock.recv(100) == b"+OK\r\n":
                    return
        except OSError:
            time.sleep(0.01)
    raise RuntimeError("redis-server does not answer")


def getting(get: Get, tasks: int, operations: int) -> Side:
    """So many requests by so many tasks, each one after the other."""
    each = max(1, operations // tasks)

    async def task() -> None:
        for _ in range(each):
            if await get(KEY) != VALUE:
                raise RuntimeError("the reply is not what was stored")

    async def side() -> Slice:
        cpu, wall = time.process_time(), time.perf_counter()
        if tasks == 1:
            await task()
        else:
            await asyncio.gather(*(task() for _ in range(tasks)))
        wall = time.perf_counter() - wall
        return Slice(each * tasks, wall, wall, time.process_time() - cpu)

    return side


async def measure(loop: str, port: int, options: argparse.Namespace) -> list[Result]:
    """Run every case on the running loop."""
    results: list[Result] = []
    async with AsyncExitStack() as stack:
        gets = {
            name: await stack.enter_async_context(CLIENTS[name](port)) for name in options.clients
        }
        gc.collect()
        gc.freeze()
        for tasks in TASKS:
            operations = options.operations if tasks > 1 else options.operations // 5
            case = Case(
                "F6",
                f"GET, {tasks} task{'s' * (tasks > 1)}",
                loop,
                "ours",
                sides={
                    name: getting(get, tasks, int(operations * OPERATIONS.get(name, 1.0)))
                    for name, get in gets.items()
                },
                goals={
                    name: None if goal is None else Goal(goal, at_most=False)
                    for name, (many, one) in GOALS.items()
                    if name in gets
                    for goal in (many if tasks > 1 else one,)
                },
                costs=False,
                unit="us/operation",
            )
            for result in await run_case(case, options.rounds, options.slices):
                print(line(result), flush=True)
                results.append(result)
    return results


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.redis", description=__doc__)
    parser.add_argument("--loop", choices=("asyncio", "uvloop", "both"), default="both")
    parser.add_argument("--rounds", type=int, help="rounds of each pair (7; with --quick 5)")
    parser.add_argument("--quick", action="store_true", help="short slices: less exact")
    parser.add_argument("--only", metavar="redis,coredis", help="these peers only")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything there")
    options = parser.parse_args()
    peers = [name for name in CLIENTS if name != "ours"]
    wanted = options.only.split(",") if options.only else peers
    unknown = [name for name in wanted if name not in peers]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the peers are {', '.join(peers)}")
    if options.rounds is None:
        options.rounds = 5 if options.quick else 7
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    options.operations = 1000 if options.quick else 4000
    options.slices = 3 if options.quick else 7
    present = loops.available()
    if options.loop == "uvloop" and "uvloop" not in present:
        parser.error("--loop uvloop: uvloop is not installed")
    options.loops = present if options.loop == "both" else [options.loop]
    options.clients = ["ours"]
    options.missing = []
    for name in wanted:
        there = name == "by hand" or version(name) is not None
        (options.clients if there else options.missing).append(name)
    return options


def versions() -> dict[str, str]:
    found = {name: version(name) or "not installed" for name in (*CLIENTS, "hiredis", "uvloop")}
    del found["ours"], found["by hand"]
    server = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    )
    found["redis-server"] = server.stdout.partition("v=")[2].partition(" ")[0]
    return found


def main() -> int:
    options = arguments()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.environ.update(MALLOC)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.redis", *sys.argv[1:]])
    cores = usable_cores()
    results: list[Result] = []
    try:
        with redis_server(cores[-1]) as port:
            pin(cores[0] if len(cores) > 1 else None)
            report: dict[str, Any] = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": machine(),
                "python": sys.version,
                "versions": versions(),
                "rounds": options.rounds,
                "quick": options.quick,
            }
            where = report["machine"]
            print(
                f"Python {platform.python_version()}, {where['processor']}, {where['cores']} cores"
            )
            print(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
            print(
                LINE.replace("CPU us ours/other", "us ours/other").replace("client's own", "CPU")
            )
            for loop in options.loops:
                results += loops.run_in(loop, measure(loop, port, options))
        for loop in options.loops:
            # The load on one core, the server on another.
            requests = 20_000 if options.quick else 100_000
            results += asyncio.run(served(loop, cores[-1], options.rounds, requests))
    except FileNotFoundError as exc:
        print(f"can't measure: {exc}", file=sys.stderr)
        return 3
    for name in options.missing:
        print(f"{name} is not installed: left out")
    met = [result for result in results if result.met is not None]
    print(f"{sum(1 for result in met if result.met)} of {len(met)} goals met")
    report["results"] = [result.as_json() for result in results]
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
