"""What a user writes, as ``mypy --strict`` must accept it; it is checked, not run."""

import asyncio
import ssl
from collections.abc import Awaitable
from functools import partial
from typing import Any

from pulsar_client import (
    AbortRequest,
    AbstractClient,
    AddressWatch,
    Connection,
    ConnectionClosed,
    DelimitedDecoder,
    Event,
    EventHandler,
    FixedSizeDecoder,
    LengthPrefixedDecoder,
    OneTime,
    Pool,
    PoolConnection,
    PoolTimeout,
    Producer,
    Protocol,
    ProtocolConsumer,
    TcpServer,
)


class Question(ProtocolConsumer):
    """A client's consumer."""

    def __init__(self) -> None:
        super().__init__(one_time_events=("greeted",))
        self.decoder = DelimitedDecoder(b"\r\n", max_size=1024)

    def start_request(self) -> None:
        waiting: Awaitable[None] | None = self.write(self.request)
        assert waiting is None or self.transport

    def data_received(self, data: bytes) -> bytes | None:
        message, rest = self.decoder.decode(data)
        if message is not None:
            self.finished(message.decode())
        return rest

    def connection_made(self, connection: Any) -> None:
        self.fire_event("greeted", connection)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.finished(exc=exc or ConnectionClosed(sent=True))


class Answer(ProtocolConsumer):
    """A server's consumer."""

    def data_received(self, data: bytes) -> None:
        self.write(bytearray(data))
        self.write(memoryview(data))
        self.finished()
        self.connection.upgrade(Answer)


class Upper(Protocol):
    """A protocol without consumers."""

    def data_received(self, data: bytes) -> None:
        self.write(data.upper())


class Asker(AbstractClient):
    """A pooled client."""

    protocol_factory = partial(Connection, Question)

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__()
        self.address = address
        self.questions: Pool = Pool(self.connect, 5, timeout=3.0, name="asker")
        self.pool = self.questions

    async def connect(self) -> Connection:
        connection: Connection = await self.create_connection(
            self.address, ssl=True, server_hostname="localhost", timeout=1.0
        )
        return connection

    async def ask(self, text: str) -> str:
        try:
            async with self.questions.connect() as lease:
                connection: Connection = lease.connection
                answer: str = await connection.request(text.encode())
                return answer
        except PoolTimeout:
            return ""


async def asked(client: Asker) -> int:
    answer: str = await client.request(b"how many?", idempotent=True, timeout=1.0)

    async def count(lease: PoolConnection, question: bytes) -> int:
        return len(await lease.request(question))

    watch: AddressWatch = client.watch_address(client.address, interval=60.0)
    number: int = await client.perform(count, answer.encode(), attempts=1, pool=client.questions)
    return number + await watch.look() + client.retries


def decoders() -> list[bytes]:
    fixed = FixedSizeDecoder(4)
    fixed.feed(b"abcdefgh")
    messages: list[bytes] = list(fixed)
    prefixed = LengthPrefixedDecoder(2)
    message, rest = prefixed.decode(b"\0\1x")
    if message is not None:
        messages.append(message)
    messages.append(rest)
    return messages


def events(handler: EventHandler) -> bool:
    def note(sender: object, exc: BaseException | None = None, **kw: object) -> None: ...

    async def later(sender: object, exc: BaseException | None = None) -> None: ...

    handler.bind_event("start", later)
    handler.bind_events(start=note, data=note)
    removed: int | None = handler.remove_callback("start", note)
    event: Event | OneTime = handler.fire_event("start", None, more=1)
    other: Event | OneTime | None = handler.event("stop")
    handler.copy_many_times_events(handler)
    return removed == 1 and other is not None and isinstance(event, OneTime) and event.done()


def abort(consumer: ProtocolConsumer, exc: BaseException | None = None) -> None:
    try:
        consumer.abort_request()
    except AbortRequest as aborted:
        raise aborted from exc


async def serve(context: ssl.SSLContext) -> dict[str, Any]:
    server = TcpServer(
        partial(Connection, Answer, timeout=10, low_limit=1, high_limit=2),
        address=("", 0),
        max_requests=10,
        keep_alive=2.5,
    )
    server.bind_event("pre_request", abort)
    await server.start_serving(backlog=10, sslcontext=context)
    async with server:
        return server.info()


async def use(client: Asker) -> None:
    async with client:
        await client.ask("hello")
        lease: PoolConnection = await client.questions.connect(timeout=1)
        connection: Connection = lease.connection
        consumer: ProtocolConsumer = connection.current_consumer()
        started: ProtocolConsumer = await consumer.start(b"hello")
        finished: OneTime = started.on_finished
        await finished
        waiting = connection.write(b"x")
        if waiting is not None:
            await waiting
        connection.timeout = 5
        await connection.start_tls(ssl.create_default_context(), server_hostname="localhost")
        assert connection.is_reusable
        assert connection.requests_processed == 1
        lease.close(discard=True)
        gone: OneTime = connection.close()
        await gone
        connection.abort()


async def produce() -> None:
    producer = Producer(asyncio.get_running_loop(), Upper, name="upper")
    protocol: Upper = producer.create_protocol()
    consumer: ProtocolConsumer = producer.build_consumer(Question)
    assert protocol.closed
    assert consumer.done()
