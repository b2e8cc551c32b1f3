"""What the tests of the load harness share."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from examples.echo.manage import server
from pulsar_client import load

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40

#: A loaded machine must not make a test fail: it is not what these tests are about.
LENIENT = load.Limits(lateness=30.0, loop_lag=30.0, cpu=1000.0)
#: The same for the command.
LENIENT_OPTIONS = ("--max-lateness=30s", "--max-loop-lag=30s", "--max-cpu=1000")


@asynccontextmanager
async def echo_target(**kw: Any) -> AsyncIterator[str]:
    """Run an echo server in this loop; give its URL."""
    async with server(**kw) as running:
        host, port = running.address[:2]
        yield f"tcp://{host}:{port}"


def plan(target: str | None, **kw: Any) -> load.Plan:
    """Make a plan for a short run against an echo server."""
    values: dict[str, Any] = {
        "target": target,
        "protocol": "echo" if target is not None else None,
        "duration": 0.5,
        "connections": 4,
        "limits": LENIENT,
        **kw,
    }
    return load.Plan(**values)


def load_command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "pulsar_client", "load", *arguments]


def run_load(*arguments: str, lenient: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    limits = LENIENT_OPTIONS if lenient else ()
    return subprocess.run(
        load_command(*arguments, *limits),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@contextmanager
def echo_process() -> Iterator[tuple[str, int]]:
    """Run an echo server in a process of its own; give its URL and its pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.echo.manage", "-b=127.0.0.1:0", "--concurrency=thread"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "listening on" in line)
        yield line.split()[-1], process.pid
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        process.stderr.close()


@contextmanager
def refused() -> Iterator[str]:
    """Give the URL of a port where nobody listens, and where nobody can begin to."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{nobody.getsockname()[1]}"


async def until(condition: Any) -> None:
    """Wait, with a limit, until a condition holds that nothing tells of."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)
