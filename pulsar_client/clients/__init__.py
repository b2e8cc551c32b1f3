"""Clients: how connections to an address come about."""

from pulsar_client.clients.abstract_client import AbstractClient
from pulsar_client.clients.abstract_udp_client import AbstractUdpClient
from pulsar_client.clients.address_watch import AddressWatch

__all__ = ["AbstractClient", "AbstractUdpClient", "AddressWatch"]
