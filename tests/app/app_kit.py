"""Runs applications as their users do: a process, its lines on standard error, its signals."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).with_name("toy_server.py")
#: Seconds for whatever should take much less.
LIMIT = 30.0
#: A ``--timeout`` that no worker exceeds because a busy machine gives it no time.
LONGER_THAN_HELD_UP = "5"


class App:
    """A server process; as a context manager it is killed at the end, with all its workers.

    Args:
        *arguments: its command line.
        program: what to run: a script, or ``-m`` and a module.
        env: further environment variables.
        bind: the address, or None to leave it to the arguments.
        concurrency: ``process`` or ``thread``.
    """

    def __init__(
        self,
        *arguments: str,
        program: tuple[str, ...] = (str(TOY),),
        env: dict[str, str] | None = None,
        bind: str | None = "127.0.0.1:0",
        concurrency: str = "process",
        pass_fds: tuple[int, ...] = (),
        prefix: tuple[str, ...] = (),
    ) -> None:
        command = [*prefix, sys.executable, "-W", "error", *program]
        if bind is not None:
            command += ["--bind", bind]
        command += ["--concurrency", concurrency, *arguments]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PULSAR_")}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**clean, "PYTHONPATH": str(ROOT), "TMPDIR": clean.get("TMPDIR", "/tmp")}
            | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        if error is not None:
            print("\n".join(self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    # Its lines

    def text(self) -> str:
        """Everything it wrote so far."""
        with self._changed:
            return "\n".join(self.lines)

    def last_line(self) -> str:
        """The last one it wrote, once it has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, LIMIT)
            return self.lines[-1]

    def wait_line(self, pattern: str, *, count: int = 1, limit: float = LIMIT) -> re.Match[str]:
        """Wait for the line with the pattern, the count-th one; give the match."""

        def found() -> list[re.Match[str]]:
            return [m for line in self.lines if (m := re.search(pattern, line))]

        with self._changed:
            ok = self._changed.wait_for(lambda: len(found()) >= count or self._ended, limit)
            matches = found()
        if len(matches) < count:
            raise AssertionError(
                f"{pattern!r} {'did not come' if not ok else 'never came'}:\n{self.text()}"
            )
        return matches[count - 1]

    def ready(self) -> "Self":
        """Wait until it serves."""
        try:
            self.wait_line("listening on ")
        except BaseException as exc:
            self.__exit__(type(exc), exc, None)  # nobody has entered it yet
            raise
        return self

    @property
    def url(self) -> str:
        return self.wait_line(r"listening on (\S+)")[1]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.partition("://")[2].rpartition(":")
        return host.strip("[]"), int(port)

    # Its processes

    @property
    def pid(self) -> int:
        return self.process.pid

    def workers(self) -> set[int]:
        """The pids of the worker processes that there are."""
        return {pid for pid in children(self.pid) if not is_zombie(pid)}

    def kill(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, limit: float = LIMIT) -> int:
        """Wait for its end; give the exit code."""
        return self.process.wait(limit)

    def stop(self, number: int = signal.SIGTERM, limit: float = LIMIT) -> tuple[int, float]:
        """Send a signal and wait for the end; give exit code and seconds."""
        started = time.monotonic()
        self.kill(number)
        return self.wait(limit), time.monotonic() - started

    # Its clients

    def connect(self) -> socket.socket:
        """Connect to its first address."""
        if self.url.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(LIMIT)
            sock.connect(self.url.removeprefix("unix:"))
            return sock
        return socket.create_connection(self.address, LIMIT)

    def ask(self, line: str, tls: ssl.SSLContext | None = None) -> str:
        """One request on a connection of its own."""
        sock = self.connect()
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname="localhost")
        with sock:
            return ask(sock, line)


def ask(sock: socket.socket, line: str) -> str:
    """Send a line; give the line that is the reply, empty if the connection ended."""
    sock.sendall(line.encode() + b"\n")
    return read_line(sock)


def read_line(sock: socket.socket) -> str:
    received = b""
    while not received.endswith(b"\n"):
        data = sock.recv(65536)
        if not data:
            break
        received += data
    return received.decode().rstrip("\n")


def children(pid: int) -> list[int]:
    """The pids of the children of a process, zombies included."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(text) for text in listing.read_text().split()]
        except OSError:
            pass
    return found


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def is_alive(pid: int) -> bool:
    return not is_zombie(pid)


def until(condition: Callable[[], object], limit: float = LIMIT, what: str = "") -> float:
    """Poll until the condition holds; give the seconds it took.

    For states of other processes, which tell nobody when they change.
    """
    started = time.monotonic()
    for _ in ticks(limit):
        if condition():
            return time.monotonic() - started
    raise AssertionError(f"not within {limit:g} s: {what or condition}")


def ticks(limit: float) -> Iterator[None]:
    end = time.monotonic() + limit
    event = threading.Event()
    while time.monotonic() < end:
        yield
        event.wait(0.01)
