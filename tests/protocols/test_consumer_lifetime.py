"""How long consumers live: not until the garbage collector comes by."""

import asyncio
import gc
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

from protocol_kit import Client, EchoLine, Line, served

from pulsar_client import Connection, DelimitedDecoder, ProtocolConsumer


def watched(kind: type[ProtocolConsumer], made: list[weakref.ref[Any]]) -> ProtocolConsumer:
    consumer = kind()
    made.append(weakref.ref(consumer))
    return consumer


class Itself(Line):
    """Client: its result is the consumer, as by default."""

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.finished()
        return rest


async def test_a_finished_consumer_is_freed_at_once() -> None:
    """A1: what a request leaves behind must not cost more than the request."""
    made: list[weakref.ref[Any]] = []
    async with (
        served(partial(watched, EchoLine, made)) as server,
        Client(protocol_factory=partial(Connection, partial(watched, Itself, made))) as client,
    ):
        connection = await client.create_connection(server.address)
        gc.collect()
        gc.disable()
        try:
            for number in range(5):
                result = await connection.request(b"%d" % number)
                assert isinstance(result, Itself)
                del result
            await asyncio.sleep(0)
            assert len(made) == 10
            alive = [ref() for ref in made if ref() is not None]
            assert not alive
        finally:
            gc.enable()


async def test_a_consumer_need_not_call_the_constructor_of_its_base() -> None:
    class Own(Itself):
        def __init__(self) -> None:
            self.decoder = DelimitedDecoder(b"\n", max_size=100)

    @dataclass(eq=False)
    class Late(ProtocolConsumer):
        """Its constructor is put in after the class is made."""

        answer: bytes = b"x\n"

        def data_received(self, data: bytes) -> None:
            self.write(self.answer)
            self.finished()

    for server_side, client_side in ((EchoLine, Own), (Late, Itself), (Late, Own)):
        async with (
            served(server_side) as server,
            Client(protocol_factory=partial(Connection, client_side)) as client,
        ):
            connection = await client.create_connection(server.address)
            for _ in range(2):
                assert isinstance(await connection.request(b"x"), client_side)
