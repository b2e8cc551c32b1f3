"""Applications that serve: settings, an arbiter, workers."""

from pulsar_client.app.socket_server import SocketServer
from pulsar_client.app.udp_socket_server import UdpSocketServer

__all__ = ["SocketServer", "UdpSocketServer"]
