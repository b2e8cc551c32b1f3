"""A server for tests: each line is a command.  What goes wrong is asked for in the environment.

=============  =====================================================
``pid``        the worker's process id
``echo TEXT``  the text
``sleep S``    an answer after S seconds, the loop going on
``block S``    the same, the loop being stuck
``thread S``   the same, a thread being stuck
``mute``       from now on whoever logs in another thread waits for ever
``deaf``       from now on no SIGTERM interrupts the thread of the loop
``usr2``       a signal handler of the application's own: an answer at each SIGUSR2
``die [N]``    the process ends without an answer, with exit code N or 7
``boom``       an exception
``who``        user and group ids
=============  =====================================================

``TOY_DIE_AFTER`` (seconds), ``TOY_FAIL_MONITOR``, ``TOY_FAIL_START``, ``TOY_SLOW_START``,
``TOY_IMPORT`` (``fail`` or seconds; a file of that name is read when there is one).

``TOY_DIE_AFTER`` may name a file too.  ``TOY_FIRST_BYTE_GRACE`` (seconds) is of the servers, and
``TOY_CONSTANTS`` of the first process: ``arbiter._KILL_AFTER=60`` and the like.  With them a test
can tell who ends something first, however late a process of a busy machine gets its turn.
"""

import asyncio
import importlib
import logging
import os
import signal
import sys
import time
from typing import Any

from pulsar_client import DelimitedDecoder, ProtocolConsumer, SocketServer


# Nothing is imported that a worker has not: one that has given up root may be unable to read the
# interpreter's own modules.
def text_of(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def from_environment(name: str) -> str:
    """The value, or the text of the file that it names."""
    value = os.environ.get(name, "")
    return text_of(value) if value.startswith("/") else value


def set_constants() -> None:
    """Set constants of the process that starts first, as the environment says."""
    for item in os.environ.get("TOY_CONSTANTS", "").split():
        name, _, value = item.partition("=")
        module, _, constant = name.partition(".")
        found = importlib.import_module(f"pulsar_client.app.{module}")
        getattr(found, constant)  # a name that is not there must not be set
        setattr(found, constant, float(value))


def imported() -> None:
    """Be slow or fail, as the environment says, but in workers only."""
    what = from_environment("TOY_IMPORT")
    if __name__ == "__main__" or not what:
        return
    if what == "fail":
        raise ImportError("the toy is broken")
    time.sleep(float(what))


imported()
VERSION = text_of(os.environ.get("TOY_VERSION_FILE", os.devnull))


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
            case "thread":
                await asyncio.to_thread(time.sleep, float(argument))
            case "mute":
                logging.getLogger().handlers[0].acquire()
            case "deaf":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            case "usr2":
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGUSR2, self.connection.write, b"usr2\n")
            case "die":
                os._exit(int(argument or 7))
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

    async def monitor_start(self, monitor: Any) -> None:
        if "TOY_FAIL_MONITOR" in os.environ:
            raise RuntimeError("the toy has no monitor")

    async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
        if "TOY_FAIL_START" in os.environ:
            raise RuntimeError("the toy does not start")
        await super().worker_start(worker, exc)
        if "TOY_FIRST_BYTE_GRACE" in os.environ:
            for server in worker.servers:
                server.first_byte_grace = float(os.environ["TOY_FIRST_BYTE_GRACE"])
        if after := from_environment("TOY_DIE_AFTER"):
            asyncio.get_running_loop().call_later(float(after), os._exit, 5)


if __name__ == "__main__":
    set_constants()
    ToyServer(Toy, name="toy").start()
