"""Clients for the comparison of servers: a request, a kept connection, and a load of both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = ["FAILURES", "LIMIT", "Kept", "Load", "ask", "load"]

#: What a request that failed raises.
FAILURES = (OSError, EOFError, TimeoutError, ValueError)
#: Seconds until a request counts as failed.
LIMIT = 5.0


class Kept:
    """A connection that is kept; ``closed`` once the server has said or shown that it ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._last = False

    @classmethod
    async def open(cls, port: int) -> "Kept":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @property
    def closed(self) -> bool:
        return self._last or self._reader.at_eof() or self._reader.exception() is not None

    async def ask(self, path: str = "/") -> int:
        """Send a request; give the process id that answers."""
        self._writer.write(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise ValueError(f"not an answer: {head!r}")
        self._last = b"connection: close" in head
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        return int(await self._reader.readexactly(int(length)))

    def close(self) -> None:
        self._writer.close()


async def ask(port: int, path: str = "/", limit: float = LIMIT) -> int:
    """A request on a connection of its own."""
    async with asyncio.timeout(limit):
        connection = await Kept.open(port)
        try:
            return await connection.ask(path)
        finally:
            connection.close()


@dataclass
class Load:
    """What clients did."""

    new: int = 0
    new_failed: int = 0
    kept: int = 0
    kept_failed: int = 0
    errors: list[str] = field(default_factory=list)
    #: The processes that have answered.
    pids: set[int] = field(default_factory=set)


async def _new_connections(port: int, done: Load, pause: float) -> None:
    while True:
        done.new += 1
        try:
            done.pids.add(await ask(port))
        except FAILURES as exc:
            done.new_failed += 1
            done.errors.append(f"new: {exc!r}")
        await asyncio.sleep(pause)


async def _kept_connection(port: int, done: Load, pause: float) -> None:
    """Opens another connection where a good client would: when the server has closed this one.

    Only a request that was sent and not answered has failed; so has a connection refused.
    """
    connection: Kept | None = None
    while True:
        done.kept += 1
        try:
            async with asyncio.timeout(LIMIT):
                if connection is None:
                    connection = await Kept.open(port)
                done.pids.add(await connection.ask())
        except FAILURES as exc:
            done.kept_failed += 1
            done.errors.append(f"kept: {exc!r}")
            if connection is not None:
                connection.close()
                connection = None
        await asyncio.sleep(pause)
        if connection is not None and connection.closed:
            connection.close()
            connection = None


@asynccontextmanager
async def load(port: int, new: int, kept: int, pause: float) -> AsyncIterator[Load]:
    """Clients that ask while the block runs, each with a pause of so many seconds in between."""
    done = Load()
    clients = [_new_connections(port, done, pause) for _ in range(new)]
    clients += [_kept_connection(port, done, pause) for _ in range(kept)]
    tasks = [asyncio.create_task(client) for client in clients]
    try:
        yield done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
