"""The resolver: a client that asks one server."""

import asyncio
from functools import partial
from typing import Any

import dns.flags
import dns.rcode
import dns.rdatatype

from examples.dns_client.query import Question, TcpQuery, UdpQuery
from pulsar_client import (
    AbstractUdpClient,
    Connection,
    DatagramProtocol,
    PulsarClientError,
    RequestTimeout,
)
from pulsar_client.addresses import format_address


class ResolverError(PulsarClientError):
    """The server can't answer; ``rcode`` is its reason, ``"NXDOMAIN"`` for an unknown name."""

    def __init__(self, message: str, rcode: str) -> None:
        super().__init__(message)
        self.rcode = rcode


class Resolver(AbstractUdpClient):
    """Asks a recursive DNS server; any number of queries may be in flight.

    ::

        async with Resolver(("127.0.0.1", 53)) as resolver:
            addresses = await resolver.resolve("example.org", "AAAA")

    Args:
        server: ``(host, port)`` of the server, with an IP address for the host.
        timeout: seconds for a query, with all that is sent again and TCP.
    """

    protocol_factory = partial(DatagramProtocol, consumer_factory=UdpQuery)

    def __init__(self, server: tuple[str, int], *, timeout: float = 5.0) -> None:
        super().__init__()
        self.server = server
        self.timeout = timeout
        #: Queries whose answer did not fit into a datagram.
        self.over_tcp = 0
        self._opening: asyncio.Task[DatagramProtocol] | None = None

    async def create_endpoint(self) -> DatagramProtocol:
        """Open a socket to the server."""
        endpoint: DatagramProtocol = await self.create_datagram_endpoint(remote_addr=self.server)
        return endpoint

    async def resolve(self, name: str, rdtype: str = "A") -> list[str]:
        """Ask for the records of a name, through its aliases.

        Args:
            name: a host name; non-ASCII ones are encoded.
            rdtype: ``"A"``, ``"AAAA"`` or ``"TXT"``, for example.

        Returns:
            The records as text (for TXT the strings of each joined); none if the name has no such
            records.

        Raises:
            ResolverError: the server has no answer, an unknown name among others.
            RequestTimeout: there was no answer in time.
            OSError: the server can't be reached.
            dns.exception.DNSException: the name or the type is none.
        """
        message = await self.query(name, rdtype)
        rcode = message.rcode()
        if rcode != dns.rcode.NOERROR:
            reason: str = dns.rcode.to_text(rcode)
            raise ResolverError(f"{name} {rdtype}: {reason}", reason)
        answer = message.resolve_chaining().answer
        return [] if answer is None else [_text(record) for record in answer]

    async def query(self, name: str, rdtype: str) -> Any:
        """Ask, and give the whole ``dns.message.Message``; see `resolve` for what is raised."""
        question = Question(name, rdtype)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        endpoint = await self._endpoint()
        message = await endpoint.request(question, self.timeout)
        if not message.flags & dns.flags.TC:
            return message
        self.over_tcp += 1
        left = max(0.0, deadline - loop.time())
        limit = asyncio.timeout(left)
        try:
            async with limit:
                connection: Connection = await self.create_connection(
                    self.server, partial(Connection, TcpQuery), timeout=None
                )
                try:
                    return await connection.request(question)
                finally:
                    connection.close()
        except TimeoutError as exc:
            if not limit.expired():
                raise
            where = format_address(self.server)
            raise RequestTimeout(f"{where}: {question} had no answer over TCP in time") from exc

    async def _endpoint(self) -> DatagramProtocol:
        """The one socket, opened by whoever asks first; a closed one is replaced."""
        opening = self._opening
        if opening is None or (opening.done() and _is_lost(opening)):
            opening = self._opening = asyncio.ensure_future(self.create_endpoint())
        return await asyncio.shield(opening)

    async def wait_closed(self) -> None:
        """Wait until the socket is closed."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
            if not _is_lost(self._opening):
                self._opening.result().close()
        await super().wait_closed()


def _is_lost(opening: "asyncio.Task[DatagramProtocol]") -> bool:
    """True if it opened nothing that can be used."""
    if opening.cancelled() or opening.exception() is not None:
        return True
    return opening.result().closed


def _text(record: Any) -> str:
    if record.rdtype == dns.rdatatype.TXT:
        text: str = b"".join(record.strings).decode("utf-8", "backslashreplace")
        return text
    return str(record.to_text())
