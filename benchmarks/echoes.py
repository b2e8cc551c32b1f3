"""F4 and F5: an echo's cost in CPU time, on the side of the client and of the server."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

from benchmarks import bare
from benchmarks.pairing import Case, Goal, Side, Slice, cpu_of
from benchmarks.server_process import ServerProcess
from examples.echo import Echo

__all__ = ["f4", "f5"]

MESSAGE = bytes(range(48, 112))  # 64 bytes, no separator in it
TASKS = 50
SIZE = 10


# F4


def requests(
    request: Callable[[bytes], Awaitable[bytes]], tasks: int, operations: int, server: int
) -> Side:
    """``operations`` requests by so many tasks, each one after the other."""
    each = max(1, operations // tasks)

    async def task() -> None:
        for _ in range(each):
            if await request(MESSAGE) != MESSAGE:
                raise RuntimeError("the answer is not what was sent")

    async def side() -> Slice:
        there = cpu_of(server)
        wall, here = time.perf_counter(), time.process_time()
        if tasks == 1:
            await task()
        else:
            await asyncio.gather(*(task() for _ in range(tasks)))
        here = time.process_time() - here
        wall = time.perf_counter() - wall
        # Both on one core: the inverse of the rate.
        both = wall if there is None else here + (cpu_of(server) or 0.0) - there
        return Slice(each * tasks, both, wall, here)

    return side


@asynccontextmanager
async def f4(loop: str, operations: int, core: int | None) -> AsyncIterator[list[Case]]:
    """Our client and a hand-written one, at the same bare server, all on one core."""
    goal = Goal(0.9 if loop == "asyncio" else 0.85, at_most=False)
    with ServerProcess("bare", loop, core) as server:
        clients: list[bare.EchoClient] = []
        for _ in range(SIZE + 1):
            _, client = await asyncio.get_running_loop().create_connection(
                bare.EchoClient, *server.address
            )
            clients.append(client)
        single: asyncio.Queue[bare.EchoClient] = asyncio.Queue()
        single.put_nowait(clients[0])
        queue: asyncio.Queue[bare.EchoClient] = asyncio.Queue()
        for client in clients[1:]:
            queue.put_nowait(client)
        async with Echo(server.address, 1) as one, Echo(server.address, SIZE) as ten:
            cases = []
            for name, tasks, ours, hand in (
                ("echo, one after the other", 1, one, single),
                ("echo, 50 tasks, pool of 10", TASKS, ten, queue),
            ):

                async def by_hand(
                    message: bytes, hand: asyncio.Queue[bare.EchoClient] = hand
                ) -> bytes:
                    return await bare.echo(hand, message)

                cases.append(
                    Case(
                        "F4",
                        name,
                        loop,
                        "Echo client",
                        sides={
                            "Echo client": requests(ours, tasks, operations, server.pid),
                            "hand-written": requests(by_hand, tasks, operations, server.pid),
                        },
                        goals={"hand-written": goal},
                        costs=False,
                    )
                )
            yield cases
        for client in clients:
            client.transport.abort()


# F5


class Load:
    """A load client on blocking sockets: every connection keeps ``in_flight`` requests going.

    All the requests of a turn are written, on one connection after the other, and all the
    answers are taken before the next turn: the server always meets the same chunks.
    """

    def __init__(self, address: tuple[str, int], connections: int, in_flight: int) -> None:
        self._chunk = (MESSAGE + bare.SEPARATOR) * in_flight
        self._per_turn = connections * in_flight
        self._sockets = []
        for _ in range(connections):
            sock = socket.create_connection(address, timeout=10.0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(sock)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def run(self, operations: int) -> int:
        """Make about so many requests; return how many they were."""
        chunk = self._chunk
        turns = max(1, operations // self._per_turn)
        for _ in range(turns):
            for sock in self._sockets:
                sock.sendall(chunk)
            for sock in self._sockets:
                answer = sock.recv(65536)
                while len(answer) < len(chunk):
                    more = sock.recv(65536)
                    if not more:
                        raise RuntimeError("the server closed the connection")
                    answer += more
                if answer != chunk:
                    raise RuntimeError("the answer is not what was sent")
        return turns * self._per_turn


def served(load: Load, operations: int, server: int) -> Side:
    async def side() -> Slice:
        cpu = cpu_of(server)
        wall = time.perf_counter()
        done = load.run(operations)
        wall = time.perf_counter() - wall
        used = wall if cpu is None else (cpu_of(server) or 0.0) - cpu
        return Slice(done, used, wall)

    return side


@asynccontextmanager
async def f5(loop: str, operations: int, core: int | None) -> AsyncIterator[list[Case]]:
    """TcpServer and hand-written servers, each in a process of its own, under the same load."""
    kinds = {
        "TcpServer": "library",
        "hand-written": "bare",
        "hand-written, joined writes": "bare-joined",
    }
    with ExitStack() as stack:
        servers = {
            label: stack.enter_context(ServerProcess(kind, loop, core))
            for label, kind in kinds.items()
        }
        cases = []
        for name, connections, in_flight in (
            ("1 connection, 1 in flight", 1, 1),
            ("10 connections, 1 in flight", SIZE, 1),
            ("10 connections, 16 in flight", SIZE, 16),
        ):
            sides = {}
            for label, server in servers.items():
                load = Load(server.address, connections, in_flight)
                stack.callback(load.close)
                sides[label] = served(load, operations * min(in_flight, 4), server.pid)
            # The better of the two by hand: joining pays when there is something to join.
            rival = "hand-written, joined writes" if in_flight > 1 else "hand-written"
            goal = Goal(0.85, at_most=False)
            case = Case("F5", name, loop, "TcpServer", sides, {}, costs=False)
            for label in kinds:
                if label != case.ours and (in_flight > 1 or label == rival):
                    case.goals[label] = goal if label == rival else None
            for label in tuple(sides):
                if label != case.ours and label not in case.goals:
                    del sides[label]
            cases.append(case)
        yield cases
