"""Fifty clients at once: half of them connect anew for each request, half share a pool."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

from examples.echo import Echo

MESSAGE = b"0123456789abcdef" * 4
END = b"\r\n\r\n"


@dataclass
class Load:
    """What the clients met with.

    ``refused`` and ``broken`` are of new connections: not made, and made but not answered.
    """

    connections: int = 0
    requests: int = 0
    refused: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    pool_errors: list[str] = field(default_factory=list)
    stopping: bool = False

    @property
    def failures(self) -> list[str]:
        return self.refused + self.broken + self.pool_errors

    async def connect_anew(self, address: Any) -> None:
        while not self.stopping:
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
            try:
                async with asyncio.timeout(20):
                    writer.write(MESSAGE + END)
                    reply = await reader.readexactly(len(MESSAGE + END))
                if reply != MESSAGE + END:
                    self.broken.append(f"a wrong answer: {reply!r}")
            except (OSError, EOFError, TimeoutError) as error:
                self.broken.append(repr(error))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def keep_alive(self, echo: Echo) -> None:
        while not self.stopping:
            try:
                if await echo(MESSAGE) != MESSAGE:
                    self.pool_errors.append("a wrong answer")
                self.requests += 1
            except Exception as error:
                if self.stopping:
                    return
                self.pool_errors.append(repr(error))
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
