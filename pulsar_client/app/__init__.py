"""Applications that serve: settings, an arbiter, workers."""

from pulsar_client.app.socket_server import SocketServer

__all__ = ["SocketServer"]
