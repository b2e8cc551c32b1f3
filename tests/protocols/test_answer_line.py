"""Pipelined requests on a server: handled side by side, answered in their order."""

import asyncio
import itertools
import random
from functools import partial
from typing import Any, ClassVar

import pytest
from protocol_kit import Answers, EchoLine, Line, connected, lost, raw_client, turns, until

from pulsar_client import Connection, TcpServer
from pulsar_client.testing import Link, memory_pair


class Gated(Line):
    """Server: a task answers a line when the test opens its gate."""

    gates: ClassVar[dict[bytes, asyncio.Event]]

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.create_task(self.answer(line))
        return rest

    def eof_received(self) -> bool:
        return False  # asked while the line is incomplete

    async def answer(self, line: bytes) -> None:
        gate = self.gates.setdefault(line, asyncio.Event())
        await gate.wait()
        self.write(line)
        self.write(b"\n")
        self.finished()


class Raw(asyncio.Protocol):
    """The client's side: keeps what it gets."""

    transport: Any = None

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.chunks.append(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set()

    @property
    def received(self) -> bytes:
        return b"".join(self.chunks)


def gated() -> type[Gated]:
    return type("Gated", (Gated,), {"gates": {}})


async def pair(consumer: Any, pipeline: int | None = 100, **kw: Any) -> tuple[Raw, Connection]:
    near, far = Raw(), Connection(consumer, pipeline=pipeline, producer=Answers(), **kw)
    memory_pair(near, far)
    await turns(1)
    return near, far


def open_gate(consumer: type[Gated], line: bytes) -> None:
    consumer.gates.setdefault(line, asyncio.Event()).set()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_whatever_the_handlers_order_answers_leave_in_that_of_the_requests(
    order: tuple[int, ...],
) -> None:
    consumer = gated()
    near, far = await pair(consumer)
    near.transport.write(b"0\n1\n2\n3\n")
    await turns()
    done: set[int] = set()
    for number in order:
        open_gate(consumer, b"%d" % number)
        await turns()
        done.add(number)
        first = next((i for i in range(4) if i not in done), 4)
        assert near.received == b"".join(b"%d\n" % i for i in range(first))
    assert not far.info()["connection"]["pipeline"]["in_flight"]
    await lost(far)


async def test_answers_of_one_turn_leave_in_one_write() -> None:
    consumer = gated()
    near, far = await pair(consumer)
    near.transport.write(b"0\n1\n2\n3\n")
    await turns()
    for number in (3, 1, 0, 2):
        open_gate(consumer, b"%d" % number)
    await turns()
    assert near.chunks == [b"0\n1\n2\n3\n"]
    await lost(far)


async def test_a_plain_answer_waits_for_the_slow_one_before_it() -> None:
    class Either(Gated):
        gates: ClassVar[dict[bytes, asyncio.Event]] = {}

        def data_received(self, data: bytes) -> bytes:
            line, rest = self.decoder.decode(data)
            if line is not None and line.startswith(b"slow"):
                self.create_task(self.answer(line))
            elif line is not None:
                self.write(line + b"\n")
                self.finished()
            return rest

    near, far = await pair(Either)
    near.transport.write(b"a\nslow\nb\nc\n")
    await turns()
    assert near.received == b"a\n"
    open_gate(Either, b"slow")
    await turns()
    assert near.received == b"a\nslow\nb\nc\n"
    await lost(far)


async def test_beyond_the_limit_it_reads_no_more() -> None:
    consumer = gated()
    near, far = await pair(consumer, 2)
    near.transport.write(b"0\n1\n2\n3\n")
    await turns()
    near.transport.write(b"4\n" * 1000)
    await turns()
    assert far.info()["connection"]["pipeline"]["in_flight"] == 2
    assert set(consumer.gates) == {b"0", b"1"}
    assert near.transport.get_write_buffer_size() == 2000
    for number in range(5):
        open_gate(consumer, b"%d" % number)
        await turns(8)
    await until(lambda: near.received == b"0\n1\n2\n3\n" + b"4\n" * 1000)
    await lost(far)


async def test_without_a_pipeline_one_request_at_a_time() -> None:
    consumer = gated()
    near, far = await pair(consumer, None)
    near.transport.write(b"0\n1\n")
    await turns()
    assert set(consumer.gates) == {b"0"}
    open_gate(consumer, b"0")
    open_gate(consumer, b"1")
    await turns(8)
    assert near.received == b"0\n1\n"
    await lost(far)


@pytest.mark.parametrize("size", range(1, 10))
async def test_requests_cut_anywhere(size: int) -> None:
    consumer = gated()
    near, far = Connection(Line, pipeline=10), Connection(consumer, pipeline=3, producer=Answers())
    memory_pair(near, far, to_server=Link(split=size), to_client=Link(split=size))
    await turns(1)
    lines = [b"line %d" % i for i in range(10)]
    for line in reversed(lines):
        open_gate(consumer, line)
    assert await asyncio.gather(*(near.request(line) for line in lines)) == lines
    await lost(near, far)


async def test_the_connection_is_lost_and_every_handler_is_cancelled() -> None:
    consumer = gated()
    before = asyncio.all_tasks()
    near, far = await pair(consumer)
    near.transport.write(b"0\n1\n2\n")
    await turns()
    assert len(asyncio.all_tasks() - before) == 3
    far.abort()
    await turns()
    assert not asyncio.all_tasks() - before
    await lost(far)


@pytest.mark.allow_loop_errors
async def test_a_handler_that_raises_closes_after_the_answers_before_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Gated):
        gates: ClassVar[dict[bytes, asyncio.Event]] = {}

        async def answer(self, line: bytes) -> None:
            if line == b"bad":
                raise ValueError("planted")
            await super().answer(line)

    near, far = await pair(Failing)
    open_gate(Failing, b"0")
    near.transport.write(b"0\n")
    await turns()
    near.transport.write(b"bad\n1\n")
    await near.lost.wait()
    assert near.received == b"0\n"
    assert "planted" in caplog.text
    await lost(far)


