"""The echo server."""

from functools import partial
from typing import Any

from examples.echo.client import Echo
from examples.echo.protocol import EchoProtocol, EchoServerProtocol
from pulsar_client import Connection, TcpServer

__all__ = ["Echo", "EchoProtocol", "EchoServerProtocol", "server"]


def server(address: Any = ("127.0.0.1", 0), **kw: Any) -> TcpServer:
    """An echo server: ``async with server(("127.0.0.1", 8060)) as running: …``.

    Args:
        address: where to listen; a free loopback port by default.
        **kw: see :class:`TcpServer`.
    """
    return TcpServer(partial(Connection, EchoServerProtocol), address=address, **kw)
