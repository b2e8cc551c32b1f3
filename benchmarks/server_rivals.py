"""The servers that are compared: their commands, and a running one."""

import asyncio
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["RIVALS", "Rival", "Running", "Settings", "free_port"]

ROOT = Path(__file__).parents[1]
START = 60.0
APP = "benchmarks.server_app:app"


@dataclass(frozen=True)
class Settings:
    """What is set alike at all servers; None is the server's own default."""

    workers: int = 4
    #: Seconds after which a worker that does not answer is replaced.
    timeout: int | None = None
    #: Seconds that requests in flight may take at the end.
    graceful: int | None = None
    #: Seconds after which each worker dies.
    die_after: float | None = None


@dataclass(frozen=True)
class Rival:
    """A server: the packages it needs, and its command line."""

    name: str
    packages: tuple[str, ...]
    command: Callable[[int, Settings], list[str]]
    #: Whether a setting has the loop of a worker watched.
    has_timeout: bool = True

    def version(self) -> str | None:
        """The versions of its packages, or None where one is missing."""
        try:
            return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in self.packages)
        except importlib.metadata.PackageNotFoundError:
            return None


def _flags(**values: int | None) -> list[str]:
    flags = []
    for name, value in values.items():
        if value is not None:
            flags += ["--" + name.replace("_", "-"), str(value)]
    return flags


def _ours(port: int, to: Settings) -> list[str]:
    return [
        *("benchmarks.server_ours", "--bind", f"127.0.0.1:{port}"),
        *_flags(workers=to.workers, timeout=to.timeout, graceful_timeout=to.graceful),
    ]


def _gunicorn(worker: str) -> Callable[[int, Settings], list[str]]:
    def command(port: int, to: Settings) -> list[str]:
        return [
            *("gunicorn", APP, "--bind", f"127.0.0.1:{port}", "--worker-class", worker),
            *("--log-level", "warning", "--no-control-socket"),
            *_flags(workers=to.workers, timeout=to.timeout, graceful_timeout=to.graceful),
        ]

    return command


def _uvicorn(port: int, to: Settings) -> list[str]:
    return [
        *("uvicorn", APP, "--port", str(port), "--log-level", "warning"),
        *_flags(
            workers=to.workers,
            timeout_worker_healthcheck=to.timeout,
            timeout_graceful_shutdown=to.graceful,
        ),
    ]


def _hypercorn(port: int, to: Settings) -> list[str]:
    return [
        *("hypercorn", APP, "--bind", f"127.0.0.1:{port}", "--log-level", "warning"),
        *_flags(workers=to.workers, graceful_timeout=to.graceful),
    ]


def _granian(port: int, to: Settings) -> list[str]:
    return [
        *("granian", APP, "--interface", "asgi", "--port", str(port), "--log-level", "warning"),
        "--respawn-failed-workers",  # by default the server ends with its first dead worker
        *_flags(workers=to.workers, workers_kill_timeout=to.graceful),
    ]


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("ours", ("pulsar-client-sdk",), _ours),
        Rival("gunicorn", ("gunicorn",), _gunicorn("asgi")),
        Rival(
            "gunicorn+uvicorn",
            ("gunicorn", "uvicorn-worker"),
            _gunicorn("uvicorn_worker.UvicornWorker"),
        ),
        Rival("uvicorn", ("uvicorn",), _uvicorn),
        Rival("hypercorn", ("hypercorn",), _hypercorn, has_timeout=False),
        Rival("granian", ("granian",), _granian, has_timeout=False),
    )
}


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Running:
    """A server that runs, in a process group of its own, which ends with the block."""

    def __init__(self, rival: Rival, settings: Settings) -> None:
        self.rival = rival
        self.settings = settings
        self.port = free_port()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self._record = Path(self._folder.name, "record")
        self._record.touch()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PULSAR_")}
        environment["SERVERS_RECORD"] = str(self._record)
        if self.settings.die_after is not None:
            environment["SERVERS_DIE_AFTER"] = str(self.settings.die_after)
        self._log = Path(self._folder.name, "log").open("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.rival.command(self.port, self.settings)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._log.close()
        self._folder.cleanup()

    def recorded(self, what: str) -> list[int]:
        """The processes that have recorded it, in order."""
        lines = self._record.read_text(encoding="utf-8").splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith(what)]

    async def until(self, condition: Callable[[], bool], limit: float) -> bool:
        """Wait until the condition holds; False if it does not in so many seconds."""
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.005)
        return True

    @property
    def ended(self) -> bool:
        """Whether the server's first process has ended."""
        return self.process.poll() is not None

    async def started(self) -> list[int]:
        """Wait until all workers have started; give their process ids.

        Raises:
            RuntimeError: they have not, with the end of the log.
        """
        workers = self.settings.workers
        ok = await self.until(lambda: len(self.recorded("boot")) >= workers or self.ended, START)
        if not ok or self.ended:
            self._log.seek(0)
            raise RuntimeError(f"{self.rival.name} did not start:\n{self._log.read()[-2000:]}")
        return self.recorded("boot")
