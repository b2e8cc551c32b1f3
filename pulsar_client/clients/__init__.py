"""Clients: how connections to an address come about."""

from pulsar_client.clients.abstract_client import AbstractClient

__all__ = ["AbstractClient"]
