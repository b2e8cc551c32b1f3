"""A server for tests: each line is a command.  What goes wrong is asked for in the environment.

=============  =====================================================
``pid``        the worker's process id
``echo TEXT``  the text
``sleep S``    an answer after S seconds, the loop going on
``block S``    the same, the loop being stuck
``deaf``       from now on no SIGTERM interrupts the thread of the loop
``die``        the process ends without an answer
``boom``       an exception
``who``        user and group ids
=============  =====================================================

``TOY_DIE_AFTER`` (seconds), ``TOY_FAIL_START``, ``TOY_SLOW_START``, ``TOY_IMPORT`` (``fail`` or
seconds; a file of that name is read when there is one).
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pulsar_client import DelimitedDecoder, ProtocolConsumer, SocketServer


def imported() -> None:
    """Be slow or fail, as the environment says, but in workers only."""
    what = os.environ.get("TOY_IMPORT", "")
    if what.startswith("/"):
        what = Path(what).read_text().strip()
    if __name__ == "__main__" or not what:
        return
    if what == "fail":
        raise ImportError("the toy is broken")
    time.sleep(float(what))


imported()
VERSION = Path(os.environ.get("TOY_VERSION_FILE", os.devnull)).read_text().strip()


class Toy(ProtocolConsumer):
    """One command."""

    task: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.decoder = DelimitedDecoder(b"\n", max_size=100_000)

    def data_received(self, data: bytes) -> bytes | None:
        if self.task is not None:
            return data
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.task = self.create_task(self.answer(*line.decode().split(" ", 1)))
        return rest

    async def answer(self, command: str, argument: str = "") -> None:
        reply = argument
        match command:
            case "pid":
                reply = str(os.getpid())
            case "version":
                reply = VERSION
            case "sleep":
                await asyncio.sleep(float(argument))
            case "block":
                time.sleep(float(argument))  # noqa: ASYNC251 - the loop shall be stuck
            case "deaf":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            case "die":
                os._exit(7)
            case "boom":
                raise RuntimeError("boom")
            case "who":
                reply = f"{os.getuid()} {os.getgid()} {sorted(os.getgroups())}"
            case "arguments":
                reply = " ".join(sys.argv[1:])
        self.write(reply.encode() + b"\n")
        self.finished()


class ToyServer(SocketServer):
    """Fails as the environment says."""

    async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
        if "TOY_FAIL_START" in os.environ:
            raise RuntimeError("the toy does not start")
        await super().worker_start(worker, exc)
        if "TOY_DIE_AFTER" in os.environ:
            after = float(os.environ["TOY_DIE_AFTER"])
            asyncio.get_running_loop().call_later(after, os._exit, 5)


if __name__ == "__main__":
    ToyServer(Toy, name="toy").start()
