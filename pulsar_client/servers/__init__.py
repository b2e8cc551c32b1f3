"""Servers of stream connections and of datagrams."""

from pulsar_client.servers.datagram_server import DatagramServer
from pulsar_client.servers.tcp_server import TcpServer

__all__ = ["DatagramServer", "TcpServer"]
