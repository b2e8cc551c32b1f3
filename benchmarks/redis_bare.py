"""The Redis-like server by hand: the example's decoder and answers on a bare protocol."""

import asyncio
import time
from typing import Any

from examples.redis_server.commands import Client, answer
from examples.redis_server.decoder import CommandDecoder
from examples.redis_server.store import Store

__all__ = ["BareRedis"]


class BareRedis(asyncio.Protocol):
    """Answers the commands of a chunk with one write."""

    store = Store(time.monotonic, 2**28)

    def __init__(self) -> None:
        self.transport: Any = None
        self.decoder = CommandDecoder()
        self.client = Client(self, self.store, None)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.forget()

    def data_received(self, data: bytes) -> None:
        decoder, client = self.decoder, self.client
        decoder.feed(data)
        replies = []
        while (words := decoder.next_command()) is not None:
            replies.append(answer(client, words))
        self.transport.write(b"".join(replies))
