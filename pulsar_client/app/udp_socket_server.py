"""`UdpSocketServer`: the same application as `SocketServer`, on datagram sockets.

Settings, arbiter and workers are those of ``socket_server``; all workers receive from the same
sockets, and the kernel gives each datagram to one of them.
"""

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from pulsar_client.addresses import parse_address, unix_path
from pulsar_client.app.listeners import Listeners
from pulsar_client.app.settings import Settings, registry
from pulsar_client.app.socket_server import SocketServer
from pulsar_client.app.worker import Worker
from pulsar_client.exceptions import ConfigError
from pulsar_client.protocols import DatagramProtocol
from pulsar_client.servers import DatagramServer
from pulsar_client.servers.datagram_sockets import bind_datagram_sockets

__all__ = ["UdpSocketServer"]


class UdpSocketServer(SocketServer):
    """Serves datagrams in worker processes, or in this one.

    ``UdpSocketServer(EchoUdpServerProtocol).start()`` serves until it is told to stop.  The
    parameters are those of `SocketServer`.  Settings that have no meaning for datagrams, such as
    those of TLS and of connections, are refused: as unknown flags on the command line, and with an
    error that says so elsewhere.
    """

    server_factory: ClassVar[Callable[..., Any]] = DatagramServer
    scheme: ClassVar[str] = "udp"
    socket_type: ClassVar[int] = socket.SOCK_DGRAM
    refused_settings: ClassVar[frozenset[str]] = frozenset(
        setting.name for setting in registry() if not setting.datagram
    )

    async def create_server(
        self,
        worker: Worker,
        protocol_factory: Callable[..., Any],
        address: Any = None,
        sockets: Sequence[socket.socket] | None = None,
        idx: int = 0,
    ) -> Any:
        """Make a server of datagrams that serves; see `SocketServer.create_server`."""
        server = self.server_factory(
            protocol_factory,
            address=address,
            sockets=sockets,
            name=self.name,
            logger=worker.logger,
        )
        await server.create_endpoint()
        return server

    async def close_server(self, server: Any, grace: float, *, last: bool) -> None:
        """Let a server finish what is in flight within so many seconds."""
        await server.close(grace=grace)

    def protocol_factory(self, idx: int = 0) -> Callable[..., Any]:
        """Give the factory of protocols, one for each socket, of an address of ``bind``."""
        return partial(DatagramProtocol, consumer_factory=self.callable)

    def open_listeners(self, settings: Settings, kept: Listeners | None = None) -> Listeners:
        """Bind the datagram sockets of the settings."""
        for text in settings.bind:
            if unix_path(parse_address(text)) is not None:
                raise ConfigError(f"bind is {text!r}, expected HOST:PORT for datagrams")
        return super().open_listeners(settings, kept)

    def bind(self, address: Any, *, backlog: int) -> list[socket.socket]:
        """Make the sockets of one address; there is no backlog."""
        return bind_datagram_sockets(address)
