"""Pipelined requests on a server: handled side by side, answered in their order.

A request that is handed to a task (``create_task``) is complete: what arrives behind it goes to
the next consumer.  What is written to a request before its turn is held back until those before it
have finished.

This module knows nothing of how consumers get their data, nor of what the bytes mean.
"""

from collections import deque
from collections.abc import Awaitable
from typing import Any

from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["AnswerLine"]

#: Bytes of answers that wait for their turn above which no further request is taken.
_HELD_LIMIT = 65536


class AnswerLine:
    """The requests of one server connection that are not answered yet.

    Args:
        connection: the ``Connection`` they came on.
        limit: how many may be in flight; reading pauses beyond it.
    """

    #: What made it impossible to go on.
    failure: BaseException | None = None
    waiting = 0
    abandoned = 0

    def __init__(self, connection: Any, limit: int) -> None:
        self.limit = limit
        self._connection = connection
        # Those whose data is complete and whose turn has not ended; the first one's answer goes
        # out as it is written.  The one that still takes data is none of them.
        self._line: deque[ProtocolConsumer] = deque()
        self._held = 0
        # Answers that leave together at the end of this turn of the loop.
        self._chunks: list[bytes | bytearray | memoryview] = []
        self._scheduled = False

    def __len__(self) -> int:
        return len(self._line)

    @property
    def busy(self) -> bool:
        """True while an answer is due."""
        return bool(self._line or self._chunks)

    def has_room(self) -> bool:
        """True if a further request may be taken."""
        return len(self._line) < self.limit and self._held < _HELD_LIMIT

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self.flush()  # what is written now comes behind it
        self._connection._feed(data)

    def complete(self, consumer: ProtocolConsumer) -> None:
        """The request of a consumer is complete, and a task answers it."""
        connection = self._connection
        if connection._current_consumer is consumer and not consumer._done:
            connection._current_consumer = None
            self._line.append(consumer)

    def write(
        self, consumer: ProtocolConsumer, data: bytes | bytearray | memoryview
    ) -> Awaitable[None] | None:
        """Send a part of an answer, or hold it back until its turn; see ``Connection.write``.

        Raises:
            ConnectionClosed: the connection is closing or lost.
            RuntimeError: the consumer has finished; others have had their turn since, perhaps.
        """
        connection = self._connection
        line = self._line
        if consumer._done:
            raise RuntimeError(f"{consumer!r}: it has finished, its answer was complete")
        if not line or line[0] is consumer or connection._closing:
            consumer._sent = True
            if not self._chunks and (len(line) < 2 or connection._closing):
                result: Awaitable[None] | None = connection.write(data)
                return result
            self._send(bytes(data))
        else:
            if consumer._held is None:
                consumer._held = []
            consumer._held.append(bytes(data))
            self._held += len(data)
        return connection._drained() if connection._paused else None

    def _send(self, data: bytes) -> None:
        self._chunks.append(data)
        if not self._scheduled:
            self._scheduled = True
            self._connection._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._scheduled = False
        self.flush()
        self._go_on()

    def flush(self) -> None:
        """Send what is due."""
        chunks, self._chunks = self._chunks, []
        if chunks and not self._connection.closed:
            self._connection.write(b"".join(chunks))

    def expose(self) -> None:
        """Somebody gets the transport itself: all that was written before goes first."""
        self.flush()

    def request_done(self, consumer: ProtocolConsumer) -> None:
        """A consumer has finished; called by it, before anybody is told."""
        connection = self._connection
        if connection._lost:
            return
        line = self._line
        if line:
            if connection._current_consumer is consumer:
                line.append(consumer)  # its turn comes
            elif line[0] is consumer:
                self._next_turn()
        connection.request_done(consumer)

    def _next_turn(self) -> None:
        """The first is done: what was held back is due, up to the first that is not done."""
        line = self._line
        while line and line[0]._done:
            line.popleft()
            # Where the line ends, the turn is that of the one that still takes data.
            head = line[0] if line else self._connection._current_consumer
            if head is not None and head._held is not None:
                for data in head._held:
                    self._held -= len(data)
                    self._send(data)
                head._held = None
                head._sent = True
        self._go_on()

    def _go_on(self) -> None:
        """Take further requests, or end, now that answers are out."""
        connection = self._connection
        if connection._closing or connection._feeding:
            return
        if connection._read_holds & connection._HOLD_FULL and self.has_room():
            connection._release_reading(connection._HOLD_FULL)
            if connection._buffered:
                connection._loop.call_soon(connection._after_request)
        if not self.busy:
            connection.tell_drained()
            if connection._last_request:
                connection._loop.call_soon(connection._after_request)

    # What only clients' pipelines do more about

    def prepare(self, consumer: ProtocolConsumer) -> None:
        """Callbacks of ``pre_request`` run: the connection reads no more meanwhile."""

    def upgrade(self) -> None:
        """Another protocol comes behind the current request."""
        if self._connection._current_consumer is None:
            self._connection.current_consumer()

    def lost(self) -> list[ProtocolConsumer]:
        """The connection is lost: give those that it took with it, in their order."""
        left = list(self._line)
        self._line.clear()
        self._chunks = []
        return left
