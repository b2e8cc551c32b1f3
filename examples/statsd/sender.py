"""The sender: fire and forget, many metrics a datagram.

Whoever counts something must not wait for a network.  ``count`` and its like put a line into a
bounded queue and return; lines leave together, when a datagram is full or a moment has passed.
What does not fit into the queue is dropped, and the sender tells the server how much that was.
"""

import asyncio
from collections import deque
from functools import partial
from typing import Any

from pulsar_client import AbstractUdpClient, DatagramProtocol

#: Bytes of a datagram: no network on the way cuts it in pieces.
PAYLOAD = 1232
DROPPED = "statsd.sender.dropped"


class Sender(AbstractUdpClient):
    """Sends metrics to a statsd server.

    ::

        async with Sender(("127.0.0.1", 8125)) as metrics:
            metrics.count("requests")
            metrics.timing("response", 0.0123)

    Args:
        address: ``(host, port)`` of the server.
        prefix: put before every name, with a dot.
        max_lines: lines that may wait; further ones are dropped and counted.
        interval: seconds that a line waits at most for others to leave with it.
    """

    protocol_factory = partial(DatagramProtocol, max_payload=PAYLOAD)

    def __init__(
        self,
        address: tuple[str, int],
        *,
        prefix: str = "",
        max_lines: int = 10_000,
        interval: float = 0.1,
    ) -> None:
        super().__init__()
        self.address = address
        self.interval = interval
        #: Lines that were dropped: the queue was full, or the system took no datagram.
        self.dropped = 0
        self._told = 0
        self._prefix = f"{prefix}." if prefix else ""
        self._max_lines = max_lines
        self._lines: deque[bytes] = deque()
        self._endpoint: DatagramProtocol | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Sender":
        await self.create_endpoint()
        return self

    async def create_endpoint(self) -> DatagramProtocol:
        """Open the socket; ``async with`` does it."""
        self._endpoint = await self.create_datagram_endpoint(remote_addr=self.address)
        assert self._endpoint is not None
        return self._endpoint

    # Metrics: none of these waits, and none fails because of the network

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        self._put(name, number, "c")

    def gauge(self, name: str, value: float) -> None:
        """Set what is true now."""
        self._put(name, value, "g")

    def timing(self, name: str, seconds: float) -> None:
        """Tell how long something took."""
        self._put(name, round(seconds * 1000, 3), "ms")

    def _put(self, name: str, value: Any, kind: str) -> None:
        if not name or any(letter in name for letter in ":|@\n"):
            raise ValueError(f"the name of a metric is {name!r}, expected none of ':|@' in it")
        line = f"{self._prefix}{name}:{value}|{kind}".encode()
        if len(line) > PAYLOAD:
            raise ValueError(f"the metric {name[:40]!r}… is longer than {PAYLOAD} bytes")
        if len(self._lines) >= self._max_lines:
            self.dropped += 1
            return
        self._lines.append(line)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.interval, self.flush)

    # Sending

    def flush(self) -> None:
        """Send what waits, as full datagrams."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._endpoint is None:
            return
        if self.dropped > self._told:
            self._lines.append(f"{DROPPED}:{self.dropped - self._told}|c".encode())
            self._told = self.dropped
        batch: list[bytes] = []
        size = 0
        while self._lines:
            line = self._lines.popleft()
            if batch and size + 1 + len(line) > PAYLOAD:
                self._send(batch)
                batch, size = [], 0
            size += len(line) + (1 if batch else 0)
            batch.append(line)
        if batch:
            self._send(batch)

    def _send(self, batch: list[bytes]) -> None:
        assert self._endpoint is not None
        if not self._endpoint.send(b"\n".join(batch)):
            self.dropped += len(batch)

    def close(self) -> None:
        """Send what waits and close."""
        self.flush()
        self._endpoint = None
        super().close()
