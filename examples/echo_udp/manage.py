"""The UDP echo server in production: ``python -m examples.echo_udp.manage --help``."""

from collections.abc import Callable
from functools import partial
from typing import Any

from examples.echo_udp.protocol import MAX_DATAGRAM, EchoUdpServerProtocol
from pulsar_client import DatagramProtocol, UdpSocketServer


class EchoUdpServer(UdpSocketServer):
    """Echoes datagrams of any size."""

    callable = EchoUdpServerProtocol

    def protocol_factory(self, idx: int = 0) -> Callable[..., Any]:
        """Let the protocol take more than fits into one packet."""
        return partial(DatagramProtocol, consumer_factory=self.callable, max_payload=MAX_DATAGRAM)


if __name__ == "__main__":
    EchoUdpServer(name="echo over UDP").start()