async def test_a_handler_that_forgets_to_finish_is_found(caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(Gated):
        async def answer(self, line: bytes) -> None:
            self.write(line + b"\n")

    near, far = await pair(Forgetful)
    near.transport.write(b"0\n1\n")
    await near.lost.wait()
    assert "tasks have ended" in caplog.text
    await lost(far)


async def test_after_the_clients_end_of_file_the_answers_due_are_sent() -> None:
    consumer = gated()
    server = TcpServer(partial(Connection, consumer, pipeline=10), address=("127.0.0.1", 0))
    async with server, raw_client(server.address) as peer:
        await peer.send(b"0\n1\n2\nincomplete")
        peer.sock.shutdown(1)
        await until(lambda: set(consumer.gates) == {b"0", b"1", b"2"})
        for number in (2, 1, 0):
            open_gate(consumer, b"%d" % number)
        assert await peer.receive_all() == b"0\n1\n2\n"


async def test_a_graceful_close_lets_all_answers_out() -> None:
    consumer = gated()
    server = TcpServer(partial(Connection, consumer, pipeline=10), address=("127.0.0.1", 0))
    async with server, raw_client(server.address) as peer:
        await peer.send(b"0\n1\n2\n")
        await until(lambda: set(consumer.gates) == {b"0", b"1", b"2"})
        closing = asyncio.ensure_future(server.close(grace=30))
        for number in (2, 0, 1):
            await turns()
            open_gate(consumer, b"%d" % number)
        assert await peer.receive_all() == b"0\n1\n2\n"
        await closing


async def test_a_client_that_does_not_read_is_not_read_from_p25() -> None:
    class Big(Gated):
        gates: ClassVar[dict[bytes, asyncio.Event]] = {}

        async def answer(self, line: bytes) -> None:
            await asyncio.sleep(0)
            self.write(line * 10_000)
            self.finished()

    near, far = await pair(Big, 4, high_limit=1000, low_limit=0)
    near.transport.pause_reading()
    near.transport.write(b"x\n" * 200)
    await turns(50)
    assert far.transport.get_write_buffer_size() <= 1000 + 5 * 10_000
    assert far.requests_processed <= 8
    near.transport.resume_reading()
    await until(lambda: len(near.received) == 200 * 10_000)
    await lost(far)


async def test_answers_that_wait_for_their_turn_are_bounded() -> None:
    class Big(Gated):
        gates: ClassVar[dict[bytes, asyncio.Event]] = {}

        async def answer(self, line: bytes) -> None:
            if line == b"first":
                await super().answer(line)
                return
            self.write(line * 10_000)
            self.finished()

    near, far = await pair(Big, 1000)
    near.transport.write(b"first\n")
    await turns()
    for _ in range(100):
        near.transport.write(b"x\n")
        await turns(2)
    assert far.requests_processed <= 9  # 64 KiB are held, and no more is read
    open_gate(Big, b"first")
    await until(lambda: len(near.received) == len(b"first\n") + 100 * 10_000)
    await lost(far)


async def test_many_out_of_order() -> None:
    chance = random.Random(1)

    class Shuffled(Gated):
        async def answer(self, line: bytes) -> None:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            self.write(line + b"\n")
            self.finished()

    near, far = await connected(
        server=Shuffled, client_kw={"pipeline": 50}, server_kw={"pipeline": 16}
    )
    lines = [b"%d" % i for i in range(500)]
    assert await asyncio.gather(*(near.request(line) for line in lines)) == lines
    assert near.is_reusable
    await lost(near, far)


async def test_plain_consumers_are_answered_in_one_write_too() -> None:
    near, far = await pair(EchoLine)
    near.transport.write(b"0\n1\n2\n")
    await turns()
    assert near.received == b"0\n1\n2\n"
    near.transport.write(b"3\n4\n5\n")
    await turns()
    assert near.chunks[-1].endswith(b"5\n")
    assert len(near.chunks) <= 4
    await lost(far)


async def test_who_still_takes_data_has_its_turn_when_the_line_ends() -> None:
    class Two(Gated):
        gates: ClassVar[dict[bytes, asyncio.Event]] = {}
        first: bytes | None = None

        def data_received(self, data: bytes) -> bytes:
            line, rest = self.decoder.decode(data)
            if line == b"slow":
                self.create_task(self.answer(line))
            elif line is not None and self.first is None:
                self.first = line
                self.write(b"go on\n")
                return self.data_received(rest) if rest else b""
            elif line is not None and self.first is not None:
                self.write(self.first + line + b"\n")
                self.finished()
            return rest

    near, far = await pair(Two)
    near.transport.write(b"slow\na\n")
    await turns()
    assert near.received == b""
    open_gate(Two, b"slow")
    await turns()
    assert near.received == b"slow\ngo on\n"
    near.transport.write(b"b\nc\n")
    await turns()
    assert near.received == b"slow\ngo on\nab\ngo on\n"
    await lost(far)


async def test_a_late_write_is_refused() -> None:
    errors: list[str] = []

    class Late(Gated):
        def data_received(self, data: bytes) -> bytes:
            line, rest = self.decoder.decode(data)
            if line is not None:
                self.finished()
                try:
                    self.write(line)
                except RuntimeError as exc:
                    errors.append(str(exc))
            return rest

    near, far = await pair(Late)
    near.transport.write(b"x\n")
    await turns()
    assert len(errors) == 1
    assert "has finished" in errors[0]
    assert near.received == b""
    await lost(far)
