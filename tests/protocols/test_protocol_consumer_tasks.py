"""Tasks of an exchange: owned by it, cancelled with the connection, their errors not lost."""

import asyncio
import logging
from functools import partial

import pytest

from pulsar_client import AbstractClient, Connection, ProtocolConsumer, TcpServer
from pulsar_client.testing import memory_pair


class Answer(ProtocolConsumer):
    """Answers each line when it is told to."""

    gate: asyncio.Future[bytes]
    cancelled = False

    def data_received(self, data: bytes) -> None:
        self.create_task(self.answer())

    async def answer(self) -> None:
        try:
            self.write(await self.gate)
        except asyncio.CancelledError:
            type(self).cancelled = True
            raise
        self.finished()


class Ask(ProtocolConsumer):
    """Gives whatever comes."""

    def start_request(self) -> None:
        self.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.finished(data)


def pair(consumer: type[Answer]) -> tuple[Connection, Connection]:
    consumer.gate = asyncio.get_running_loop().create_future()
    client = AbstractClient(protocol_factory=partial(Connection, Ask)).create_protocol()
    server = TcpServer(partial(Connection, consumer)).create_protocol()
    memory_pair(client, server)
    return client, server


async def test_a_task_answers() -> None:
    client, server = pair(Answer)
    request = asyncio.ensure_future(client.request(b"?"))
    await asyncio.sleep(0)
    Answer.gate.set_result(b"!")
    assert await request == b"!"
    await client.close()
    await server.close()


async def test_a_task_is_cancelled_when_the_connection_is_lost() -> None:
    class Slow(Answer):
        pass

    client, server = pair(Slow)
    request = asyncio.ensure_future(client.request(b"?"))
    while server.requests_processed == 0:
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # the task begins
    server.abort()
    with pytest.raises(ConnectionError):
        await request
    await server.event("connection_lost")  # type: ignore[misc]
    await asyncio.sleep(0)
    assert Slow.cancelled


async def test_an_error_of_a_task_is_logged_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    """A8: the client does not hang."""
    client, server = pair(Answer)
    request = asyncio.ensure_future(client.request(b"?"))
    await asyncio.sleep(0)
    Answer.gate.set_exception(ZeroDivisionError("the handler has a bug"))
    with caplog.at_level(logging.ERROR), pytest.raises(ConnectionError):
        await request
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ZeroDivisionError
    ]
    assert server.closed


async def test_an_error_of_a_clients_task_reaches_its_caller() -> None:
    class Late(Ask):
        def start_request(self) -> None:
            self.create_task(self.fail())

        async def fail(self) -> None:
            raise ZeroDivisionError("late")

    client = AbstractClient(protocol_factory=partial(Connection, Late)).create_protocol()
    server = TcpServer(partial(Connection, Answer)).create_protocol()
    memory_pair(client, server)
    await client.event("connection_made")
    with pytest.raises(ZeroDivisionError, match="late"):
        await client.request(b"?")
    assert not client.is_reusable
    await client.close()
    await server.close()


class Late(ProtocolConsumer):
    """Answers each byte in a task of its own, the later the smaller it is."""

    def data_received(self, data: bytes) -> bytes:
        self.create_task(self.answer(data[:1]))
        return data[1:]

    async def answer(self, byte: bytes) -> None:
        for _ in range(10 - int(byte)):
            await asyncio.sleep(0)
        self.write(byte)
        self.finished()


@pytest.mark.parametrize("pieces", [[b"159"], [b"1", b"5", b"9"], [b"15", b"9"]])
async def test_i16_answers_leave_in_order_whatever_their_tasks_do(pieces: list[bytes]) -> None:
    """I16: without ``pipeline=`` a request begins when the one before it is answered."""
    async with TcpServer(partial(Connection, Late), address=("127.0.0.1", 0)) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        assert await reader.readexactly(3) == b"159"
        writer.close()
        await writer.wait_closed()
