"""The echo server, as it serves in production: ``python -m examples.echo.manage --help``."""

from functools import partial
from typing import Any

from examples.echo.client import Echo
from examples.echo.protocol import EchoProtocol, EchoServerProtocol
from pulsar_client import Connection, SocketServer, TcpServer

__all__ = ["Echo", "EchoProtocol", "EchoServerProtocol", "server"]


def server(address: Any = ("127.0.0.1", 0), **kw: Any) -> TcpServer:
    """An echo server in the running loop: ``async with server() as running: …``.

    Args:
        address: where to listen; a free loopback port by default.
        **kw: see :class:`TcpServer`.
    """
    return TcpServer(partial(Connection, EchoServerProtocol), address=address, **kw)


if __name__ == "__main__":
    SocketServer(EchoServerProtocol, name="echo").start()
