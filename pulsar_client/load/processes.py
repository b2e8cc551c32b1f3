"""Workers as processes of this machine."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pulsar_client.load.coordinator import LINE_LIMIT

__all__ = ["ProcessLink", "process_links"]

_END_WITHIN = 3.0


class ProcessLink:
    """A child process, and the pipes to it.

    Args:
        process: started with pipes for its standard input and output.

    Attributes:
        pid: of the process.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def send(self, message: dict[str, Any]) -> None:
        """Write a line to it; nothing happens if it is gone, which receive() tells."""
        writer = self._process.stdin
        assert writer is not None
        if writer.is_closing():  # uvloop raises RuntimeError when one writes all the same
            return
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()

    async def receive(self) -> dict[str, Any] | None:
        """Read a line from it."""
        reader = self._process.stdout
        assert reader is not None
        line = await reader.readline()
        message: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return message

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """End it: it stops when its input ends, and is killed when it does not."""
        writer = self._process.stdin
        assert writer is not None
        writer.close()
        try:
            async with asyncio.timeout(_END_WITHIN):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def process_links(count: int, loop: str) -> AsyncIterator[list[ProcessLink]]:
    """Start processes, and end them.

    Args:
        count: how many.
        loop: which event loop they use, by name.
    """
    links: list[ProcessLink] = []
    try:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pulsar_client.load.worker_process", loop),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE_LIMIT,
                start_new_session=True,
            )
            links.append(ProcessLink(process))
        yield links
    except BaseException:
        for link in links:
            link.kill()
        raise
    finally:
        await asyncio.gather(*(link.close() for link in links))
