"""The server: one consumer, which takes all the commands that arrived together."""

import time
from collections.abc import Awaitable
from functools import partial
from typing import Any

from examples.redis_server.commands import Client, answer
from examples.redis_server.decoder import CommandDecoder
from examples.redis_server.replies import push
from examples.redis_server.store import Store
from pulsar_client import Connection, ConnectionClosed, ProtocolConsumer, ProtocolError, TcpServer

__all__ = ["RedisServer"]

#: Bytes of replies that are joined for one write.
JOINED = 64 * 1024
#: Bytes of messages that wait for a listener who does not read; then it is cut off.
MAX_UNREAD = 8 * 1024 * 1024


class RedisConnection(Connection):
    """A connection that remembers what its client said before.

    Args:
        store: what its commands work on.
        password: see :class:`RedisServer`.
        **kw: see :class:`~pulsar_client.Connection`.
    """

    def __init__(self, store: Store, password: str | None, **kw: Any) -> None:
        super().__init__(CommandsConsumer, **kw)
        self.parser = CommandDecoder()
        self.client = Client(self, store, password)
        #: Replies that are joined with those behind them for one write.
        self.due: list[bytes] = []

    def push(self, replies: list[bytes]) -> None:
        """Send a message of a channel, unless the client does not read."""
        if self.due:  # it publishes itself: behind the replies before
            self.due.append(push(self.client.protocol, replies))
            return
        try:
            self.write(push(self.client.protocol, replies))
        except ConnectionClosed:
            return
        if self.transport.get_write_buffer_size() > MAX_UNREAD:
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Leave the channels."""
        self.client.forget()
        super().connection_lost(exc)


class CommandsConsumer(ProtocolConsumer):
    """One exchange: all the commands that arrived together, and their replies in one write.

    An exchange for each command would be tidier, and three times as slow when clients pipeline.
    """

    connection: Any
    waiting = False

    def data_received(self, data: bytes) -> bytes | None:
        """Answer all that is complete."""
        if self.waiting:
            return data  # it is kept, and the client held back, until the replies have left
        self.connection.parser.feed(data)
        waiter = self.answer_all()
        if waiter is not None:
            self.waiting = True
            self.create_task(self.go_on(waiter))
        return None

    def eof_received(self) -> bool:
        """The client sends no more: half a command is never answered, whole ones still are."""
        return self.waiting

    async def go_on(self, waiter: Awaitable[None]) -> None:
        """Answer the rest, whenever the client has taken the replies before."""
        pending: Awaitable[None] | None = waiter
        try:
            while pending is not None:
                await pending
                pending = self.answer_all()
        except ConnectionClosed:
            return
        self.waiting = False

    def answer_all(self) -> Awaitable[None] | None:
        """Carry out commands until there are no more, or the client must read first."""
        decoder, client = self.connection.parser, self.connection.client
        replies = self.connection.due
        size = 0
        while not client.leaving:
            try:
                words = decoder.next_command()
            except ProtocolError as exc:
                replies.append(b"-ERR Protocol error: %s\r\n" % str(exc).encode())
                client.leaving = True
                break
            if words is None:
                break
            reply = answer(client, words)
            replies.append(reply)
            size += len(reply)
            if size >= JOINED:
                waiter = self.write(b"".join(replies))
                replies.clear()
                size = 0
                if waiter is not None:
                    return waiter
        if replies:
            self.write(b"".join(replies))
            replies.clear()
        if client.leaving:
            self.finished()
            self.connection.close()
        elif not decoder.pending:
            self.finished()
        return None


class RedisServer(TcpServer):
    """``async with RedisServer() as server: …`` serves on ``server.address``.

    Args:
        address: where to listen; a free loopback port by default.
        password: of the user ``default``; None if nobody needs one.
        max_memory: the most bytes of keys and values.
        **kw: see :class:`~pulsar_client.TcpServer`.
    """

    def __init__(
        self,
        address: Any = ("127.0.0.1", 0),
        *,
        password: str | None = None,
        max_memory: int = 256 * 1024 * 1024,
        **kw: Any,
    ) -> None:
        self.store = Store(time.monotonic, max_memory)
        factory = partial(RedisConnection, self.store, password)
        super().__init__(factory, address=address, **kw)
