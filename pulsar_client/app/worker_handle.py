"""The arbiter's side of one worker process: start it, hear it, signal it, know how it ended.

It does not decide when.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pulsar_client.app import scoreboard
from pulsar_client.app.channel import Channel
from pulsar_client.app.scoreboard import Scoreboard
from pulsar_client.app.worker import beat_interval
from pulsar_client.app.worker_process import BLOCKED, WorkerOrder

__all__ = ["WorkerHandle", "describe_status"]

logger = logging.getLogger("pulsar_client.app")

_BOOTSTRAP = str(Path(__file__).with_name("bootstrap.py"))
_MOST_STACKS = 2**16


class WorkerHandle:
    """One worker process; it runs when this has been made.

    Args:
        order: what it is told; the descriptors are filled in here.
        board: the scoreboard.
        lifeline: the read end of the pipe that ends with the arbiter.
        on_message: called with this and each message.

    Raises:
        OSError: the process can't be started.
        RuntimeError: the scoreboard is full.

    Attributes:
        state: ``starting``, ``ready``, ``retiring`` or ``stuck``.
        cause: why it ends, where the arbiter wants it to.
        signalled: somebody else has told it to end, by TERM or QUIT.
    """

    def __init__(
        self,
        order: WorkerOrder,
        board: Scoreboard,
        lifeline: int,
        on_message: Callable[["WorkerHandle", dict[str, Any]], object],
    ) -> None:
        self.idx = order.idx
        self.state = "starting"
        self.cause: str | None = None
        self.reason: str | None = None
        self.signalled = False
        self.born = time.monotonic()
        self.ready_at: float | None = None
        #: Its setting, whatever that of a later reload.
        self.timeout = order.settings.timeout
        self._beat_interval = beat_interval(order.settings)
        self.row = board.take()
        ours, theirs = socket.socketpair()
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115 - closed in ended()
        try:
            with theirs, tempfile.TemporaryFile() as file:
                order = replace(
                    order,
                    control=theirs.fileno(),
                    lifeline=lifeline,
                    board=board.descriptor,
                    row=self.row.index,
                    stacks=self._stacks.fileno(),
                )
                file.write(pickle.dumps(sys.path) + pickle.dumps(order))
                file.seek(0)
                self._popen = _start(order, file.fileno())
        except BaseException:
            ours.close()
            self._stacks.close()
            self.row.clear()
            raise
        self.pid = self._popen.pid
        self.channel = Channel(ours, lambda message: on_message(self, message), lambda: None)

    def __repr__(self) -> str:
        return f"<worker {self.idx} pid {self.pid}: {self.state}>"

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.born

    @property
    def life(self) -> float:
        """Seconds since it was ready; 0 if it never was."""
        return 0.0 if self.ready_at is None else time.monotonic() - self.ready_at

    @property
    def silence(self) -> float:
        """Seconds since its next beat was due; 0 until it is ready.

        The loop may have turned until that moment, so it is stuck for at least so long.  A slow
        import is no stuck loop.
        """
        if self.ready_at is None:
            return 0.0
        last = max(self.ready_at, self.row[scoreboard.BEAT] / 1e9)
        return max(0.0, time.monotonic() - last - self._beat_interval)

    def became_ready(self) -> None:
        """It accepts connections."""
        self.ready_at = time.monotonic()
        if self.state == "starting":
            self.state = "ready"

    def note(self, message: dict[str, Any]) -> None:
        """Keep what it tells of its end."""
        match message["say"]:
            case "signalled":
                self.signalled = True
            case "failed":
                self.reason = message["reason"]

    def stop(self, grace: float, cause: str, *, last: bool = False) -> None:
        """Tell it to finish what is in flight; one that does not serve yet is killed.

        Args:
            grace: seconds it gets.
            cause: why.
            last: no other worker will take what waits in the queues.
        """
        self.cause = self.cause or cause
        if self.ready_at is None:
            self.signal(signal.SIGKILL)
        else:
            self.channel.send(do="stop", grace=grace, last=last)
        if self.state != "stuck":
            self.state = "retiring"

    def signal(self, number: int) -> None:
        """Send a signal; one that is dead already gets none.

        The process can't be another one with the same id: it is not waited for yet.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Give its wait status if it has ended, once; None while it runs."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            status, pid = 0xFF00, self.pid  # somebody else has waited for it
        if pid == 0:
            return None
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        return status

    def kill(self) -> None:
        """Kill it; it is wanted so."""
        self.state = "retiring"
        self.signal(signal.SIGKILL)

    def end(self) -> None:
        """Kill it and wait for that, whatever state it is in."""
        self.signal(signal.SIGKILL)
        self._popen.wait()
        self.ended()

    def ended(self) -> str:
        """Take what it has left, once it has ended: what it said last, and its stacks."""
        self.channel.read()
        self.channel.close()
        self.row.clear()
        with self._stacks:
            # Written by it through the same open file: the position is behind the text.
            self._stacks.seek(0)
            return self._stacks.read(_MOST_STACKS).decode(errors="replace").strip()


def describe_status(status: int) -> str:
    """Say how a process ended: ``was killed by SIGKILL`` or ``ended with exit code 1``."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _start(order: WorkerOrder, file: int) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
        _BOOTSTRAP,
        str(file),
    ]
    inherited = [file, order.control, order.lifeline, order.board, order.stacks]
    inherited += [descriptor for group in order.sockets for descriptor in group]
    # Blocked signals are inherited: one that comes before the worker can handle it waits.
    blocked = {getattr(signal, name) for name in BLOCKED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        return subprocess.Popen(command, pass_fds=inherited, stdin=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
