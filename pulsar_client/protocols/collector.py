"""Answers that leave together: what a server writes to several requests of one chunk.

This module knows nothing of consumers; who feeds them says when to begin and when to flush.
"""

from collections.abc import Awaitable

from pulsar_client.exceptions import ConnectionClosed
from pulsar_client.protocols.protocol import Protocol

__all__ = ["Collector"]

#: Bytes of answers that are collected for one system call.
_COLLECT_LIMIT = 65536


class Collector(Protocol):
    """A stream protocol that can hold back what it writes, for a while; see ``Protocol``."""

    _collected_size = 0
    # What is held back; None while writing goes straight to the transport.
    _collected: list[bytes] | None = None

    def _begin_collecting(self) -> None:
        """There is more than one request: their answers may leave together.

        Not while the transport has a backlog: what is collected here would come on top of its
        high-water mark.
        """
        producer = self.producer
        if (
            self._many_times is None
            and (producer is None or producer._many_times is None)
            and self._high_limit != 0
            and self._transport.get_write_buffer_size() == 0
        ):
            self._collected = []

    def _collect(self, data: bytes) -> Awaitable[None] | None:
        """Keep an answer until the data that arrived is consumed, but not too much."""
        assert self._collected is not None
        self._collected.append(data)
        self._collected_size += len(data)
        if self._collected_size >= min(_COLLECT_LIMIT, self._high_limit or _COLLECT_LIMIT):
            self._flush()
            if self._transport.get_write_buffer_size():
                self._collected = None  # from here on the transport must see each answer (P25)
        return self._drained() if self._paused else None

    def _flush(self) -> None:
        """Hand what was collected to the transport."""
        collected = self._collected
        if collected:
            self._collected = []
            self._collected_size = 0
            try:
                Protocol.write(self, b"".join(collected))
            except ConnectionClosed as closed:
                self.logger.debug("%s: %d answers are lost: %s", self, len(collected), closed)
