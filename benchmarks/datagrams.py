"""F8: an echo of datagrams, and what it costs the server.

The load comes from a program in C where there is a compiler, else from a blocking socket here.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.pairing import Case, Goal, Side, Slice, cpu_of
from benchmarks.server_process import ServerProcess

__all__ = ["f8"]

WINDOW = 64
SIZE = 64
SOURCE = Path(__file__).with_name("udp_load.c")


def compiled(directory: str) -> str | None:
    """The load program; None where it can't be built."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    program = str(Path(directory) / "udp_load")
    done = subprocess.run(
        [compiler, "-O2", "-o", program, str(SOURCE)], capture_output=True, check=False
    )
    return program if done.returncode == 0 else None


class CompiledLoad:
    """The load program, running."""

    def __init__(self, program: str, address: tuple[str, int], sockets: int = 1) -> None:
        words = [program, address[0], str(address[1]), str(WINDOW), str(SIZE), str(sockets)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, operations: int) -> int:
        """Echo so many datagrams."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{operations}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().split()
        if not answer:
            raise RuntimeError("the load program ended")
        return int(answer[0])

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class BlockingLoad:
    """The same on a blocking socket: as fast as Python can."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.connect(address)
        self._sock.settimeout(0.2)

    def run(self, operations: int) -> int:
        """Echo so many datagrams."""
        send, receive = self._sock.send, self._sock.recv
        data = b"x" * SIZE
        done = 0
        for _ in range(min(WINDOW, operations)):
            send(data)
        while done < operations:
            try:
                receive(2000)
            except TimeoutError:
                for _ in range(min(WINDOW, operations - done)):
                    send(data)  # the window was lost
                continue
            done += 1
            if done + WINDOW <= operations:
                send(data)
        return done

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def served(load: CompiledLoad | BlockingLoad, operations: int, server: int) -> Side:
    """A slice: the server's CPU time, which on a core of its own is the inverse of its rate."""

    async def side() -> Slice:
        cpu = cpu_of(server)
        wall = time.perf_counter()
        done = load.run(operations)
        wall = time.perf_counter() - wall
        used = wall if cpu is None else (cpu_of(server) or 0.0) - cpu
        return Slice(done, used, wall)

    return side


@asynccontextmanager
async def f8(loop: str, operations: int, core: int | None) -> AsyncIterator[list[Case]]:
    """Our server, and the loop's own endpoint with a hand-written protocol, each on one core."""
    kinds = {"DatagramServer": "udp-library", "the loop's own endpoint": "udp-bare"}
    with ExitStack() as stack:
        program = compiled(stack.enter_context(tempfile.TemporaryDirectory()))
        notes = [] if program else ["F8: no C compiler, the load comes from Python and is slower"]
        sides: dict[str, Side] = {}
        for label, kind in kinds.items():
            server = stack.enter_context(ServerProcess(kind, loop, core))
            load = (
                BlockingLoad(server.address)
                if program is None
                else CompiledLoad(program, server.address)
            )
            stack.callback(load.close)
            sides[label] = served(load, operations, server.pid)
        goal = Goal(0.8 if loop == "uvloop" else 1.5, at_most=False)
        yield [
            Case(
                "F8",
                "UDP echo, window 64",
                loop,
                "DatagramServer",
                sides,
                {"the loop's own endpoint": goal},
                costs=False,
                notes=notes,
            )
        ]
