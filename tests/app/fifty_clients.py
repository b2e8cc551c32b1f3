"""Fifty clients at once: half of them connect anew for each request, half share a pool."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

from examples.echo import Echo

MESSAGE = b"0123456789abcdef" * 4
END = b"\r\n\r\n"
#: Seconds that a server which retires leaves a new connection for its first request (P15).
FIRST_BYTE = 1.0
#: Seconds without a request after which it counts one that is kept as idle.
QUIET = 0.05


@dataclass
class Load:
    """What the clients met with.

    ``refused`` and ``broken`` are of new connections: not made, and made but not answered.
    ``late`` are failures of requests that left only when their time was over, because the machine
    held up this process: a new connection has `FIRST_BYTE` seconds for the first one, and one
    that is kept counts as idle when nothing has come for `QUIET` seconds.
    """

    connections: int = 0
    requests: int = 0
    refused: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    pool_errors: list[str] = field(default_factory=list)
    sent: dict[int, float] = field(default_factory=dict, repr=False)
    stopping: bool = False

    @property
    def failures(self) -> list[str]:
        return self.refused + self.broken + self.pool_errors

    async def connect_anew(self, address: Any) -> None:
        loop = asyncio.get_running_loop()
        while not self.stopping:
            began = loop.time()
            try:
                async with asyncio.timeout(20):
                    if isinstance(address, str):
                        reader, writer = await asyncio.open_unix_connection(address)
                    else:
                        reader, writer = await asyncio.open_connection(*address)
            except (OSError, TimeoutError) as error:
                if not self.stopping:
                    self.refused.append(repr(error))
                await asyncio.sleep(0.01)
                continue
            self.connections += 1
            writer.write(MESSAGE + END)
            in_time = loop.time() - began < FIRST_BYTE
            try:
                async with asyncio.timeout(20):
                    reply = await reader.readexactly(len(MESSAGE + END))
                if reply != MESSAGE + END:
                    self.broken.append(f"a wrong answer: {reply!r}")
            except (OSError, EOFError, TimeoutError) as error:
                (self.broken if in_time else self.late).append(repr(error))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def keep_alive(self, echo: Echo) -> None:
        loop = asyncio.get_running_loop()
        while not self.stopping:
            in_time = True
            began = loop.time()
            try:
                async with echo.pool.connect() as lease:
                    connection = lease.connection
                    now = loop.time()
                    before = self.sent.get(connection.session)
                    in_time = now < (began + FIRST_BYTE if before is None else before + QUIET)
                    self.sent[connection.session] = now
                    if await connection.request(MESSAGE) != MESSAGE:
                        self.pool_errors.append("a wrong answer")
                self.requests += 1
            except Exception as error:
                if self.stopping:
                    return
                (self.pool_errors if in_time else self.late).append(repr(error))
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def under_load(address: Any, clients: int = 50) -> Any:
    """Run the clients while the block runs."""
    load = Load()
    async with Echo(address, clients // 2) as echo, asyncio.TaskGroup() as group:
        for number in range(clients):
            if number % 2:
                group.create_task(load.keep_alive(echo))
            else:
                group.create_task(load.connect_anew(address))
        try:
            yield load
        finally:
            load.stopping = True
