"""``python -m benchmarks.harness``: F10, and the load harness beside the tools that people know.

F10 compares the CPU time of a request that the harness makes, through the pool, timed and
recorded, with that of a hand-written client on the bare loop; both closed, in turns, at the same
server in another process, with the same messages and a look at each answer.  Client and server
count together, the client's part is shown too.  The kernel puts them where it likes; with
``--one-core`` they share one, as in F4.  Beside redis-benchmark and wrk both are closed loops at
the same server, in turns.
"""

import argparse
import asyncio
import contextlib
import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

from benchmarks import bare, loops
from benchmarks.__main__ import MALLOC, unpin, usable_cores
from benchmarks.pairing import cpu_of
from benchmarks.server_process import ServerProcess, pin
from pulsar_client import load
from pulsar_client.load.calibration import calibrate
from pulsar_client.load.wire import numbered
from pulsar_client.testing import FaultProxy

LIMITS = load.Limits(lateness=60.0, loop_lag=60.0, cpu=1e9)


# -- F10 -------------------------------------------------------------------------------------


class Meter:
    """CPU seconds of this process, and of a server, since it was made."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.there = cpu_of(server) or 0.0
        self.here = time.process_time()

    def each(self, requests: int) -> tuple[float, float]:
        """Microseconds of a request: of both, and of the client alone."""
        here = time.process_time() - self.here
        there = (cpu_of(self.server) or 0.0) - self.there
        return 1e6 * (here + there) / requests, 1e6 * here / requests


class Pipelined(asyncio.Protocol):
    """A hand-written client with many requests in flight: a future each, one write a turn."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiters: deque[asyncio.Future[bytes]] = deque()
        self.parts: list[bytes] = []
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def request(self, message: bytes) -> asyncio.Future[bytes]:
        if self.transport.is_closing():
            raise ConnectionError("closed")
        waiter = self.loop.create_future()
        self.waiters.append(waiter)
        if not self.parts:
            self.loop.call_soon(self.flush)
        self.parts.append(message + bare.SEPARATOR)
        return waiter

    def flush(self) -> None:
        self.transport.write(b"".join(self.parts))
        self.parts.clear()

    def data_received(self, data: bytes) -> None:
        *messages, self.buffer = (self.buffer + data).split(bare.SEPARATOR)
        for message in messages:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(exc or ConnectionError("lost"))


async def by_hand(
    address: tuple[str, int], server: int, connections: int, pipeline: int, seconds: float
) -> tuple[float, float]:
    """What a request of a hand-written client costs."""
    factory: Any = bare.EchoClient if pipeline == 1 else Pipelined
    clients: list[Any] = []
    for _ in range(connections):
        _, client = await asyncio.get_running_loop().create_connection(factory, *address)
        clients.append(client)
    done = number = 0
    make_message = numbered(64)  # what the harness sends
    end = time.monotonic() + seconds

    async def task(client: Any) -> None:
        nonlocal done, number
        while time.monotonic() < end:
            for _ in range(20):
                message = make_message(number)
                number += 1
                if await client.request(message) != message:
                    raise RuntimeError("the answer is not what was sent")
            done += 20

    meter = Meter(server)
    await asyncio.gather(*(task(client) for client in clients for _ in range(pipeline)))
    for client in clients:
        client.transport.abort()
    return meter.each(done)


async def by_harness(
    address: tuple[str, int], server: int, connections: int, pipeline: int, seconds: float
) -> tuple[float, float]:
    """What a request of the harness costs, all that a run does included."""
    plan = load.Plan(
        target=f"tcp://{address[0]}:{address[1]}",
        protocol="echo",
        in_flight=connections * pipeline,
        connections=connections,
        pipeline=pipeline,
        duration=seconds,
        limits=LIMITS,
    )
    meter = Meter(server)
    result = await load.run(plan)
    if result.counts.error:
        raise RuntimeError(str(result.causes))
    return meter.each(result.counts.ok)


def share_core(server: int, core: int | None) -> None:
    """Keep this process where the server is, and let neither interrupt the other.

    Else the kernel lets the server in while the client still writes, the sooner the more the
    client has to do: it then gets its requests one by one from one client and in chunks from
    another, and what it costs is another thing for each.
    """
    pin(core)
    if hasattr(os, "sched_setscheduler"):
        for process in (0, server):
            os.sched_setscheduler(process, os.SCHED_BATCH, os.sched_param(0))


async def f10(loop: str, rounds: int, seconds: float, one_core: bool) -> list[dict[str, Any]]:
    """Measure F10 on the running loop."""
    lines: list[dict[str, Any]] = []
    cores = usable_cores()
    with ServerProcess("bare-joined", loop, cores[0] if one_core else None) as server:
        if one_core:
            share_core(server.pid, cores[0])
        for connections, pipeline in ((1, 1), (16, 1), (1, 16)):
            case = (server.address, server.pid, connections, pipeline, seconds)
            await by_hand(*case)  # warm
            ours, other = [], []
            for _ in range(rounds):
                ours.append(await by_harness(*case))
                other.append(await by_hand(*case))
            ratios = [b[0] / a[0] for a, b in zip(ours, other, strict=True)]
            clients = [b[1] / a[1] for a, b in zip(ours, other, strict=True)]
            lines.append(
                {
                    "loop": loop,
                    "one core": one_core,
                    "connections": connections,
                    "in flight on each": pipeline,
                    "ratio": median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                    "client_ratio": median(clients),
                    "harness_us": [median(column) for column in zip(*ours, strict=True)],
                    "by_hand_us": [median(column) for column in zip(*other, strict=True)],
                }
            )
    unpin(cores)
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    found = await calibrate(seconds, load.Stop())
    lines.append({"loop": loop, **found.as_json()})
    return lines


