"""``python -m benchmarks.pipelining``: requests that share a connection, against one by hand.

The client by hand appends a future to a deque, joins what is written in one turn of the loop, and
resolves the futures as its parser yields replies.  With a codec both sides have the same parser,
so that what is compared is everything else; consumers have a decoder of the library.  The server
joins its answers; what counts is the client's CPU time.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from benchmarks import loops
from benchmarks.__main__ import MALLOC, usable_cores
from benchmarks.bare import SEPARATOR
from benchmarks.echoes import MESSAGE
from benchmarks.pairing import Case, Side, Slice, run_case
from benchmarks.report import LINE, line
from benchmarks.server_process import ServerProcess, pin
from pulsar_client import AbstractClient, Connection, DelimitedDecoder, ProtocolConsumer

TASKS = (1, 50)
LIMIT = 1000


class Messages:
    """The parser of both sides."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._rest = b""

    @property
    def pending(self) -> int:
        return len(self._rest)

    def encode(self, message: bytes) -> bytes:
        return message + SEPARATOR

    def feed(self, data: bytes) -> None:
        *self._messages, self._rest = (self._rest + data).split(SEPARATOR)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._messages)


class ByHand(asyncio.Protocol):
    """What a good engineer writes."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.parser = Messages()
        self.in_flight: deque[asyncio.Future[bytes]] = deque()
        self.batch: list[bytes] = []
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def request(self, message: bytes) -> "asyncio.Future[bytes]":
        waiter = self.loop.create_future()
        self.in_flight.append(waiter)
        if not self.batch:
            self.loop.call_soon(self.flush)
        self.batch.append(self.parser.encode(message))
        return waiter

    def flush(self) -> None:
        batch, self.batch = self.batch, []
        self.transport.write(b"".join(batch))

    def data_received(self, data: bytes) -> None:
        self.parser.feed(data)
        for message in self.parser:
            waiter = self.in_flight.popleft()
            if not waiter.done():
                waiter.set_result(message)


class Consumer(ProtocolConsumer):
    """The same with a consumer for each request, and a decoder of the library."""

    def connection_made(self, connection: Connection) -> None:
        if connection.parser is None:
            connection.parser = DelimitedDecoder(SEPARATOR)

    def start_request(self) -> None:
        self.write(self.request + SEPARATOR)

    def data_received(self, data: bytes) -> bytes:
        decoder: DelimitedDecoder = self.connection.parser
        message, rest = decoder.decode(data)
        if message is not None:
            self.finished(message)
        return rest


def requests(request: Callable[[bytes], Awaitable[bytes]], tasks: int, operations: int) -> Side:
    each = max(1, operations // tasks)

    async def task() -> None:
        for _ in range(each):
            if await request(MESSAGE) != MESSAGE:
                raise RuntimeError("the answer is not what was sent")

    async def side() -> Slice:
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(task() for _ in range(tasks)))
        return Slice(each * tasks, time.process_time() - cpu, time.perf_counter() - wall)

    return side


@asynccontextmanager
async def pipelining(loop: str, operations: int, core: int | None) -> AsyncIterator[list[Case]]:
    """Each way to make requests on a shared connection, at the same bare server."""
    with ServerProcess("bare-joined", loop, core) as server:
        _, hand = await asyncio.get_running_loop().create_connection(ByHand, *server.address)
        async with AbstractClient() as client:
            dial = partial(client.create_connection, server.address)
            codec = await dial(partial(Connection, codec=Messages, pipeline=LIMIT))
            consumers = await dial(partial(Connection, Consumer, pipeline=LIMIT))
            ways: dict[str, Callable[[bytes], Awaitable[bytes]]] = {
                "codec": codec.request,
                "codec, time-outs": partial(codec.request, timeout=30.0),
                "consumers": consumers.request,
            }
            yield [
                Case(
                    "-",
                    f"{name}, {tasks} task{'s' if tasks > 1 else ''}",
                    loop,
                    name,
                    sides={
                        name: requests(way, tasks, operations),
                        "by hand": requests(hand.request, tasks, operations),
                    },
                    goals={"by hand": None},
                    costs=False,
                )
                for tasks in TASKS
                for name, way in ways.items()
            ]
        hand.transport.abort()


async def measure(loop: str, rounds: int, slices: int, operations: int) -> None:
    cores = usable_cores()
    pin(cores[0])
    async with pipelining(loop, operations, cores[-1]) as cases:
        for case in cases:
            for result in await run_case(case, rounds, slices):
                print(line(result), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelining", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short slices: less exact")
    options = parser.parse_args()
    missing = {name: value for name, value in MALLOC.items() if os.environ.get(name) != value}
    if missing:
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.pipelining", *sys.argv[1:]])
    print(LINE)
    for loop in loops.available():
        if options.quick:
            loops.run_in(loop, measure(loop, 3, 3, 200))
        else:
            loops.run_in(loop, measure(loop, 7, 5, 1000))
    return 0


if __name__ == "__main__":
    sys.exit(main())
