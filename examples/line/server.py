"""The server: one consumer for each command, and the store that they share."""

from functools import partial
from typing import Any

from examples.line.protocol import MAX_LINE, NEWLINE, key_fault, value_fault
from pulsar_client import (
    Connection,
    DelimitedDecoder,
    MessageTooLarge,
    ProtocolConsumer,
    TcpServer,
)


class LineServerProtocol(ProtocolConsumer):
    """One command: it is answered as soon as its line is complete."""

    def __init__(self, store: dict[str, str], max_keys: int) -> None:
        super().__init__()
        self.store = store
        self.max_keys = max_keys
        self.decoder = DelimitedDecoder(NEWLINE, max_size=MAX_LINE)

    def data_received(self, data: bytes) -> bytes:
        """Answer; what is no line of text gets one error, and the connection ends."""
        try:
            line, rest = self.decoder.decode(data)
            if line is None:
                return b""
            text = line.decode()
        except MessageTooLarge:
            self.reply(f"ERROR a line has at most {MAX_LINE} bytes", last=True)
            return b""
        except UnicodeDecodeError:
            self.reply("ERROR a line is UTF-8", last=True)
            return b""
        self.reply(self.answer(text), last=text == "QUIT")
        return rest

    def answer(self, line: str) -> str:
        """Carry out a command."""
        match line.split(" ", 2):
            case ["SET", key, value]:
                fault = key_fault(key) or value_fault(value)
                if fault is None and key not in self.store and len(self.store) >= self.max_keys:
                    fault = "the store is full"
                if fault is None:
                    self.store[key] = value
                return "OK" if fault is None else f"ERROR {fault}"
            case ["GET", key]:
                return f"VALUE {self.store[key]}" if key in self.store else "NONE"
            case ["QUIT"]:
                return "BYE"
        return "ERROR the commands are SET key value, GET key and QUIT"

    def reply(self, text: str, *, last: bool) -> None:
        """Send the reply: the next command may come, or the connection closes behind it."""
        self.write(text.encode() + NEWLINE)
        self.finished()
        if last:
            self.connection.close()


class LineServer(TcpServer):
    """``async with LineServer() as server: …`` serves on ``server.address``.

    Args:
        address: where to listen; a free loopback port by default.
        max_keys: how many keys are stored; clients must not fill the memory.
        **kw: see :class:`~pulsar_client.TcpServer`.
    """

    def __init__(
        self, address: Any = ("127.0.0.1", 0), *, max_keys: int = 10_000, **kw: Any
    ) -> None:
        self.store: dict[str, str] = {}
        consumer = partial(LineServerProtocol, self.store, max_keys)
        super().__init__(partial(Connection, consumer), address=address, **kw)