# -- beside other tools ----------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """Run a server until the end of the block."""
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL)
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait()


def ours(url: str, protocol: str, in_flight: int, seconds: float, size: int) -> dict[str, float]:
    """A closed loop of the command."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pulsar_client", "load", url, "--protocol", protocol),
            *("--in-flight", str(in_flight), "--connections", str(in_flight), "--json", "-"),
            *("--duration", str(seconds), "--warmup", "0.5", "--size", str(size)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    data = json.loads(done.stdout)
    times = data["service_time"]
    return {"rate": data["rate"]["answered"], "p50": times["p50"], "p99": times["p99"]}


def redis_benchmark(port: int, in_flight: int, rate: float) -> dict[str, float]:
    """PING with a message, for about as long as ours takes."""
    done = subprocess.run(
        [
            *("redis-benchmark", "-p", str(port), "-c", str(in_flight), "-n", str(int(3 * rate))),
            *("--csv", "ping", "x" * 64),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    head, row = list(csv.reader(io.StringIO(done.stdout)))[-2:]
    figures = dict(zip(head, row, strict=True))
    return {
        "rate": float(figures["rps"]),
        "p50": float(figures["p50_latency_ms"]) / 1e3,
        "p99": float(figures["p99_latency_ms"]) / 1e3,
    }


def wrk(port: int, in_flight: int, rate: float) -> dict[str, float]:
    """GET with one thread."""
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{in_flight}", "-d3s", "--latency"),
            f"http://127.0.0.1:{port}/",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

    def quantile(name: str) -> float:
        found = re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", done.stdout)
        assert found is not None, done.stdout
        return float(found[1]) * units[found[2]]

    answered = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert answered is not None, done.stdout
    return {"rate": float(answered[1]), "p50": quantile("50"), "p99": quantile("99")}


class Hello(asyncio.Protocol):
    """Answers what ends with a blank line, as an HTTP server would."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        number = data.count(b"\r\n\r\n")
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" * number)


async def hello(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Hello, "127.0.0.1", port)
    await server.serve_forever()


def beside(
    name: str, rounds: int, ours: Callable[[], dict[str, float]], other: Callable[[], Any]
) -> dict[str, Any]:
    """Measure both in turns."""
    pairs = [(ours(), other()) for _ in range(rounds)]
    line: dict[str, Any] = {"beside": name}
    for key in ("rate", "p50", "p99"):
        line[key] = (median(a[key] for a, _ in pairs), median(b[key] for _, b in pairs))
    return line


async def relay(port: int, target: int) -> None:
    """Delay what passes by 2 ms each way: the target is then slower than either tool."""
    async with FaultProxy(("127.0.0.1", target), listen=("127.0.0.1", port), latency=0.002):
        await asyncio.Event().wait()


def own(*arguments: str | int) -> list[str]:
    """A command of this module."""
    return [sys.executable, "-m", "benchmarks.harness", *map(str, arguments)]


def side_by_side(rounds: int) -> list[dict[str, Any]]:
    """Compare with the tools that are installed, at a quick target and a slow one."""
    lines: list[dict[str, Any]] = []
    port, slow = free_port(), free_port()
    if shutil.which("redis-server") and shutil.which("redis-benchmark"):
        command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"]
        with running(command, port), running(own("relay", slow, port), slow):
            lines += pairs("redis-benchmark", "redis-ping", port, slow, rounds, redis_benchmark)
    port, slow = free_port(), free_port()
    if shutil.which("wrk"):
        with running(own("hello", port), port), running(own("relay", slow, port), slow):
            lines += pairs("wrk", "http", port, slow, rounds, wrk)
    return lines


def pairs(
    tool: str,
    protocol: str,
    port: int,
    slow: int,
    rounds: int,
    other: Callable[[int, int, float], dict[str, float]],
) -> Iterator[dict[str, Any]]:
    """Measure one tool and the harness, with 1 and 16 in flight, at both targets."""
    for where, name in ((port, "at once"), (slow, "after 4 ms")):
        for in_flight in (1, 16):
            url = f"tcp://127.0.0.1:{where}"
            rate = ours(url, protocol, in_flight, 1.0, 64)["rate"]
            yield beside(
                f"{tool}, {in_flight} in flight, answered {name}",
                rounds,
                partial(ours, url, protocol, in_flight, 3.0, 64),
                partial(other, where, in_flight, rate),
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness", description=__doc__)
    parser.add_argument("what", choices=("f10", "beside", "hello", "relay"))
    parser.add_argument("port", nargs="*", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each slice of F10")
    parser.add_argument("--one-core", action="store_true", help="F10 with the server beside it")
    options = parser.parse_args()
    if not MALLOC.items() <= os.environ.items():  # malloc reads them when a process starts
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.harness", *sys.argv[1:]],
            {**os.environ, **MALLOC},
        )
    if options.what == "hello":
        loops.run_in(loops.available()[-1], hello(*options.port))
    elif options.what == "relay":
        loops.run_in(loops.available()[-1], relay(*options.port))
    elif options.what == "f10":
        for name in loops.available():
            for line in loops.run_in(
                name, f10(name, options.rounds, options.seconds, options.one_core)
            ):
                print(json.dumps(line), flush=True)
    else:
        for line in side_by_side(options.rounds):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
