"""Echo over UDP: a datagram is a message, its end a newline."""

from examples.echo_udp.client import Echo
from examples.echo_udp.protocol import EchoUdpProtocol, EchoUdpServerProtocol
from examples.echo_udp.server import server

__all__ = ["Echo", "EchoUdpProtocol", "EchoUdpServerProtocol", "server"]
