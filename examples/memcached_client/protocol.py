r"""The text protocol of memcached, from the client's side.

A command is a line; one that stores has a value behind it.  The reply is one line, or any number
of items up to a line with ``END``::

    set key 0 0 5\r\nvalue\r\n    STORED
    gets key\r\n                  VALUE key 0 5 42\r\nvalue\r\nEND
    stats\r\n                     STAT pid 123\r\nSTAT …\r\nEND
"""

import re
from typing import NamedTuple

from pulsar_client import (
    DelimitedDecoder,
    FixedSizeDecoder,
    MessageTooLarge,
    ProtocolConsumer,
    ProtocolError,
    PulsarClientError,
)

__all__ = ["Command", "Item", "MemcachedError", "MemcachedProtocol", "checked_key"]

NEWLINE = b"\r\n"
#: Bytes of a line of a reply: a key has at most 250, an error or a statistic a few hundred.
MAX_LINE = 2048
#: Lines of statistics.
MAX_STATS = 100_000
_KEY = re.compile(rb"[\x21-\x7e\x80-\xff]{1,250}")


class MemcachedError(PulsarClientError):
    """The server refused a command; the message is what it says."""


class Item(NamedTuple):
    """A value that was stored; ``cas`` is 0 unless it was asked for."""

    value: bytes
    cas: int


class Command(NamedTuple):
    """A request: its line without the end of it, and the value behind it if it stores one."""

    line: bytes
    value: bytes | None = None


class MemcachedProtocol(ProtocolConsumer):
    """One command and its reply.

    The result is a dict for ``get``, ``gets`` and ``stats``, else the line of the reply.
    """

    #: Bytes of a value; a server may be told to store up to 1 GiB (memcached -I).
    max_value: int = 64 * 1024 * 1024
    #: Takes the value that comes next; None while a line comes next.
    block: FixedSizeDecoder | None = None
    key = b""
    cas = 0

    def __init__(self) -> None:
        super().__init__()
        self.lines = DelimitedDecoder(NEWLINE, max_size=MAX_LINE)
        self.items: dict[bytes, Item] = {}
        self.stats: dict[str, str] = {}

    def start_request(self) -> None:
        """Send the command."""
        line, value = self.request
        self.write(line + NEWLINE if value is None else b"%s\r\n%s\r\n" % (line, value))

    def data_received(self, data: bytes) -> bytes | None:
        """Take lines and values in turn until the reply is complete."""
        while data:
            if self.block is not None:
                value, data = self.block.decode(data)
                if value is not None:
                    self.add_item(value)
                continue
            line, data = self.lines.decode(data)
            if line is None:
                return None
            if line.startswith(b"VALUE "):
                self.expect_item(line)
            elif line.startswith(b"STAT ") and self.request.line.startswith(b"stats"):
                self.add_stat(line)
            else:
                self.finish(line)
                return data
        return None

    def expect_item(self, line: bytes) -> None:
        """``VALUE key flags bytes [cas]``: so many bytes come next."""
        match line.split(b" "):
            case [_, key, _, size, *cas] if all(map(bytes.isdigit, [size, *cas])) and (
                len(size) < 12 and len(cas) < 2 and key in self.request.line.split(b" ")[1:]
            ):
                if int(size) > self.max_value:
                    raise MessageTooLarge(
                        f"a value of {int(size)} bytes, at most {self.max_value} are taken"
                    )
                if key in self.items:
                    raise ProtocolError(f"the value of {key!r} came twice")
                self.key, self.cas = key, int(cas[0]) if cas else 0
                self.block = FixedSizeDecoder(int(size) + len(NEWLINE))
            case _:
                raise ProtocolError(
                    f"not an item that {self.request.line!r:.80} asked for: {line!r:.80}"
                )

    def add_item(self, value: bytes) -> None:
        """The bytes of an item are complete."""
        if not value.endswith(NEWLINE):
            raise ProtocolError(f"the value of {self.key!r} is longer than the server said")
        self.items[self.key] = Item(value[: -len(NEWLINE)], self.cas)
        self.block = None

    def add_stat(self, line: bytes) -> None:
        """``STAT name value``."""
        name, _, value = line.decode(errors="replace").removeprefix("STAT ").partition(" ")
        self.stats[name] = value
        if len(self.stats) > MAX_STATS:
            raise MessageTooLarge(f"more than {MAX_STATS} statistics")

    def finish(self, line: bytes) -> None:
        """The last line of a reply, or the only one."""
        verb = self.request.line.partition(b" ")[0]
        error = line.partition(b" ")[0]
        if error in (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"):
            exc = MemcachedError(line.decode(errors="replace"))
            if self.request.value is not None and error != b"SERVER_ERROR":
                # It has not understood that a value follows, and takes it for commands.  Nobody
                # knows what it will answer: raised, and not only told, this ends the connection.
                raise exc
            self.finished(exc=exc)
        elif verb in (b"get", b"gets", b"stats") and line == (
            b"RESET" if self.request.line == b"stats reset" else b"END"
        ):
            self.finished(self.stats if verb == b"stats" else self.items)
        elif verb in _ANSWERS and _ANSWERS[verb].fullmatch(line):
            self.finished(line)
        else:
            raise ProtocolError(f"not a reply to {self.request.line!r:.80}: {line!r:.80}")


_STORED = re.compile(rb"STORED|NOT_STORED")
_COUNTED = re.compile(rb"\d{1,20} *|NOT_FOUND")
_ANSWERS = {
    b"set": _STORED,
    b"add": _STORED,
    b"replace": _STORED,
    b"cas": re.compile(rb"STORED|EXISTS|NOT_FOUND"),
    b"delete": re.compile(rb"DELETED|NOT_FOUND"),
    b"touch": re.compile(rb"TOUCHED|NOT_FOUND"),
    b"incr": _COUNTED,
    b"decr": _COUNTED,
    b"version": re.compile(rb"VERSION .*"),
    b"flush_all": re.compile(rb"OK"),
}


def checked_key(key: str | bytes) -> bytes:
    """A key as it is sent.

    Raises:
        TypeError: it is neither str nor bytes.
        ValueError: it can't be a key.
    """
    encoded = key.encode() if isinstance(key, str) else key
    if not isinstance(encoded, bytes):
        raise TypeError(f"a key is str or bytes, not {key!r:.80}")
    if not _KEY.fullmatch(encoded):
        raise ValueError(
            f"a key has 1 to 250 bytes, without spaces and control characters: {key!r:.300}"
        )
    return encoded
