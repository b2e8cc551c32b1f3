"""A worker's process: from its first import to its exit code.

The arbiter starts a fresh interpreter, which comes here with an order.  The steps have an order of
their own: the rights of root go before any code of the application is imported.
"""

import asyncio
import contextlib
import faulthandler
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

from pulsar_client.app import logs
from pulsar_client.app.certificates import Certificates
from pulsar_client.app.channel import Channel
from pulsar_client.app.fair_share import FairShare
from pulsar_client.app.main_module import MainModule
from pulsar_client.app.privileges import Identity
from pulsar_client.app.scoreboard import Scoreboard
from pulsar_client.app.settings import Settings
from pulsar_client.app.worker import Worker

__all__ = ["WorkerOrder", "loop_factory", "main", "reason_of"]

logger = logging.getLogger("pulsar_client.app")

#: Seconds from the death of the arbiter to the end of its workers at the latest (P12).
_ORPHAN_TIME = 1.0

#: Signals that are blocked from before the process exists until it can handle them.
BLOCKED = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1")


@dataclass(frozen=True)
class WorkerOrder:
    """What a worker is told when it is started.

    Attributes:
        application: the pickled application.
        main: the main program, if the application is to be found there.
        arguments: the command line of the arbiter, as ``sys.argv``.
        settings: the settings.
        certificates: for TLS.
        identity: who to become.
        sockets: descriptors of the listening sockets, a list for each address of ``bind``.
        control: descriptor of the channel to the arbiter.
        lifeline: descriptor of a pipe that ends when the arbiter dies.
        board: descriptor of the scoreboard.
        row: its row there.
        stacks: descriptor of the file for the stacks of a stuck or broken process.
        idx: which of the workers it is.
    """

    application: bytes
    main: MainModule | None
    arguments: list[str]
    settings: Settings
    certificates: Certificates | None
    identity: Identity | None
    sockets: list[list[int]]
    control: int
    lifeline: int
    board: int
    row: int
    stacks: int
    idx: int


def main(file: IO[bytes]) -> int:
    """Carry out the order in the file; give the exit code."""
    order: WorkerOrder = pickle.load(file)
    file.close()  # the key of the certificate is in it
    sys.argv[:] = order.arguments
    for fd in (order.control, order.lifeline, order.board, order.stacks, *chain(*order.sockets)):
        os.set_inheritable(fd, False)  # this process may start programs of its own
    for name in ("SIGINT", "SIGHUP"):
        # They reach the whole process group from a terminal: the arbiter says what to do then.
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    faulthandler.enable(order.stacks, all_threads=True)
    control = socket.socket(fileno=order.control)
    process = _Process(order, control)
    watcher = threading.Thread(
        target=process.watch_lifeline, name="lifeline of the arbiter", daemon=True
    )
    watcher.start()
    try:
        process.prepare()
        with asyncio.Runner(loop_factory=loop_factory(order.settings.loop)) as runner:
            runner.run(process.run())
    except Exception as error:
        logger.exception("worker %d failed", order.idx)
        process.say(say="failed", reason=reason_of(error))
        return 1
    except SystemExit as error:
        process.say(say="failed", reason=f"the code of the application ended with exit {error}")
        return 1
    return 0


class _Process:
    """The state of this process while it carries out its order."""

    def __init__(self, order: WorkerOrder, control: socket.socket) -> None:
        self.order = order
        self.control = control
        self.channel: Channel | None = None
        self.worker: Worker | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.log_file: logs.LogFile | None = None

    def prepare(self) -> None:
        """Do what can be done without a loop."""
        order = self.order
        settings = order.settings
        if settings.log_file is not None:
            self.log_file = logs.configure(settings)
        certificates = order.certificates
        context = None if certificates is None else certificates.context(settings)
        if order.identity is not None:
            order.identity.assume()
        try:
            if order.main is not None:
                order.main.run()
            application = pickle.loads(order.application)
        finally:
            # After the application, which may have its own idea of logging.
            if settings.log_file is None:
                logs.configure(settings)
        board = Scoreboard(order.board)
        row = board.row(order.row)
        sockets = [[socket.socket(fileno=fd) for fd in group] for group in order.sockets]
        self.worker = Worker(
            application, settings, sockets, sslcontext=context, idx=order.idx, row=row
        )
        self.worker.share = FairShare(board, row)

    async def run(self) -> None:
        """Serve until told to stop."""
        worker = self.worker
        assert worker is not None
        loop = self.loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGQUIT"):
            number = getattr(signal, name)
            loop.add_signal_handler(number, self._on_signal, number)
        if hasattr(signal, "SIGUSR1"):
            loop.add_signal_handler(signal.SIGUSR1, self._reopen)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {getattr(signal, name) for name in BLOCKED})
        self.channel = Channel(self.control, self._on_message, lambda: worker.stop(0.0))
        worker.on_closed = lambda: self.say(say="closed")
        worker.on_enough_requests = lambda: self.say(say="enough")
        try:
            await worker.serve(lambda: self.say(say="ready"))
        except Exception as error:
            logger.exception("worker %d failed", worker.idx)
            self.say(say="failed", reason=reason_of(error))
            # Said already: no need to say it again, with another traceback.
            raise SystemExit(1) from None
        finally:
            self.channel.close()

    def say(self, **message: Any) -> None:
        """Tell the arbiter."""
        if self.channel is not None:
            self.channel.send(**message)
            return
        import json

        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode() + b"\n")

    def _on_message(self, message: dict[str, Any]) -> None:
        assert self.worker is not None
        match message["do"]:
            case "stop":
                self.worker.stop(message["grace"], last=message["last"])
            case "reopen":
                self._reopen()

    def _on_signal(self, number: int) -> None:
        assert self.worker is not None
        self.say(say="signalled")
        self.worker.on_signal(number)

    def _reopen(self) -> None:
        if self.log_file is not None:
            self.log_file.reopen()

    def watch_lifeline(self) -> None:
        """Wait, in a thread, for the death of the arbiter, and end the process.

        The loop may be stuck, or not be there yet: then a thread still can.
        """
        with contextlib.suppress(OSError):
            os.read(self.order.lifeline, 1)
        loop = self.loop
        if loop is not None and self.worker is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self.worker.stop, 0.0)
            threading.Event().wait(_ORPHAN_TIME)
        os._exit(1)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give what makes the event loop of the setting; None for asyncio's own.

    Raises:
        ImportError: uvloop is asked for and not installed.
    """
    if name == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if name == "uvloop":
            raise ImportError("loop is 'uvloop', and uvloop is not installed") from None
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def reason_of(error: BaseException) -> str:
    """Say in one line what went wrong."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
