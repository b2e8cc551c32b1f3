"""Connection pools, protocol clients and the matching servers for asyncio.

Every public name is here; see the modules for what each one does.
"""

from pulsar_client.app import SocketServer, UdpSocketServer
from pulsar_client.clients import AbstractClient, AbstractUdpClient, AddressWatch
from pulsar_client.events import Event, EventHandler, OneTime
from pulsar_client.exceptions import (
    AbortEvent,
    AbortRequest,
    ConfigError,
    ConnectionClosed,
    LeaseReleased,
    MessageTooLarge,
    PoolClosed,
    PoolError,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
    ProtocolError,
    PulsarClientError,
    RequestTimeout,
)
from pulsar_client.pool import Pool, PoolConnection, PoolStats
from pulsar_client.protocols import (
    Codec,
    Connection,
    DatagramProtocol,
    DelimitedDecoder,
    FixedSizeDecoder,
    FlowControl,
    LengthPrefixedDecoder,
    Producer,
    Protocol,
    ProtocolConsumer,
    PulsarProtocol,
    ReplyMatcher,
    Timeout,
)
from pulsar_client.servers import DatagramServer, TcpServer

__version__ = "0.1.0"

__all__ = [
    "AbortEvent",
    "AbortRequest",
    "AbstractClient",
    "AbstractUdpClient",
    "AddressWatch",
    "Codec",
    "ConfigError",
    "Connection",
    "ConnectionClosed",
    "DatagramProtocol",
    "DatagramServer",
    "DelimitedDecoder",
    "Event",
    "EventHandler",
    "FixedSizeDecoder",
    "FlowControl",
    "LeaseReleased",
    "LengthPrefixedDecoder",
    "MessageTooLarge",
    "OneTime",
    "Pool",
    "PoolClosed",
    "PoolConnection",
    "PoolError",
    "PoolOverloaded",
    "PoolStats",
    "PoolTimeout",
    "PoolUnavailable",
    "Producer",
    "Protocol",
    "ProtocolConsumer",
    "ProtocolError",
    "PulsarClientError",
    "PulsarProtocol",
    "ReplyMatcher",
    "RequestTimeout",
    "SocketServer",
    "TcpServer",
    "Timeout",
    "UdpSocketServer",
]
