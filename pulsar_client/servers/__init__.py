"""Servers of stream connections."""

from pulsar_client.servers.tcp_server import TcpServer

__all__ = ["TcpServer"]
