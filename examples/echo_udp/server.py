"""The server, in the running loop."""

from functools import partial
from typing import Any

from examples.echo_udp.protocol import MAX_DATAGRAM, EchoUdpServerProtocol
from pulsar_client import DatagramProtocol, DatagramServer


def server(address: Any = ("127.0.0.1", 0), **kw: Any) -> DatagramServer:
    """An echo server: ``async with server(("127.0.0.1", 8060)) as running: …``.

    Args:
        address: where to listen; a free loopback port by default.
        **kw: see :class:`DatagramServer`.
    """
    factory = partial(
        DatagramProtocol, consumer_factory=EchoUdpServerProtocol, max_payload=MAX_DATAGRAM
    )
    return DatagramServer(factory, address=address, **kw)
