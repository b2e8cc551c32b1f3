"""Framing without I/O: bytes go in, whole messages come out.

Every decoder has the same shape, so that a consumer can change its framing and nothing else.  A
consumer that wants one message and has to return what it did not use writes::

    def data_received(self, data):
        message, rest = self.decoder.decode(data)
        if message is not None:
            self.finished(message)
        return rest

A reader of a stream of messages writes::

    decoder.feed(data)
    for message in decoder:
        ...

The work is linear in the bytes fed, however they are cut, and the memory is bounded: a decoder
whose messages are taken after each ``feed`` holds at most one message of ``max_size``, its
delimiter or prefix, and the chunk fed last.

This module must not know of connections, consumers, loops or clocks.
"""

import struct
from collections.abc import Iterator
from typing import Literal

from pulsar_client.exceptions import MessageTooLarge, ProtocolError

__all__ = ["Decoder", "DelimitedDecoder", "FixedSizeDecoder", "LengthPrefixedDecoder"]

DEFAULT_MAX_SIZE = 65536

_PREFIX_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_BYTE_ORDERS = {"big": ">", "little": "<"}


# The buffer of every decoder that holds nothing, as those of idle connections do; it stays empty.
_EMPTY = bytearray()


class Decoder:
    """The shape shared by all decoders; it can't be used by itself.

    A message that breaks a rule raises `ProtocolError` (or `MessageTooLarge`).  The stream has no
    known message boundary any more, so `feed`, `next_message` and `decode` raise it again,
    without taking in more bytes, until `take_rest` empties the decoder.
    """

    __slots__ = ("_buffer", "_fault")

    def __init__(self) -> None:
        # While a fault is set the buffer holds at least one byte: the quick paths of decode(),
        # which look at the buffer only, rely on it.
        self._buffer = _EMPTY
        self._fault: ProtocolError | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._describe()}: {len(self._buffer)} bytes pending>"

    def __iter__(self) -> Iterator[bytes]:
        """Take messages until none is complete; what is fed meanwhile is included."""
        while (message := self.next_message()) is not None:
            yield message

    @property
    def pending(self) -> int:
        """The number of bytes fed and not yet taken."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`, which is copied; call `next_message` or iterate afterwards.

        Raises:
            TypeError: `data` is not bytes-like; nothing was appended.
            ProtocolError: an earlier message was already refused.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes, not {data!r}")
        self._raise_fault()
        if self._buffer is _EMPTY:
            self._buffer = bytearray(data)
        else:
            self._buffer += data

    def next_message(self) -> bytes | None:
        """Take one message.

        Returns:
            The message, which may be empty, or None while it is incomplete.

        Raises:
            ProtocolError: the message breaks a rule of the framing.
            MessageTooLarge: it exceeds the limit; raised as soon as this is known.
        """
        raise NotImplementedError

    def decode(self, data: bytes | bytearray | memoryview) -> tuple[bytes | None, bytes]:
        """Feed `data` and take one message along with everything behind it.

        Returns:
            ``(message, rest)``: with a message, `rest` is what follows it (perhaps ``b""``) and
            the decoder is empty; ``(None, b"")`` while the message is incomplete, the bytes
            being kept here.

        Raises:
            TypeError: `data` is not bytes-like.
            ProtocolError, MessageTooLarge: as for `next_message`.
        """
        self.feed(data)
        message = self.next_message()
        if message is None:
            return None, b""
        return message, self.take_rest()

    def take_rest(self) -> bytes:
        """Take all bytes that are not part of a message taken, and forget any error.

        The decoder is then as new.
        """
        rest = bytes(self._buffer)
        self._buffer = _EMPTY
        self._fault = None
        return rest

    def _describe(self) -> str:
        raise NotImplementedError

    def _take(self, begin: int, end: int, stop: int) -> bytes:
        """Cut the frame ``[:stop]`` off the buffer and return the message ``[begin:end]``."""
        buffer = self._buffer
        message = bytes(buffer[begin:end])
        # A bytearray drops its head by moving a pointer: taking many small messages out of one
        # large chunk stays linear.
        del buffer[:stop]
        return message

    def _raise_fault(self) -> None:
        fault = self._fault
        if fault is not None:
            # A new object each time: one that is raised again would collect tracebacks.
            raise type(fault)(*fault.args)


class DelimitedDecoder(Decoder):
    r"""Messages that end in a delimiter, such as lines.

    Args:
        delimiter: the bytes that end a message, for example ``b"\r\n"``.
        max_size: largest message in bytes, without its delimiter.  `MessageTooLarge` is raised
            once ``max_size + len(delimiter)`` bytes hold no delimiter.
        keep_delimiter: whether the messages given out include it.

    Raises:
        TypeError, ValueError: a bad argument; the message names it.
    """

    __slots__ = ("_delimiter", "_keep", "_max_size", "_searched")

    def __init__(
        self,
        delimiter: bytes,
        *,
        max_size: int = DEFAULT_MAX_SIZE,
        keep_delimiter: bool = False,
    ) -> None:
        # Often made for every message, so without a call that can be spared.
        self._buffer = _EMPTY
        self._fault = None
        if type(delimiter) is not bytes:
            if not isinstance(delimiter, (bytes, bytearray)):
                raise TypeError(f"delimiter must be bytes, not {delimiter!r}")
            delimiter = bytes(delimiter)
        if not delimiter:
            raise ValueError(f"delimiter must have at least one byte, not {delimiter!r}")
        self._delimiter = delimiter
        self._keep = keep_delimiter
        self._max_size = (
            max_size
            if type(max_size) is int and max_size > 0
            else _checked_size("max_size", max_size)
        )
        # No delimiter begins in the buffer before this position.
        self._searched = 0

    @property
    def max_size(self) -> int:
        """The largest message in bytes, without its delimiter."""
        return self._max_size

    def decode(self, data: bytes | bytearray | memoryview) -> tuple[bytes | None, bytes]:
        """See `Decoder.decode`."""
        if self._buffer or type(data) is not bytes:
            return super().decode(data)
        # The common case, one whole message in one chunk: nothing is copied into the buffer, and
        # partition() is one call where find() and two slices are three.
        message, delimiter, rest = data.partition(self._delimiter)
        if not delimiter or len(message) > self._max_size:
            return super().decode(data)
        return (message + delimiter if self._keep else message), rest

    def next_message(self) -> bytes | None:
        """See `Decoder.next_message`."""
        self._raise_fault()
        buffer = self._buffer
        # A message that is not too large has its delimiter within so many bytes.
        limit = self._max_size + len(self._delimiter)
        end = buffer.find(self._delimiter, self._searched, limit)
        if end >= 0:
            self._searched = 0
            stop = end + len(self._delimiter)
            return self._take(0, stop if self._keep else end, stop)
        received = len(buffer)
        if received >= limit:
            self._fault = MessageTooLarge(
                f"{received} bytes received and no delimiter {self._delimiter!r} in the first "
                f"{limit}: the message exceeds max_size={self.max_size} bytes"
            )
            self._raise_fault()
        # The last bytes may be the beginning of a delimiter.
        self._searched = max(0, received - len(self._delimiter) + 1)
        return None

    def take_rest(self) -> bytes:
        """See `Decoder.take_rest`."""
        self._searched = 0
        return super().take_rest()

    def _describe(self) -> str:
        return repr(self._delimiter)


class LengthPrefixedDecoder(Decoder):
    """Messages behind their length, an unsigned integer.

    Args:
        prefix: size of the length in bytes: 1, 2, 4 or 8.
        byteorder: ``"big"`` (network order) or ``"little"``.
        max_size: largest message in bytes, without its prefix.  `MessageTooLarge` is raised as
            soon as the prefix has been read.
        includes_prefix: whether the length on the wire counts the bytes of the prefix as well;
            messages are given out without it either way.  A length less than the prefix is then a
            `ProtocolError`.

    Raises:
        TypeError, ValueError: a bad argument; the message names it.
    """

    __slots__ = ("_excess", "_max_size", "_prefix", "_stop", "_unpack")

    def __init__(
        self,
        prefix: int = 4,
        *,
        byteorder: Literal["big", "little"] = "big",
        max_size: int = DEFAULT_MAX_SIZE,
        includes_prefix: bool = False,
    ) -> None:
        super().__init__()
        if type(prefix) is not int:
            raise TypeError(f"prefix must be an int, not {prefix!r}")
        if prefix not in _PREFIX_FORMATS:
            raise ValueError(f"prefix must be 1, 2, 4 or 8 bytes, not {prefix!r}")
        if byteorder not in _BYTE_ORDERS:
            raise ValueError(f"byteorder must be 'big' or 'little', not {byteorder!r}")
        self._prefix = prefix
        self._excess = prefix if includes_prefix else 0
        self._max_size = _checked_size("max_size", max_size)
        self._unpack = struct.Struct(_BYTE_ORDERS[byteorder] + _PREFIX_FORMATS[prefix]).unpack_from
        # The size of the frame at the head of the buffer, 0 while its prefix is not read.
        self._stop = 0

    @property
    def max_size(self) -> int:
        """The largest message in bytes, without its prefix."""
        return self._max_size

    def decode(self, data: bytes | bytearray | memoryview) -> tuple[bytes | None, bytes]:
        """See `Decoder.decode`."""
        prefix = self._prefix
        if self._buffer or type(data) is not bytes or len(data) < prefix:
            return super().decode(data)
        length: int = self._unpack(data)[0] - self._excess
        stop = prefix + length
        if length < 0 or length > self._max_size or stop > len(data):
            return super().decode(data)
        return data[prefix:stop], data[stop:]

    def next_message(self) -> bytes | None:
        """See `Decoder.next_message`."""
        self._raise_fault()
        stop = self._stop
        if not stop:
            if len(self._buffer) < self._prefix:
                return None
            stop = self._stop = self._read_prefix()
        if len(self._buffer) < stop:
            return None
        self._stop = 0
        return self._take(self._prefix, stop, stop)

    def take_rest(self) -> bytes:
        """See `Decoder.take_rest`."""
        self._stop = 0
        return super().take_rest()

    def _read_prefix(self) -> int:
        announced: int = self._unpack(self._buffer)[0]
        length = announced - self._excess
        if length < 0:
            self._fault = ProtocolError(
                f"length {announced} announced, but it counts its own prefix of "
                f"{self._prefix} bytes"
            )
        elif length > self._max_size:
            self._fault = MessageTooLarge(
                f"message of {length} bytes announced: it exceeds max_size={self._max_size} bytes"
            )
        self._raise_fault()
        return self._prefix + length

    def _describe(self) -> str:
        return f"prefix of {self._prefix} bytes"


class FixedSizeDecoder(Decoder):
    """Messages of one size.

    Args:
        size: the size of every message in bytes, at least 1; it bounds the memory as well.

    Raises:
        TypeError, ValueError: a bad size; the message names it.
    """

    __slots__ = ("_size",)

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = _checked_size("size", size)

    @property
    def size(self) -> int:
        """The size of every message in bytes."""
        return self._size

    def decode(self, data: bytes | bytearray | memoryview) -> tuple[bytes | None, bytes]:
        """See `Decoder.decode`."""
        size = self._size
        if self._buffer or type(data) is not bytes or len(data) < size:
            return super().decode(data)
        return data[:size], data[size:]

    def next_message(self) -> bytes | None:
        """See `Decoder.next_message`."""
        size = self._size
        if len(self._buffer) < size:
            return None
        return self._take(0, size, size)

    def _describe(self) -> str:
        return f"size {self._size}"


def _checked_size(name: str, value: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 byte, not {value!r}")
    return value
