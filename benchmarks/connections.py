"""F7 and F9: what a connection costs a server, in memory when idle and in time at its begin."""

import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from benchmarks import bare
from benchmarks.pairing import Case, Goal, Side, Slice, cpu_of
from benchmarks.server_process import ServerProcess

__all__ = ["f7", "f9"]

MESSAGE = bytes(range(48, 112)) + bare.SEPARATOR
KINDS = {"TcpServer": "library", "hand-written": "bare"}
#: Connections before the first look at the memory: what every server makes once is made by then.
WARM_UP = 128
#: Connections that are opened together.
WAVE = 32
_PAGE = os.sysconf("SC_PAGE_SIZE")


def raise_file_limit() -> None:
    """Let this process have as many files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def dial(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, timeout=10.0)
    # With a reset in the end, so that no port is kept in TIME_WAIT.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return sock


def exchange(sock: socket.socket) -> None:
    sock.sendall(MESSAGE)
    if sock.recv(1000) != MESSAGE:
        raise RuntimeError("the answer is not what was sent")


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE


# F7


def idle(kind: str, loop: str, core: int | None, count: int, used: bool) -> Side:
    """Bytes that so many idle connections take in a new server; the slice has them as its cost."""

    async def side() -> Slice:
        with ExitStack() as stack:
            server = stack.enter_context(ServerProcess(kind, loop, core))
            for number in range(WARM_UP + count):
                sock = stack.enter_context(dial(server.address))
                if used or (number + 1) % WAVE == 0:
                    exchange(sock)  # the others before it are accepted then: the queue is short
                if number + 1 == WARM_UP:
                    before = resident(server.pid)
            return Slice(count, (resident(server.pid) - before) / 1e6)

    return side


@asynccontextmanager
async def f7(loop: str, count: int, core: int | None) -> AsyncIterator[list[Case]]:
    """Memory of ``count`` idle connections, each time in a process that has had no others."""
    raise_file_limit()
    cases = []
    if sys.platform == "linux":
        for name, used in (
            ("idle connection, not used yet", False),
            ("idle after a request", True),
        ):
            cases.append(
                Case(
                    "F7",
                    name,
                    loop,
                    "TcpServer",
                    sides={
                        label: idle(kind, loop, core, count, used) for label, kind in KINDS.items()
                    },
                    goals={"hand-written": Goal(1.5, at_most=True, above=1200.0)},
                    unit="bytes a connection",
                )
            )
    yield cases


# F9


def accepted(server: ServerProcess, count: int) -> Callable[[], Awaitable[Slice]]:
    """CPU time of a server for so many connections that make one request each."""

    async def side() -> Slice:
        waves = max(1, count // WAVE)
        cpu = cpu_of(server.pid)
        wall = time.perf_counter()
        for _ in range(waves):
            found = []
            for _ in range(WAVE):
                sock = dial(server.address)
                sock.sendall(MESSAGE)
                found.append(sock)
            for sock in found:
                if sock.recv(1000) != MESSAGE:
                    raise RuntimeError("the answer is not what was sent")
                sock.close()
        wall = time.perf_counter() - wall
        used = wall if cpu is None else (cpu_of(server.pid) or 0.0) - cpu
        return Slice(waves * WAVE, used, wall)

    return side


@asynccontextmanager
async def f9(loop: str, count: int, core: int | None) -> AsyncIterator[list[Case]]:
    """New connections at one worker, each with one request."""
    with ExitStack() as stack:
        sides: dict[str, Side] = {
            label: accepted(stack.enter_context(ServerProcess(kind, loop, core)), count)
            for label, kind in KINDS.items()
        }
        goals: dict[str, Goal | None] = {"hand-written": Goal(0.9, at_most=False)}
        yield [Case("F9", "new connection, one request", loop, "TcpServer", sides, goals)]
