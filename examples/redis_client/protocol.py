"""What is spoken on a connection: commands, replies and what the server says on its own."""

from collections.abc import Iterator
from typing import Any

from hiredis import PushNotification, Reader, pack_command

from pulsar_client import MessageTooLarge, ProtocolError, PulsarClientError

__all__ = ["RedisError", "RespCodec", "Value", "Words", "decoded", "encoded"]

Value = str | bytes | int | float
Words = tuple[Value, ...]

#: Bytes of a reply: the server's own limit is 512 MiB for a string.
MAX_REPLY = 1024 * 1024 * 1024
_INCOMPLETE = object()


class RedisError(PulsarClientError):
    """The server refused a command; the connection goes on.  Its text begins with ``code``."""

    @property
    def code(self) -> str:
        """The kind of error: ``ERR``, ``WRONGTYPE``, ``NOAUTH`` and so on."""
        return str(self).partition(" ")[0]


def encoded(words: Any) -> bytes:
    """A command, a tuple of words, as it is sent.

    Raises:
        TypeError: a word is of another type, or there is none.
        UnicodeEncodeError: a str can't be encoded.
    """
    try:
        if words:
            data: bytes = pack_command(words)
            return data
    except TypeError:
        pass
    raise TypeError(f"a command consists of str, bytes, int and float, not of {words!r:.200}")


class RespCodec:
    """How commands are written and where replies end, for a pipelined connection.

    Args:
        pushes: whether to give out what the server says on its own (RESP 3); else it is dropped.
    """

    def __init__(self, *, pushes: bool = False) -> None:
        self._reader = Reader(ProtocolError, RedisError, notEnoughData=_INCOMPLETE)
        self._pushes = pushes
        #: Bytes of a reply that is not complete, more or less; 0 if there is none.
        self.pending = 0
        #: The last error: a server that wants no more clients sends one unasked, and closes.
        self.error: RedisError | None = None

    #: A method's call less for each command.
    encode = staticmethod(encoded)

    def feed(self, data: bytes) -> None:
        """Append data."""
        self._reader.feed(data)
        self.pending += len(data)

    def __iter__(self) -> Iterator[Any]:
        """Take the replies that are complete; errors are objects."""
        reader = self._reader
        while reader.has_data():
            reply = reader.gets()
            if reply is _INCOMPLETE:
                self.pending = self.pending or 1
                if self.pending > MAX_REPLY:
                    raise MessageTooLarge(f"a reply of more than {MAX_REPLY} bytes")
                return
            self.pending = 0
            kind = type(reply)
            if kind is RedisError:
                self.error = reply
            elif kind is PushNotification and not self._pushes:
                continue
            yield reply


def decoded(reply: Any) -> Any:
    """A reply with str instead of bytes, however deep.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    if isinstance(reply, bytes):
        return reply.decode()
    if isinstance(reply, list):
        return [decoded(part) for part in reply]
    if isinstance(reply, dict):
        return {decoded(key): decoded(value) for key, value in reply.items()}
    return reply
