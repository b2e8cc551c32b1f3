"""``python -m benchmarks.datagrams_workers``: datagrams, and one or two worker processes.

The workers of ``UdpSocketServer`` read from one socket that all of them have.  Beside it: as many
processes that each bind a socket of their own to the port, with ``SO_REUSEPORT``.  Nothing is
pinned: on two cores the client takes its part of what the workers could have.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import loops
from benchmarks.datagrams import SIZE, CompiledLoad, compiled
from benchmarks.pairing import cpu_of
from pulsar_client import DatagramProtocol, DatagramServer, ProtocolConsumer, UdpSocketServer

__all__ = ["CountingEcho", "Workers", "main"]

ASK = b"?"
SOCKETS = (1, 64)


class CountingEcho(ProtocolConsumer):
    """An echo; to a question mark the answer is who has answered how many datagrams."""

    answered = 0

    def data_received(self, data: bytes) -> None:
        if data == ASK:
            data = b"%d %d" % (os.getpid(), CountingEcho.answered)
        else:
            CountingEcho.answered += 1
        self.write(data)
        self.finished()


class Workers:
    """Processes that serve one port."""

    def __init__(self, port: int, pids: list[int]) -> None:
        self.port = port
        self.pids = pids

    def answered(self) -> dict[int, int]:
        """How many datagrams each has answered."""
        found: dict[int, int] = {}
        for _ in range(2000):
            # From a new port each time: where each has a socket of its own, the port decides.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(("127.0.0.1", self.port))
                sock.settimeout(1.0)
                sock.send(ASK)
                pid, count = sock.recv(100).split()
            found[int(pid)] = int(count)
            if len(found) == len(self.pids):
                break
        return {pid: found.get(pid, 0) for pid in self.pids}

    def cpu(self) -> float:
        """CPU seconds of all of them."""
        return sum(cpu_of(pid) or 0.0 for pid in self.pids)


def children(pid: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """This module as another process, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.datagrams_workers", *arguments],
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def listening(process: subprocess.Popen[str]) -> int:
    """The port, once it is told."""
    assert process.stderr is not None
    for line in process.stderr:
        told = re.search(r"listening on udp://127\.0\.0\.1:(\d+)", line)
        if told:
            return int(told[1])
    raise RuntimeError("the server did not start")


@contextmanager
def shared(loop: str, workers: int) -> Iterator[Workers]:
    """``UdpSocketServer`` with so many workers."""
    arguments = ("serve", "--bind", "127.0.0.1:0", "--loop", loop, "--workers", str(workers))
    with started(*arguments) as process:
        port = listening(process)
        pids = children(process.pid)
        yield Workers(port, pids if len(pids) >= workers else [process.pid])


@contextmanager
def reuse_port(loop: str, processes: int) -> Iterator[Workers]:
    """As many processes, each with a socket of its own on the port."""
    with ExitStack() as stack:
        port, pids = 0, []
        for _ in range(processes):
            process = stack.enter_context(started("own", loop, str(port)))
            port = listening(process)
            pids.append(process.pid)
        yield Workers(port, pids)


async def _own(port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    factory = partial(DatagramProtocol, consumer_factory=CountingEcho)
    async with DatagramServer(factory, sockets=[sock]):
        print(f"listening on udp://127.0.0.1:{sock.getsockname()[1]}", file=sys.stderr, flush=True)
        await asyncio.sleep(600.0)


def slice_of(workers: Workers, load: CompiledLoad, operations: int) -> tuple[float, float]:
    """Datagrams a second, and CPU microseconds of the workers for each."""
    cpu, wall = workers.cpu(), time.perf_counter()
    done = load.run(operations)
    wall = time.perf_counter() - wall
    return done / wall, 1e6 * (workers.cpu() - cpu) / done


def measure(loop: str, sockets: int, rounds: int, operations: int, program: str) -> Iterator[Any]:
    """One line for each way to serve, all of them measured in turns."""
    ways = {
        "1 worker": partial(shared, loop, 1),
        "2 workers, one socket": partial(shared, loop, 2),
        "2 processes, SO_REUSEPORT": partial(reuse_port, loop, 2),
    }
    with ExitStack() as stack:
        sides: list[tuple[str, Workers, CompiledLoad, dict[int, int]]] = []
        for name, way in ways.items():
            workers = stack.enter_context(way())
            load = CompiledLoad(program, ("127.0.0.1", workers.port), sockets)
            stack.callback(load.close)
            slice_of(workers, load, operations)
            sides.append((name, workers, load, workers.answered()))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, workers, load, _ in sides:
                taken[name].append(slice_of(workers, load, operations))
        first = [rate for rate, _ in taken["1 worker"]]
        for name, workers, _, before in sides:
            counts = [workers.answered()[pid] - before[pid] for pid in workers.pids]
            ratios = [rate / base for (rate, _), base in zip(taken[name], first, strict=True)]
            yield {
                "loop": loop,
                "client sockets": sockets,
                "served by": name,
                "rate": round(median(rate for rate, _ in taken[name])),
                "to 1 worker": round(median(ratios), 2),
                "smallest": round(min(ratios), 2),
                "largest": round(max(ratios), 2),
                "server us": round(median(cpu for _, cpu in taken[name]), 2),
                "shares": sorted((round(n / sum(counts), 2) for n in counts), reverse=True),
            }


def main() -> None:
    """Measure, and print a line of JSON for each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datagrams_workers")
    parser.add_argument("--loop", choices=("asyncio", "uvloop", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--operations", type=int, default=40_000, help="datagrams a slice")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        program = compiled(directory)
        if program is None:
            parser.error("it needs Linux and a C compiler, for the load")
        print(
            f"# datagrams of {SIZE} bytes, {os.cpu_count()} cores, Python {sys.version.split()[0]}"
        )
        for loop in loops.available() if options.loop == "both" else [options.loop]:
            for sockets in SOCKETS:
                case = (loop, sockets, options.rounds, options.operations, program)
                for line in measure(*case):
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", *rest]:
            sys.argv[1:] = rest
            UdpSocketServer(CountingEcho).start()
        case ["own", loop, port]:
            loops.run_in(loop, _own(int(port)))
        case _:
            main()
