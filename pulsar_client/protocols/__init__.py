"""Protocols, consumers, framing and producers."""

from pulsar_client.protocols.codec import Codec
from pulsar_client.protocols.connection import Connection
from pulsar_client.protocols.datagram_protocol import DatagramProtocol
from pulsar_client.protocols.decoders import (
    DelimitedDecoder,
    FixedSizeDecoder,
    LengthPrefixedDecoder,
)
from pulsar_client.protocols.flow_control import FlowControl
from pulsar_client.protocols.idle_timer import Timeout
from pulsar_client.protocols.producer import Producer
from pulsar_client.protocols.protocol import Protocol, PulsarProtocol
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer
from pulsar_client.protocols.reply_matcher import ReplyMatcher

__all__ = [
    "Codec",
    "Connection",
    "DatagramProtocol",
    "DelimitedDecoder",
    "FixedSizeDecoder",
    "FlowControl",
    "LengthPrefixedDecoder",
    "Producer",
    "Protocol",
    "ProtocolConsumer",
    "PulsarProtocol",
    "ReplyMatcher",
    "Timeout",
]
