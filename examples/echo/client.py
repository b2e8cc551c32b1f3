"""A pooled echo client, usable with and without a running event loop."""

import asyncio
from functools import partial
from typing import Any

from examples.echo.protocol import SEPARATOR, EchoProtocol
from pulsar_client import AbstractClient, Connection, Pool


class Echo(AbstractClient):
    """``await echo(b"Hello!")`` gives ``b"Hello!"``, if the server is any good.

    Outside of a running event loop the same call runs to completion and returns the answer.

    Args:
        address: ``(host, port)`` or ``"unix:/path"``.
        pool_size: the most connections.
        timeout: seconds in which a connection must be leased.
        full_response: give the finished consumer instead of the answer.
        **kw: for :meth:`AbstractClient.create_connection`: ``ssl``, ``server_hostname``, …
    """

    protocol_factory = partial(Connection, EchoProtocol)

    def __init__(
        self,
        address: Any,
        pool_size: int = 10,
        *,
        timeout: float | None = 30.0,
        full_response: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        **kw: Any,
    ) -> None:
        super().__init__(loop)
        self.address = address
        self.full_response = full_response
        self._connect_kw = kw
        self._runner: asyncio.Runner | None = None
        self.pool: Pool = Pool(self.connect, pool_size, loop, timeout, name="echo")

    async def connect(self) -> Connection:
        """Open a connection, for the pool."""
        connection: Connection = await self.create_connection(self.address, **self._connect_kw)
        return connection

    def __call__(self, message: bytes) -> Any:
        """Send a message; return an awaitable answer, or outside of a loop the answer itself."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._run(message)
        return self._echo(message)

    async def _echo(self, message: bytes) -> Any:
        if SEPARATOR in message:
            raise ValueError(f"the message has the separator {SEPARATOR!r} in it: {message!r}")
        async with self.pool.connect() as lease:
            connection: Connection = lease.connection
            if not self.full_response:
                return await connection.request(message)
            consumer = connection.current_consumer()
            consumer.start(message)
            await consumer.on_finished
            return consumer

    def _run(self, message: bytes) -> Any:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(self._echo_after_a_look(message))

    async def _echo_after_a_look(self, message: bytes) -> Any:
        # The loop stood still since the last call: let it see first which connections ended.
        for _ in range(3):
            await asyncio.sleep(0)
        return await self._echo(message)

    def close(self) -> None:
        """Close the connections; outside of a loop wait for it, and end the client's own loop."""
        if self._runner is None:
            super().close()
            return
        self._runner.run(self._close())
        self._runner.close()
        self._runner = None

    async def _close(self) -> None:
        super().close()
        await self.wait_closed()
