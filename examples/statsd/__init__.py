"""Metrics by UDP: a sender that never waits, and a server that adds up."""

from examples.statsd.sender import Sender
from examples.statsd.server import Metrics, server

__all__ = ["Metrics", "Sender", "server"]
