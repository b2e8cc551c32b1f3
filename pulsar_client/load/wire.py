"""Protocols that can be put to the test by name: the smallest client of each.

Any other is named as ``module:Consumer``, a :class:`~pulsar_client.ProtocolConsumer` whose request
and result are bytes.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pulsar_client.exceptions import ConfigError, ProtocolError
from pulsar_client.protocols import Connection, DelimitedDecoder, ProtocolConsumer

__all__ = ["PROTOCOLS", "Wire", "find_wire"]

_MAX_MESSAGE = 2**24


class _Delimited(ProtocolConsumer):
    """A message and its reply, each with the same end."""

    separator = b"\n"

    def connection_made(self, connection: Connection) -> None:
        """Begin an exchange: the first on a connection makes the decoder for all."""
        if connection.parser is None:
            connection.parser = DelimitedDecoder(self.separator, max_size=_MAX_MESSAGE)

    def start_request(self) -> None:
        """Send the message."""
        self.write(self.request + self.separator)

    def data_received(self, data: bytes) -> bytes:
        """Collect the reply."""
        rest: bytes
        message, rest = self.connection.parser.decode(data)
        if message is not None:
            self.finished(message)
        return rest


class EchoConsumer(_Delimited):
    """The echo protocol of the examples: a blank line ends the message."""

    separator = b"\r\n\r\n"


class LineConsumer(_Delimited):
    """A line is answered by a line."""


class HttpParser:
    """The replies of a connection, one after the other: status line, headers, sized body."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of a reply that has begun."""
        return len(self._buffer)

    def decode(self, data: bytes) -> tuple[bytes | None, bytes]:
        """Take bytes; give the status and the body of a reply once it is complete, and the rest.

        Raises:
            ProtocolError: it is no reply whose length is known.
        """
        buffer = self._buffer
        buffer += data
        if len(buffer) > _MAX_MESSAGE:
            raise ProtocolError(f"a reply of more than {_MAX_MESSAGE} bytes")
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return None, b""
        head = bytes(buffer[:end]).lower()
        if not head.startswith(b"http/1."):
            raise ProtocolError(f"no HTTP reply: {bytes(buffer[:40])!r}")
        _, mark, length = head.partition(b"\r\ncontent-length:")
        text = length.partition(b"\r\n")[0].strip() if mark else b"0"
        if b"\r\ntransfer-encoding:" in head or not text.isdigit():
            raise ProtocolError("an HTTP reply without a content-length")
        total = end + 4 + int(text)
        if len(buffer) < total:
            return None, b""
        reply, rest = bytes(buffer[9:12]) + bytes(buffer[end + 4 : total]), bytes(buffer[total:])
        buffer.clear()
        return reply, rest


class HttpConsumer(ProtocolConsumer):
    """``GET /`` over HTTP/1.1 with keep-alive; replies must have a content-length."""

    def connection_made(self, connection: Connection) -> None:
        """Begin an exchange."""
        if connection.parser is None:
            connection.parser = HttpParser()

    def start_request(self) -> None:
        """Send the request."""
        self.write(self.request)

    def data_received(self, data: bytes) -> bytes:
        """Collect the reply."""
        reply, rest = self.connection.parser.decode(data)
        if reply is not None:
            if not reply.startswith(b"2"):
                self.finished(exc=ProtocolError(f"HTTP status {reply[:3].decode('latin-1')}"))
            else:
                self.finished(reply[3:])
        return bytes(rest)


class RedisConsumer(ProtocolConsumer):
    """``PING`` with a message: Redis sends it back."""

    def connection_made(self, connection: Connection) -> None:
        """Begin an exchange."""
        if connection.parser is None:
            connection.parser = DelimitedDecoder(b"\r\n", max_size=_MAX_MESSAGE)

    def start_request(self) -> None:
        """Send the command; the reply has two lines, its length and the message."""
        message = self.request
        self._length: bytes | None = None
        self.write(b"*2\r\n$4\r\nPING\r\n$%d\r\n%b\r\n" % (len(message), message))

    def data_received(self, data: bytes) -> bytes:
        """Collect the reply."""
        line, rest = self.connection.parser.decode(data)
        if line is not None and self._length is None:
            if not line.startswith(b"$"):
                raise ProtocolError(f"Redis said {line[:80]!r}")
            self._length = line
            if rest:
                return self.data_received(rest)
        elif line is not None:
            self.finished(line)
        return bytes(rest)


@dataclass(frozen=True)
class Wire:
    """A protocol to test with.

    Attributes:
        consumer: makes the consumer of each exchange.
        message: for a size, makes what makes the message of a request from its number.
        echoes: whether the reply must be the message.
    """

    consumer: Callable[[], ProtocolConsumer]
    message: Callable[[int], Callable[[int], bytes]]
    echoes: bool


def numbered(size: int) -> Callable[[int], bytes]:
    """Make messages of printable bytes; each begins with its number, if there is room for it."""
    if size < 16:
        return lambda number: b"x" * size
    form = b"%016x" + b"." * (size - 16)
    return lambda number: form % number


def _http_request(size: int) -> Callable[[int], bytes]:
    request = b"GET / HTTP/1.1\r\nHost: load\r\n\r\n"
    return lambda number: request


PROTOCOLS = {
    "echo": Wire(EchoConsumer, numbered, True),
    "line": Wire(LineConsumer, numbered, False),
    "http": Wire(HttpConsumer, _http_request, False),
    "redis-ping": Wire(RedisConsumer, numbered, True),
}


def find_wire(name: str) -> Wire:
    """Find a protocol by its name, or a consumer by ``module:Name``.

    Raises:
        ConfigError: there is none.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(
            f"protocol {name!r} is unknown; expected {', '.join(PROTOCOLS)} or module:Consumer"
        )
    try:
        consumer: Any = importlib.import_module(module)
        for part in attribute.split("."):
            consumer = getattr(consumer, part)
    except Exception as exc:
        raise ConfigError(f"protocol {name!r} can't be imported: {exc}") from exc
    known = issubclass(consumer, ProtocolConsumer) if isinstance(consumer, type) else True
    if not callable(consumer) or not known:
        raise ConfigError(f"protocol {name!r} is {consumer!r}, expected a ProtocolConsumer class")
    return Wire(consumer, numbered, False)
