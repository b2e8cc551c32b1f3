"""What is published on channels, for one who listens."""

import asyncio
from collections import deque
from typing import Any, NamedTuple

from examples.redis_client.protocol import RedisError, RespCodec
from pulsar_client import ProtocolConsumer, ProtocolError

__all__ = ["Listener", "Message"]

#: Messages that wait for the listener before no more are read from the connection.
MANY = 1000


class Message(NamedTuple):
    """What was published."""

    channel: Any
    data: Any


class Listener(ProtocolConsumer):
    """An exchange that is never over: its request are the channels, its replies messages.

    The connection is upgraded to it, and used for nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self._codec = RespCodec(pushes=True)
        self._messages: deque[Message] = deque()
        self._news = asyncio.Event()
        self._lost: BaseException | None = None

    def start_request(self) -> None:
        """Subscribe."""
        self.on_finished.bind(self._ended)
        self.write(self._codec.encode(("SUBSCRIBE", *self.request)))

    def data_received(self, data: bytes) -> None:
        """Take what the server says."""
        self._codec.feed(data)
        for reply in self._codec:
            match reply:
                case [b"message", channel, message]:
                    self._messages.append(Message(channel, message))
                case [b"subscribe", _, _]:
                    pass
                case RedisError():
                    raise reply
                case _:
                    raise ProtocolError(f"not what a listener is told: {reply!r:.200}")
        if len(self._messages) >= MANY:
            self.connection.pause_reading()
        self._news.set()

    async def next(self) -> Message:
        """The next message; raises what the connection was lost with."""
        while not self._messages:
            if self._lost is not None:
                raise self._lost
            self._news.clear()
            await self._news.wait()
        if len(self._messages) == MANY:
            self.connection.resume_reading()
        return self._messages.popleft()

    def _ended(self, sender: Any, exc: BaseException | None = None) -> None:
        self._lost = exc
        self._news.set()
