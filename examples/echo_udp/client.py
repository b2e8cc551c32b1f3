"""A pooled echo client, usable with and without a running event loop."""

import asyncio
from functools import partial
from typing import Any

from examples.echo_udp.protocol import MAX_DATAGRAM, EchoUdpProtocol
from pulsar_client import AbstractUdpClient, DatagramProtocol, Pool


class Echo(AbstractUdpClient):
    """``await echo(b"Hello!")`` gives ``b"Hello!"``, unless a datagram is lost.

    Outside of a running event loop the same call runs to completion and returns the answer.

    Args:
        address: ``(host, port)`` of the server.
        pool_size: the most endpoints, and so the most requests at a time.
        timeout: seconds for a request, the wait for an endpoint included.
        full_response: give the finished consumer instead of the answer.
    """

    protocol_factory = partial(
        DatagramProtocol, consumer_factory=EchoUdpProtocol, max_payload=MAX_DATAGRAM
    )

    def __init__(
        self,
        address: Any,
        pool_size: int = 10,
        *,
        timeout: float = 5.0,
        full_response: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(loop)
        self.address = address
        self.timeout = timeout
        self.full_response = full_response
        self._runner: asyncio.Runner | None = None
        self.pool: Pool = Pool(self.connect, pool_size, loop, timeout, name="echo_udp")

    async def create_endpoint(self) -> DatagramProtocol:
        """Open an endpoint, for the pool."""
        endpoint: DatagramProtocol = await self.create_datagram_endpoint(remote_addr=self.address)
        return endpoint

    def __call__(self, message: bytes) -> Any:
        """Send a message; return an awaitable answer, or outside of a loop the answer itself.

        Raises:
            RequestTimeout, PoolTimeout: there was no answer in time.
            ConnectionRefusedError: nobody is there.
            ValueError: the message is too long for a datagram.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            if self._runner is None:
                self._runner = asyncio.Runner()
            return self._runner.run(self._echo(message))
        return self._echo(message)

    async def _echo(self, message: bytes) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        async with self.pool.connect() as lease:
            endpoint: DatagramProtocol = lease.connection
            left = max(0.0, deadline - loop.time())
            if not self.full_response:
                return await endpoint.request(message, left)
            endpoint.request_timeout = left
            consumer = endpoint.current_consumer()
            consumer.start(message)
            await consumer.on_finished
            return consumer

    def close(self) -> None:
        """Close the endpoints; outside of a loop wait for it, and end the client's own loop."""
        if self._runner is None:
            super().close()
            return
        self._runner.run(self._close())
        self._runner.close()
        self._runner = None

    async def _close(self) -> None:
        super().close()
        await self.wait_closed()
