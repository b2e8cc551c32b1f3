"""An echo server in a process of its own: ``python -m benchmarks.server_process KIND LOOP CORE``.

It prints its port and serves until its standard input ends, ten minutes at most.
"""

import asyncio
import os
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self

from benchmarks.bare import EchoServer, JoinedEchoServer
from benchmarks.loops import run_in

__all__ = ["KINDS", "ServerProcess", "pin"]

LIFE = 600.0


def _certified() -> ssl.SSLContext:
    """A context with a certificate that was made for it."""
    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


async def _bare(
    factory: Callable[[], asyncio.Protocol], sslcontext: ssl.SSLContext | None = None
) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=sslcontext)
    await _serve(server.sockets[0].getsockname()[1])
    server.close()


async def _library(sslcontext: ssl.SSLContext | None = None) -> None:
    from examples.echo.manage import server

    running = server(("127.0.0.1", 0))
    await running.start_serving(sslcontext=sslcontext)
    async with running:
        await _serve(running.address[1])


class _BareDatagrams(asyncio.DatagramProtocol):
    """A hand-written echo of datagrams."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


async def _bare_datagrams() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
    sock.bind(("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_BareDatagrams, sock=sock)
    await _serve(sock.getsockname()[1])
    transport.close()


async def _datagrams() -> None:
    from pulsar_client import DatagramProtocol, DatagramServer, ProtocolConsumer

    class Echo(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(data)
            self.finished()

    factory = partial(DatagramProtocol, consumer_factory=Echo)
    async with DatagramServer(factory, address=("127.0.0.1", 0)) as running:
        await _serve(running.address[1])


async def _redis_library() -> None:
    from examples.redis_server import RedisServer

    async with RedisServer() as running:
        await _serve(running.address[1])


def _redis_bare() -> Coroutine[Any, Any, None]:
    from benchmarks.redis_bare import BareRedis

    return _bare(BareRedis)


async def _serve(port: int) -> None:
    """Tell the port, and return when the parent is gone or has closed the pipe."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(0, done.set)
    print(port, flush=True)
    try:
        async with asyncio.timeout(LIFE):
            await done.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(0)


KINDS: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "bare": lambda: _bare(EchoServer),
    "bare-joined": lambda: _bare(JoinedEchoServer),
    "library": _library,
    "tls-bare": lambda: _bare(EchoServer, _certified()),
    "tls-library": lambda: _library(_certified()),
    "udp-bare": _bare_datagrams,
    "udp-library": _datagrams,
    "redis-library": _redis_library,
    "redis-bare": _redis_bare,
}


def pin(core: int | None) -> None:
    """Keep this process on one core, where that can be asked for."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


class ServerProcess:
    """Starts a server and ends it: ``with ServerProcess("bare", "asyncio", 0) as server``."""

    def __init__(self, kind: str, loop: str, core: int | None) -> None:
        self._command = [sys.executable, "-m", "benchmarks.server_process", kind, loop]
        self._command.append("" if core is None else str(core))

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._end()
            raise RuntimeError(f"{' '.join(self._command)}: it did not start")
        self.address = ("127.0.0.1", int(line))
        self.pid = self._process.pid
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


if __name__ == "__main__":
    _kind, _loop, _core = sys.argv[1:]
    pin(int(_core) if _core else None)
    _, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))
    run_in(_loop, KINDS[_kind]())
