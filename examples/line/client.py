"""The client: one consumer, which knows the protocol, and one class for its users."""

import asyncio
from functools import partial
from typing import Any

from examples.line.protocol import MAX_LINE, NEWLINE, key_fault, value_fault
from pulsar_client import (
    AbstractClient,
    Connection,
    DelimitedDecoder,
    Pool,
    ProtocolConsumer,
    ProtocolError,
    PulsarClientError,
    RequestTimeout,
)


class LineError(PulsarClientError):
    """The server refused a command; the connection goes on."""


class LineProtocol(ProtocolConsumer):
    """One command and its reply: the result is the value of a GET, else None."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = DelimitedDecoder(NEWLINE, max_size=MAX_LINE)

    def start_request(self) -> None:
        """Send the command."""
        self.write(self.request.encode() + NEWLINE)

    def data_received(self, data: bytes) -> bytes:
        """Take the reply; one that is none ends the connection."""
        line, rest = self.decoder.decode(data)
        if line is None:
            return rest
        try:
            word, _, text = line.decode().partition(" ")
        except UnicodeDecodeError as exc:
            raise ProtocolError(f"the reply is not UTF-8: {line!r}") from exc
        match self.request.partition(" ")[0], word, text:
            case (_, "ERROR", _):
                self.finished(exc=LineError(text))
            case ("GET", "VALUE", _):
                self.finished(text)
            case ("GET", "NONE", "") | ("SET", "OK", ""):
                self.finished(None)
            case ("QUIT", "BYE", ""):
                self.finished(None)
                self.connection.close()
            case _:
                raise ProtocolError(f"not a reply to {self.request!r}: {line!r}")
        return rest


class LineClient(AbstractClient):
    """A pooled client; ``timeout`` is in seconds, for a connection and again for the reply."""

    protocol_factory = partial(Connection, LineProtocol)

    def __init__(self, address: Any, pool_size: int = 10, *, timeout: float = 5.0) -> None:
        super().__init__()
        self.address = address
        self.timeout = timeout
        self.pool: Pool = Pool(self.connect, pool_size, timeout=timeout, name="line")

    async def connect(self) -> Any:
        """Open a connection, for the pool."""
        return await self.create_connection(self.address)

    async def set(self, key: str, value: str) -> None:
        """Store a value; a key or value that is not allowed is a ValueError."""
        if fault := key_fault(key) or value_fault(value):
            raise ValueError(f"{fault}: {key!r:.80}, {value!r:.80}")
        await self._ask(f"SET {key} {value}")

    async def get(self, key: str) -> str | None:
        """The value stored, or None; a key that is not allowed is a ValueError."""
        if fault := key_fault(key):
            raise ValueError(f"{fault}: {key!r:.80}")
        return await self._ask(f"GET {key}")

    async def quit(self) -> None:
        """End one connection in good order."""
        await self._ask("QUIT")

    async def _ask(self, command: str) -> str | None:
        async with self.pool.connect() as connection:
            try:
                async with asyncio.timeout(self.timeout):
                    value: str | None = await connection.request(command)
                    return value
            except TimeoutError as exc:
                raise RequestTimeout(f"{connection}: no reply within {self.timeout} s") from exc
