"""What ``ProtocolConsumer.start`` returns: awaitables for the moment a request is handed over.

This module knows nothing of connections.
"""

import asyncio
from collections.abc import Generator
from typing import Any

from pulsar_client.exceptions import AbortRequest

__all__ = ["Started", "Starting"]


class Started:
    """The request is handed over already."""

    __slots__ = ("_consumer",)

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def __await__(self) -> Generator[Any, None, Any]:
        return self._consumer
        yield


class Starting:
    """Coroutine callbacks of ``pre_request`` run, or the request waits for room on its connection.

    Args:
        consumer: what awaiting gives.
        over: done when the request is handed over, or will never be.
    """

    __slots__ = ("_consumer", "_over")

    def __init__(self, consumer: Any, over: asyncio.Future[None]) -> None:
        self._consumer = consumer
        self._over = over

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            yield from self._over
        except asyncio.CancelledError:
            # Whoever waited for start() gave up before anything was written.
            consumer = self._consumer
            consumer.finished(exc=AbortRequest(f"{consumer!r} was cancelled before it was sent"))
            raise
        return self._consumer
