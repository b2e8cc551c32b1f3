"""Clients: how connections to an address come about."""

from pulsar_client.clients.abstract_client import AbstractClient
from pulsar_client.clients.abstract_udp_client import AbstractUdpClient

__all__ = ["AbstractClient", "AbstractUdpClient"]
