"""The pool of connections to a target, and the request that a protocol makes by itself."""

import errno
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

from pulsar_client.clients import AbstractClient, AbstractUdpClient
from pulsar_client.exceptions import ProtocolError
from pulsar_client.load.plan import Plan
from pulsar_client.load.scenarios import Context, Scenario
from pulsar_client.load.target import Target
from pulsar_client.load.wire import Wire
from pulsar_client.pool import Pool
from pulsar_client.protocols import Connection, DatagramProtocol
from pulsar_client.tls import client_context

__all__ = ["TargetClient", "UdpTargetClient", "WrongReply", "open_client", "wire_scenario"]


class WrongReply(ProtocolError):
    """The target answered something else than what it should."""


class TargetClient(AbstractClient):
    """Opens connections to a target, and notes how long each took.

    Args:
        plan: of the run.
        target: where to, by name.
        address: where to connect; with a fault proxy in between, that one's address.
        wire: the protocol.
        connects: where the seconds that dials took are appended.
        clock: gives the moment.
        size: connections of the pool.

    Attributes:
        starved: a connection was not opened because this process had no file descriptor left.
    """

    starved = False

    def __init__(
        self,
        plan: Plan,
        target: Target,
        address: Any,
        wire: Wire,
        *,
        connects: list[float],
        clock: Callable[[], float],
        size: int,
    ) -> None:
        depth = plan.pipeline if plan.pipeline > 1 else None
        factory = partial(Connection, wire.consumer, pipeline=depth)
        super().__init__(protocol_factory=factory, name="load")
        self._address = address
        self._connects = connects
        self._clock = clock
        self._tls: dict[str, Any] = {}
        if target.scheme == "tls":
            context: ssl.SSLContext = client_context(
                ca_file=plan.ca_file, verify=not plan.insecure
            )
            self._tls = {"ssl": context, "server_hostname": target.host}
        self.connect_timeout = plan.timeout
        self.pool: Pool = Pool(self.connect, size, **pool_options(plan, target))

    async def connect(self) -> Connection:
        """Open a connection, for the pool."""
        began = self._clock()
        try:
            connection: Connection = await self.create_connection(self._address, **self._tls)
        except OSError as exc:
            self.starved |= exc.errno == errno.EMFILE
            raise
        self._connects.append(self._clock() - began)
        return connection


class UdpTargetClient(AbstractUdpClient):
    """Opens endpoints that are connected to a target; one request is in flight on each.

    Args:
        plan: of the run.
        target: where to.
        wire: the protocol; a message is a datagram.
        connects: where the seconds that opening took are appended.
        clock: gives the moment.
        size: endpoints of the pool.

    Attributes:
        starved: an endpoint was not opened because this process had no file descriptor left.
    """

    starved = False

    def __init__(
        self,
        plan: Plan,
        target: Target,
        wire: Wire,
        *,
        connects: list[float],
        clock: Callable[[], float],
        size: int,
    ) -> None:
        factory = partial(DatagramProtocol, consumer_factory=wire.consumer)
        super().__init__(protocol_factory=factory, name="load")
        self._request_timeout = plan.timeout + 1.0
        self._address = target.address
        self._connects = connects
        self._clock = clock
        self.connect_timeout = plan.timeout
        self.pool: Pool = Pool(self.create_endpoint, size, **pool_options(plan, target))

    async def create_endpoint(self) -> DatagramProtocol:
        """Open an endpoint, for the pool."""
        began = self._clock()
        try:
            endpoint: DatagramProtocol = await self.create_datagram_endpoint(
                remote_addr=self._address
            )
        except OSError as exc:
            self.starved |= exc.errno == errno.EMFILE
            raise
        # Behind the deadline of the caller, which is the one that counts.
        endpoint.request_timeout = self._request_timeout
        self._connects.append(self._clock() - began)
        return endpoint


def pool_options(plan: Plan, target: Target) -> dict[str, Any]:
    """Give the options of the pool of a run."""
    return {
        "name": target.url,
        # Callers have their own deadline, which covers the wait for a lease.
        "timeout": None,
        "max_uses": plan.requests_per_connection,
        "max_age": plan.connection_age,
        "share": plan.pipeline,
    }


def open_client(
    plan: Plan,
    target: Target,
    address: Any,
    wire: Wire,
    *,
    connects: list[float],
    clock: Callable[[], float],
    size: int,
) -> TargetClient | UdpTargetClient:
    """Make the client that fits a target's scheme; see the classes."""
    if target.scheme == "udp":
        return UdpTargetClient(plan, target, wire, connects=connects, clock=clock, size=size)
    return TargetClient(plan, target, address, wire, connects=connects, clock=clock, size=size)


def wire_scenario(plan: Plan, wire: Wire) -> Scenario:
    """Make the scenario of a protocol: one message, one reply."""
    make_message, echoes = wire.message(plan.size), wire.echoes

    async def request(ctx: Context) -> None:
        message = make_message(ctx.number)
        entry = ctx.pool.borrow()  # an object for the lease is a tenth of a request
        if entry is None:
            async with ctx.pool.connect() as lease:
                ctx.sent = ctx.clock()
                reply = await lease.connection.request(message)
        else:
            connection, begin, owner = entry.connection, entry.begin, entry.owner
            failed = True
            try:
                ctx.sent = ctx.clock()
                # And so is a coroutine on the way to the future of the reply.
                waiter = begin(message, None) if begin is not None else None
                if waiter is None:
                    reply = await connection.request(message)
                else:
                    try:
                        reply = await waiter
                    except BaseException:
                        connection.end_request(waiter, waiter)
                        raise
                failed = False
            finally:
                owner.give_back(entry, False, failed)
        if echoes and reply != message:
            raise WrongReply(f"sent {message[:60]!r}, got {bytes(reply)[:60]!r}")

    return Scenario(request, plan.protocol or "request")
