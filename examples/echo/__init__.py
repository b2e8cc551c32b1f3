"""Echo: the smallest client and server, over one pool."""

from examples.echo.client import Echo
from examples.echo.protocol import EchoProtocol, EchoServerProtocol

__all__ = ["Echo", "EchoProtocol", "EchoServerProtocol"]
