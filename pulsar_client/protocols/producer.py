"""Producers make protocols and consumers and count them: the base of clients and servers.

This module knows neither transports nor addresses.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pulsar_client.events import EventHandler
from pulsar_client.protocols.consumer_contract import complete
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["Producer"]

_logger = logging.getLogger("pulsar_client.producer")


class Producer(EventHandler):
    """Makes protocols and consumers.

    Its many-times callbacks also get the events of the same names of every connection and
    consumer it made or will make, whenever they were bound.

    Args:
        loop: the event loop; None for the running loop at first need.
        protocol_factory: called as ``factory(session=, producer=, loop=, logger=, **kw)``;
            None for the class attribute of that name.
        name: what log lines and ``repr`` call it; the class name in lower case by default.
        max_requests: how many requests to serve; servers stop when they are reached.
        logger: handed to every protocol.

    Raises:
        TypeError: the factory is not callable, or makes consumers.
        ValueError: ``max_requests`` is no positive number.
    """

    MANY_TIMES_EVENTS = ("connection_made", "pre_request", "post_request", "connection_lost")

    #: True for servers: their connections answer requests instead of making them.
    server_side: bool = False
    #: Bytes of a request that its connections take while it is incomplete; None for no limit.
    max_message: int | None = None
    protocol_factory: Callable[..., Any] | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        protocol_factory: Callable[..., Any] | None = None,
        name: str | None = None,
        max_requests: int | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        super().__init__(loop)
        if protocol_factory is None:
            # Through the class: a function or partial there must not become a bound method.
            protocol_factory = type(self).protocol_factory
        if protocol_factory is not None and not callable(protocol_factory):
            raise TypeError(
                f"protocol_factory is {protocol_factory!r}, expected a callable that makes a "
                "protocol"
            )
        if isinstance(protocol_factory, type) and issubclass(protocol_factory, ProtocolConsumer):
            consumer = protocol_factory.__name__
            raise TypeError(
                f"protocol_factory is {protocol_factory!r}, which makes consumers, expected what "
                f"makes a protocol, such as partial(Connection, {consumer}), or for datagrams "
                f"partial(DatagramProtocol, consumer_factory={consumer})"
            )
        if max_requests is not None and (
            isinstance(max_requests, bool) or not isinstance(max_requests, int) or max_requests < 0
        ):
            raise ValueError(f"max_requests is {max_requests!r}, expected an int >= 0 or None")
        self.protocol_factory = protocol_factory
        self.name = name or type(self).__name__.lower()
        self.max_requests = max_requests or None
        self.logger = logger or _logger
        # Asked for every request: an instance's attribute is found faster than its class's.
        self._many_times = None
        self._sessions = 0
        self._requests_processed = 0
        # In order, and as a dict: a set of thousands takes several times the memory.
        self._protocols: dict[Any, None] = {}

    @property
    def sessions(self) -> int:
        """How many protocols this producer has made."""
        return self._sessions

    @property
    def requests_processed(self) -> int:
        """How many requests its connections have started."""
        return self._requests_processed

    def info(self) -> dict[str, Any]:
        """What is known of this producer, for people to read."""
        return {
            "producer": {
                "name": self.name,
                "sessions": self._sessions,
                "connections": len(self._protocols),
                "requests_processed": self._requests_processed,
            }
        }

    def build_consumer(
        self, consumer_factory: Callable[[], ProtocolConsumer] | None
    ) -> ProtocolConsumer:
        """Make a consumer: ``consumer_factory`` is called without arguments.

        Raises:
            TypeError: there is no factory, or it gives something else than a
                :class:`ProtocolConsumer`.
        """
        return make_consumer(consumer_factory)

    def create_protocol(self, **kw: Any) -> Any:
        """Make a protocol and count its session.

        Args:
            **kw: handed to the protocol factory.

        Raises:
            TypeError: this producer has no protocol factory, or it gives no protocol.
        """
        factory = self.protocol_factory
        if factory is None:
            raise TypeError(f"{type(self).__name__} {self.name!r} has no protocol_factory")
        self._sessions += 1
        return checked_protocol(
            factory,
            factory(
                session=self._sessions, producer=self, loop=self._loop, logger=self.logger, **kw
            ),
        )

    # What its protocols call

    def request_started(self) -> None:
        """A connection of this producer has started a request."""
        self._requests_processed += 1

    def protocol_made(self, protocol: Any) -> None:
        """A protocol of this producer is connected."""
        self._protocols[protocol] = None

    def protocol_lost(self, protocol: Any) -> None:
        """A protocol of this producer has lost its connection."""
        self._protocols.pop(protocol, None)


def checked_protocol(factory: Callable[..., Any], protocol: Any) -> Any:
    """Give back what a protocol factory made, if it is a protocol.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(protocol, asyncio.BaseProtocol):
        raise TypeError(
            f"protocol_factory {factory!r} returned {protocol!r}, expected a protocol; "
            "use partial(Connection, YourConsumer)"
        )
    return protocol


def make_consumer(factory: Callable[[], ProtocolConsumer] | None) -> ProtocolConsumer:
    """Call a consumer factory and check what it gives.

    Raises:
        TypeError: there is no factory, or it gives something else than a consumer.
    """
    if factory is None:
        raise TypeError("the connection has no consumer_factory, expected a callable")
    consumer = factory()
    if not isinstance(consumer, ProtocolConsumer):
        raise TypeError(
            f"consumer_factory {factory!r} returned {consumer!r}, expected a ProtocolConsumer"
        )
    try:
        consumer._done  # noqa: B018
    except AttributeError:
        complete(type(consumer))  # as @dataclass does: its constructor was put in later
    return consumer
