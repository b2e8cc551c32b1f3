"""A clean child process that makes one share of a run.

It speaks in lines of JSON: it reads ``plan``, ``ping``, ``start`` and ``stop`` from its standard
input, and writes ``ready`` or ``failed``, ``pong``, ``interval`` and ``end`` to its standard
output.  When its input ends, whoever started it is gone, and it stops.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.coordinator import LINE_LIMIT, READY_WITHIN
from pulsar_client.load.event_loops import loop_factory
from pulsar_client.load.plan import Plan
from pulsar_client.load.session import Session, Stop, TargetUnreachable

__all__ = ["main"]


#: Seconds after which nobody is taken to be there who would say when to start.
_START_WITHIN = 2 * READY_WITHIN


class _Output(asyncio.BaseProtocol):
    """Knows when the pipe has taken everything and is closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        """The pipe is closed."""
        self.closed.set()


class _Pipes:
    """The standard input and output of this process, as lines of JSON."""

    def __init__(self) -> None:
        # What a scenario prints must not come between the lines: it goes to standard error.
        self._output = os.dup(1)
        os.dup2(2, 1)
        self._writer: asyncio.WriteTransport
        self._written: _Output
        self._reader = asyncio.StreamReader(limit=LINE_LIMIT)

    async def open(self) -> None:
        """Attach them to the running loop."""
        loop = asyncio.get_running_loop()
        self._writer, self._written = await loop.connect_write_pipe(
            _Output, os.fdopen(self._output, "wb", 0)
        )
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reader), sys.stdin.buffer
        )

    def say(self, kind: str, **data: Any) -> None:
        """Write a line; it is never waited for."""
        line = json.dumps({"type": kind, **data}, separators=(",", ":")) + "\n"
        self._writer.write(line.encode())

    async def hear(self) -> dict[str, Any] | None:
        """Read a line; None at the end of the input."""
        line = await self._reader.readline()
        message: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return message

    async def close(self) -> None:
        """Let the last line out."""
        self._writer.close()
        await self._written.closed.wait()


async def _work(bootstrap: dict[str, Any], pipes: _Pipes) -> None:
    stop = Stop()
    started: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    listener = asyncio.create_task(_listen(pipes, stop, started))
    try:
        session = Session(
            Plan.from_json(bootstrap["plan"]),
            index=bootstrap["index"],
            count=bootstrap["count"],
            stop=stop,
        )
        async with session.prepared():
            gc.collect()
            gc.freeze()
            pipes.say("ready")
            async with asyncio.timeout(_START_WITHIN):
                at = await started
            if stop.requested and at <= 0:
                return
            end = await session.run(
                lambda interval: pipes.say("interval", interval=interval.as_json()), at
            )
        pipes.say(
            "end",
            health=end.health.as_json(),
            elapsed=end.elapsed,
            interrupted=end.interrupted,
            marks=[asdict(mark) for mark in end.marks],
        )
    except (TargetUnreachable, ConfigError) as exc:
        reason = "unreachable" if isinstance(exc, TargetUnreachable) else "config"
        pipes.say("failed", reason=reason, text=str(exc))
    finally:
        listener.cancel()
        await asyncio.wait([listener])


async def _listen(pipes: _Pipes, stop: Stop, started: "asyncio.Future[float]") -> None:
    while (message := await pipes.hear()) is not None:
        kind = message["type"]
        if kind == "ping":
            pipes.say("pong", sent=message["sent"], clock=time.monotonic())
        elif kind == "start":
            started.set_result(message["at"])
        elif kind == "stop":
            break
    stop.request()
    if not started.done():
        started.set_result(0.0)


async def _main() -> None:
    pipes = _Pipes()
    await pipes.open()
    bootstrap = await pipes.hear()
    if bootstrap is None:
        return
    try:
        await _work(bootstrap, pipes)
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await pipes.close()


def main() -> None:
    """Do what the lines of the standard input say, until the end of it."""
    # Ctrl-C reaches every process of a terminal; this one is told by who started it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name = sys.argv[1] if len(sys.argv) > 1 else "auto"
    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        runner.run(_main())


if __name__ == "__main__":
    main()
