"""Real servers for the tests: ``redis-server`` and ``memcached`` as children on free ports.

Not a test module.  Where a server is not installed its tests are skipped, unless
PULSAR_CLIENT_REQUIRE_SERVERS is set: then they fail.
"""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

START_LIMIT = 20.0
STOP_LIMIT = 20.0
#: Chosen by us and taken by somebody else before the server could bind it.
PORT_TRIES = 5


def required(program: str) -> str:
    """The path of a program; without it the test is skipped, or fails where it must run."""
    path = shutil.which(program)
    if path is not None:
        return path
    reason = f"{program} is not installed"
    if os.environ.get("PULSAR_CLIENT_REQUIRE_SERVERS", "0") not in ("", "0"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_loopback_port() -> int:
    """A TCP port of the loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class RealServer:
    """A server process: ``with RedisProcess(directory) as server``; restartable on its port."""

    program: str

    def __init__(self, directory: Path, *options: str) -> None:
        self.path = required(self.program)
        self.directory = directory
        self.options = options
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens in plain text."""
        return "127.0.0.1", self.port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def command(self) -> Sequence[str]:
        """The command line, for ``self.port``."""
        raise NotImplementedError

    def answers(self, sock: socket.socket) -> bool:
        """True if the server is ready for clients."""
        raise NotImplementedError

    def start(self) -> None:
        """Start, on the port it had before if it had one, and wait until it answers."""
        again = self.port != 0
        for _ in range(PORT_TRIES):
            if not again:
                self.port = free_loopback_port()
            with (self.directory / "output").open("ab") as output:
                self.process = subprocess.Popen(
                    self.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.directory,
                )
            if self._ready():
                return
            self.stop(signal.SIGKILL)
        raise RuntimeError(
            f"{self.program} did not start:\n{(self.directory / 'output').read_text()}"
        )

    def _ready(self) -> bool:
        assert self.process is not None
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and self.process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(self.address, timeout=1.0) as sock,
            ):
                if self.answers(sock):
                    return True
            # Neither of the two says when it listens: one can only ask again.
            time.sleep(0.01)
        return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait for the end."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class RedisProcess(RealServer):
    """A ``redis-server`` that keeps nothing on disk and takes DEBUG commands.

    Args:
        directory: for its output, its socket file and its certificates; must be empty.
        *options: of its command line.
        certificate: a context manager's result with PEM text of chain and key, for a TLS port.
        password: of its default user.
    """

    program = "redis-server"

    def __init__(
        self,
        directory: Path,
        *options: str,
        certificate: bytes | None = None,
        password: str | None = None,
    ) -> None:
        super().__init__(directory, *options)
        self.password = password
        self.tls_port = 0
        self.certificate = certificate
        if certificate is not None:
            (directory / "server.pem").write_bytes(certificate)

    @property
    def unix_path(self) -> str:
        """The path of its unix socket."""
        return str(self.directory / "s")

    def command(self) -> Sequence[str]:
        words = [self.path, "--port", str(self.port), "--bind", "127.0.0.1"]
        words += ["--unixsocket", "s", "--save", "", "--appendonly", "no"]
        words += ["--enable-debug-command", "yes"]
        if self.password is not None:
            words += ["--requirepass", self.password]
        if self.certificate is not None:
            if not self.tls_port:
                self.tls_port = free_loopback_port()
            words += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
            words += ["--tls-cert-file", "server.pem", "--tls-key-file", "server.pem"]
            words += ["--tls-ca-cert-file", "server.pem"]
        return [*words, *self.options]

    def answers(self, sock: socket.socket) -> bool:
        sock.sendall(b"PING\r\n")
        # Without a password that is an error, which is as good.
        return sock.recv(100).startswith((b"+PONG", b"-NOAUTH"))


class MemcachedProcess(RealServer):
    """A ``memcached`` without UDP."""

    program = "memcached"

    def command(self) -> Sequence[str]:
        words = [self.path, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-t", "1"]
        if os.geteuid() == 0:
            words += ["-u", "root"]  # it refuses to run as root unless it is told
        return [*words, *self.options]

    def answers(self, sock: socket.socket) -> bool:
        sock.sendall(b"version\r\n")
        return sock.recv(100).startswith(b"VERSION")


def trusting(certificate: bytes) -> ssl.SSLContext:
    """A client's context that trusts what a PEM text holds."""
    return ssl.create_default_context(cadata=certificate.decode())
