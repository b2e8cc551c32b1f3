"""What consumers write: straight to the transport, or collected, or by way of a pipeline.

This module knows nothing of who reads what, nor of how connections begin and end.
"""

from collections.abc import Awaitable
from typing import Any

from pulsar_client.exceptions import ConnectionClosed
from pulsar_client.protocols.drainable import Drainable
from pulsar_client.protocols.protocol import Protocol

__all__ = ["ConsumerOutput"]


class ConsumerOutput(Drainable):
    """The half of a ``Connection`` that writes for consumers; see ``Protocol``."""

    # Set by ConsumerFeed.
    server_side: bool
    _current_consumer: Any
    _pipeline: Any

    @property
    def transport(self) -> Any:
        """The transport; None before ``connection_made``.

        Whoever writes to it directly comes after everything that was written before.
        """
        if self._collected:
            self._flush()
        if self._pipeline is not None:
            self._pipeline.expose()
        if self._current_consumer is not None:
            self._current_consumer._sent = True  # or it may be, out of our sight
        return self._transport

    def write(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """Hand bytes to the transport; see ``Protocol.write``.

        What a server answers to several requests that arrived together leaves in one system call.

        Raises:
            ConnectionClosed: the connection is closing or lost; ``sent`` tells whether any byte of
                the request in flight had been written before.
        """
        transport, producer, consumer = self._transport, self.producer, self._current_consumer
        if (
            self._collected is not None
            or self._pipeline is not None
            or self._timeout is not None
            or self._many_times is not None
            or (producer is not None and producer._many_times is not None)
            or self._closing
            or transport is None
            or transport.is_closing()
        ):
            return self._write_otherwise(data)
        # What Protocol.write() does, for a call less: nearly every request passes here.
        self._written += len(data)
        transport.write(data)
        if consumer is not None:
            consumer._sent = True
        return self._drained() if self._paused else None

    def _write_otherwise(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """The same where there is more to see to."""
        consumer = self._current_consumer
        if self._collected is not None:
            if type(data) is bytes and not self._closing:
                if consumer is not None:
                    consumer._sent = True
                return self._collect(data)
            self._flush()
        if self._pipeline is not None:
            if not self.server_side:
                raw: Awaitable[None] | None = self._pipeline.write_raw(data)
                return raw
            self._pipeline.flush()
        try:
            waiter = Protocol.write(self, data)
        except ConnectionClosed as closed:
            closed.sent = consumer is not None and consumer._sent
            raise
        if consumer is not None:
            consumer._sent = True
        return waiter
