r"""Requests without I/O: bytes go in, whole commands come out.

A command is an array of byte strings (``*2\r\n$3\r\nGET\r\n$1\r\nk\r\n``), or a line of words
(``PING\r\n``), which people type.  What a client announces is believed only within the limits: it
costs no memory before its bytes are there.
"""

from pulsar_client import MessageTooLarge, ProtocolError

__all__ = ["CommandDecoder"]

#: Bytes of a line: of a length, or of a command that somebody typed.
MAX_LINE = 4096
#: Arguments of a command.
MAX_ARGUMENTS = 1024 * 1024


class CommandDecoder:
    """Cuts a stream into commands; its work is linear in the bytes, however they are cut.

    Args:
        max_size: the most bytes of one command.
    """

    __slots__ = (
        "_args",
        "_chunks",
        "_data",
        "_held",
        "_left",
        "_length",
        "_missing",
        "_pos",
        "_size",
        "max_size",
    )

    def __init__(self, max_size: int = 64 * 1024 * 1024) -> None:
        self.max_size = max_size
        # What is parsed, from _pos on; then the chunks behind it, which are joined to it when
        # they hold the _missing bytes, not before.
        self._data = b""
        self._pos = 0
        self._chunks: list[bytes] = []
        self._held = 0  # bytes of the chunks
        self._missing = 0
        # The command at the head: how many arguments it still lacks, those it has, their bytes.
        self._left = 0
        self._args: list[bytes] = []
        self._size = 0
        # The length of the argument that comes next; -1 before it is known.
        self._length = -1

    @property
    def pending(self) -> int:
        """Bytes held of a command that is not complete; at least 1 once it has begun."""
        held = len(self._data) - self._pos + self._held
        held += self._size - max(self._length, 0)
        return max(held, 1) if self._left else held

    def feed(self, data: bytes) -> None:
        """Append data; take the commands out with ``next_command``."""
        if self._missing > len(data):
            self._missing -= len(data)
            self._chunks.append(data)
            self._held += len(data)
            return
        self._missing = 0
        if self._pos < len(self._data) or self._chunks:
            data = b"".join((self._data[self._pos :], *self._chunks, data))
            self._chunks.clear()
            self._held = 0
        self._data = data
        self._pos = 0

    def next_command(self) -> list[bytes] | None:
        """Take one command: its name and arguments, at least one; None while it is incomplete.

        Raises:
            ProtocolError: it is none.
            MessageTooLarge: it is larger than allowed, or says that it will be.
        """
        if self._missing:
            return None
        while not self._left:
            line = self._line()
            if line is None:
                return None
            if not line.startswith(b"*"):
                words = line.split()
                if words:
                    return words
            elif (count := _number(line, "multibulk")) > 0:
                if count > MAX_ARGUMENTS:
                    raise ProtocolError(f"invalid multibulk length {count}")
                self._left = count
        while self._left:
            argument = self._argument()
            if argument is None:
                return None
            self._args.append(argument)
            self._left -= 1
        command, self._args, self._size = self._args, [], 0
        return command

    def _argument(self) -> bytes | None:
        length = self._length
        if length < 0:
            line = self._line()
            if line is None:
                return None
            if not line.startswith(b"$"):
                raise ProtocolError(f"expected '$', got {line[:1]!r}")
            length = _number(line, "bulk")
            self._size += length
            if length < 0:
                raise ProtocolError(f"invalid bulk length {length}")
            if self._size > self.max_size:
                raise MessageTooLarge(f"a command has at most {self.max_size} bytes")
        end = self._pos + length
        missing = end + 2 - len(self._data)
        if missing > 0:
            self._length = length
            self._missing = missing
            return None
        argument = self._data[self._pos : end]
        if self._data[end : end + 2] != b"\r\n":
            raise ProtocolError("an argument is longer than its length says")
        self._length = -1
        self._pos = end + 2
        return argument

    def _line(self) -> bytes | None:
        end = self._data.find(b"\n", self._pos, self._pos + MAX_LINE)
        if end < 0:
            if len(self._data) - self._pos >= MAX_LINE:
                raise ProtocolError("too big inline request")
            return None
        line = self._data[self._pos : end]
        self._pos = end + 1
        return line.removesuffix(b"\r")


def _number(line: bytes, what: str) -> int:
    digits = line[1:]
    if not digits.removeprefix(b"-").isdigit() or len(digits) > 20:
        raise ProtocolError(f"invalid {what} length {digits[:32]!r}")
    return int(digits)
