"""Many requests in flight on one client connection: written together, answered in order.

A request *waits* while the connection has no room, is *begun* when its bytes are in the batch of
this loop turn, and *sent* when the batch was handed to the transport.  From its begin to its end
it is *in flight*; replies go to the requests in flight in their order.

Three rules keep an exchange pure; every path of this module follows one:

1. A reply goes to the oldest request in flight, whether or not somebody still waits for it.
2. A request that was given up is taken back if it was not sent.  Once it was, its consumer reads
   its reply, and nobody gets it.
3. Bytes that no sent request can be waiting for, a consumer that raises, and one that ends out of
   its turn, cut the connection: from there on nobody knows whose reply comes next.

This module knows nothing of pools, nor of what the bytes mean.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any

from pulsar_client.exceptions import (
    AbortRequest,
    ConnectionClosed,
    MessageTooLarge,
    ProtocolError,
)
from pulsar_client.protocols.consumer_contract import refuse_coroutine, unused_bytes
from pulsar_client.protocols.protocol import Protocol
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["Pipeline"]

#: Bytes that leave at once, without waiting for more in this turn of the loop.
_BATCH_LIMIT = 65536
#: Requests given up while they waited that are kept before they are swept out.
_FEW = 16


class Pipeline:
    """The requests of one connection, in their order.

    Args:
        connection: the ``Connection`` they are made on.
        limit: how many may be in flight.
    """

    def __init__(self, connection: Any, limit: int) -> None:
        self.limit = limit
        #: What made it impossible to go on; the cause of what those in flight get.
        self.failure: BaseException | None = None
        self._connection = connection
        # Begun and not finished, abandoned ones included; those behind the last sent are in the
        # batch, or have written nothing.
        self._in_flight: deque[ProtocolConsumer] = deque()
        # They get room in this order; those that were given up stay until they are swept out.
        self._waiting: deque[ProtocolConsumer] = deque()
        self._waiting_over = 0
        # Coroutine callbacks of their pre_request run.
        self._preparing: dict[int, ProtocolConsumer] = {}
        # The batch: what to write, and whose it is.
        self._chunks: list[bytes] = []
        self._owners: list[ProtocolConsumer] = []
        self._size = 0
        self._scheduled = False
        self._withdrawn = False  # some of the batch, or in flight, were given up unsent
        self._last_batch = 1
        # Whose start_request runs, and who was given data and is not done.
        self._writer: ProtocolConsumer | None = None
        self._fed: ProtocolConsumer | None = None
        # Sent, given up, and their reply is still to come.
        self._abandoned = 0
        self._replied_at = 0.0
        self._overdue_handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def busy(self) -> bool:
        """True while there is any request, whatever its state."""
        return bool(self._in_flight or self._preparing) or self.waiting > 0

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return len(self._waiting) - self._waiting_over

    @property
    def abandoned(self) -> int:
        """How many replies are still to come that nobody waits for."""
        return self._abandoned

    # The way of a request

    def prepare(self, consumer: ProtocolConsumer) -> None:
        """A request is started, but callbacks of its ``pre_request`` have to end first."""
        self._preparing[id(consumer)] = consumer
        if self._connection._upgraded:
            self.upgrade()

    def enter(self, consumer: ProtocolConsumer) -> None:
        """Begin a request, or let it wait until those before it have begun and there is room."""
        if self._preparing:
            self._preparing.pop(id(consumer), None)
        connection = self._connection
        if connection._closing or connection._upgraded or connection._last_request:
            why = "is closed" if connection._closing else "takes no more requests"
            consumer.finished(exc=ConnectionClosed(f"{connection} {why}", sent=False))
        elif (
            self._waiting
            or len(self._in_flight) >= self.limit
            or connection._paused
            or self._writer is not None  # made in the middle of another's start_request
        ):
            consumer._queued = True
            self._waiting.append(consumer)
        else:
            self._begin(consumer)
            if self._waiting:
                self.advance()

    def advance(self) -> None:
        """Begin those that wait, as far as there is room."""
        connection = self._connection
        while (
            self._waiting
            and len(self._in_flight) < self.limit
            and not connection._paused
            and not connection._closing
        ):
            consumer = self._waiting.popleft()
            if consumer._done:
                self._waiting_over -= 1
                continue
            consumer._queued = False
            if consumer._begun is not None and not consumer._begun.done():
                consumer._begun.set_result(None)
            self._begin(consumer)

    def _begin(self, consumer: ProtocolConsumer) -> None:
        self._in_flight.append(consumer)
        self._writer = consumer
        try:
            started: object = consumer.start_request()  # type: ignore[func-returns-value]
            if started is not None:
                refuse_coroutine(consumer, "start_request", started)
        except Exception as exc:  # noqa: BLE001 - it is the request's exception
            self._start_failed(consumer, exc)
        finally:
            self._writer = None
        if self._chunks and not self._scheduled:
            if self._last_batch == 1 and len(self._in_flight) == 1:
                # Nobody to share a system call with, neither now nor the last time.
                self.flush()
            else:
                self._schedule_flush()

    def _start_failed(self, consumer: ProtocolConsumer, exc: Exception) -> None:
        self._writer = None
        if consumer._sent or consumer._done:
            self._connection.request_failed(consumer, exc)
        else:
            consumer.finished(exc=exc)  # takes back what it has written; the others go on

    def write(
        self, consumer: ProtocolConsumer, data: bytes | bytearray | memoryview
    ) -> Awaitable[None] | None:
        """Put bytes of a request into the batch; see ``Connection.write``.

        Raises:
            RuntimeError: the consumer is not the newest in flight: its bytes would end up in the
                middle of another request.
            ConnectionClosed: the connection is closing or lost.
        """
        connection = self._connection
        if connection._closing:
            raise ConnectionClosed(
                f"{connection}: can't write, the connection is closed", sent=consumer._sent
            )
        if consumer is not self._writer and (
            self._writer is not None or not self._in_flight or self._in_flight[-1] is not consumer
        ):
            raise RuntimeError(
                f"{consumer!r}: on a pipelined connection a request is written in "
                "start_request(), or while it is the last in flight"
            )
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        self._chunks.append(data)
        self._owners.append(consumer)
        self._size += len(data)
        if self._size >= _BATCH_LIMIT:
            self.flush()
        elif self._writer is None and not self._scheduled:
            self._schedule_flush()
        return connection._drained() if connection._paused else None

    def write_raw(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """Write what is no request's, behind all that was written before."""
        if self._writer is not None:
            return self.write(self._writer, data)
        self.flush()
        return Protocol.write(self._connection, data)

    def expose(self) -> None:
        """Somebody gets the transport itself: all that was written before goes first."""
        self.flush()
        if self._writer is not None:
            self._writer._sent = True  # or it may be, out of our sight

    def _schedule_flush(self) -> None:
        self._scheduled = True
        self._connection._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Hand the batch to the transport, in one call."""
        connection = self._connection
        for owner in self._owners:
            waiter = owner._waiter
            if waiter is not None and waiter.done() and not owner._done:
                self.give_up(owner)  # its task is cancelled, and has not run since
        withdrawn = self._withdrawn
        if withdrawn:
            self._take_back()
        if connection._closing or (self._chunks and connection._transport.is_closing()):
            return  # those whose bytes stay here learn from the loss that they were not sent
        chunks, owners = self._chunks, self._owners
        if chunks:
            self._chunks, self._owners, self._size = [], [], 0
            self._last_batch = len(owners)
            # Before the transport has them: should it fail, some of them may be on their way.
            for owner in owners:
                owner._sent = True
            Protocol.write(connection, chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if withdrawn:
            self._settle()  # there is room again; not before the batch is on its way

    def _take_back(self) -> None:
        """Remove those that were given up before they were sent."""
        self._withdrawn = False
        batch = [
            pair for pair in zip(self._chunks, self._owners, strict=True) if not pair[1]._withdrawn
        ]
        self._chunks = [chunk for chunk, _ in batch]
        self._owners = [owner for _, owner in batch]
        self._size = sum(map(len, self._chunks))
        kept = [consumer for consumer in self._in_flight if not consumer._withdrawn]
        self._in_flight.clear()
        self._in_flight.extend(kept)

    # The end of a request

    def request_done(self, consumer: ProtocolConsumer) -> None:
        """A consumer has finished; called by it, before anybody is told."""
        if self._connection._lost:
            pass
        elif consumer is self._fed:
            self._fed = None
            self._in_flight.popleft()
            if self._abandoned:
                self._reply_read(consumer)
            if not self._connection._feeding:
                self._settle()
        elif consumer._queued:
            consumer._queued = False
            self._waiting_over += 1
            if self._waiting_over > _FEW and self._waiting_over * 2 > len(self._waiting):
                self._waiting = deque(other for other in self._waiting if not other._done)
                self._waiting_over = 0
            self._settle()
        elif consumer is self._writer:
            self._in_flight.pop()  # it wants no reply
        elif self._preparing.pop(id(consumer), None) is not None:
            self._settle()
        elif not consumer._sent:
            consumer._withdrawn = self._withdrawn = True
            if not self._scheduled and not self._connection._closing:
                self._schedule_flush()
        elif not self._connection._closing:
            exc = ProtocolError(f"{consumer!r} finished before its reply had its turn")
            self._connection.request_failed(consumer, exc)

    def give_up(self, consumer: ProtocolConsumer) -> None:
        """Nobody waits for this request any more: it is taken back, or its reply dropped."""
        if consumer._done or consumer._abandoned_at is not None or self._connection._closing:
            return
        if consumer._sent or consumer is self._fed:
            consumer._abandoned_at = self._connection._loop.time()
            self._abandoned += 1
            self._watch()
        else:
            exc = AbortRequest(f"{consumer!r} was given up before it was sent")
            consumer.finished(exc=exc)

    def _reply_read(self, consumer: ProtocolConsumer) -> None:
        """A request has its reply while there are abandoned ones: replies have not stopped."""
        self._replied_at = self._connection._loop.time()
        if consumer._abandoned_at is not None:
            self._abandoned -= 1

    def _watch(self) -> None:
        if self._overdue_handle is None:
            connection = self._connection
            self._overdue_handle = connection._loop.call_later(
                connection.reply_grace, self._check_overdue
            )

    def _check_overdue(self) -> None:
        """Close the connection if the reply that nobody waits for holds up all the others."""
        self._overdue_handle = None
        if not self._abandoned or not self._in_flight:
            return
        connection = self._connection
        head = self._in_flight[0]
        if head._abandoned_at is None:
            self._watch()  # somebody waits for this one and decides how long
            return
        since = max(head._abandoned_at, self._replied_at)
        left = since + connection.reply_grace - connection._loop.time()
        if left > 0:
            self._overdue_handle = connection._loop.call_later(left, self._check_overdue)
            return
        self.failure = ProtocolError(
            f"{connection}: no reply for {connection.reply_grace} s to a request that was given up"
        )
        connection.logger.debug("%s, closing", self.failure)
        connection.abort()

    def upgrade(self) -> None:
        """Another protocol comes behind what is in flight; those that wait can't be made."""
        for consumer in (*self._waiting, *self._preparing.values()):
            if not consumer._done:
                why = f"{self._connection} takes no more requests"
                consumer.finished(exc=ConnectionClosed(why, sent=False))
        if not self._connection._feeding:  # else when what has arrived is read
            self._settle()

    def _settle(self) -> None:
        """What to do when a request is over: begin others, and tell who waits for the last."""
        connection = self._connection
        if self._waiting and self._writer is None:
            self.advance()
        if self.busy or connection._pipeline is not self:
            return
        connection.tell_drained()
        if connection._closing:
            return
        if connection._upgraded:
            connection.leave_pipeline(b"")
        elif connection._last_request:
            connection._close()

    # Replies

    def feed(self, data: bytes) -> None:
        """Give replies to those in flight, in order."""
        connection = self._connection
        if connection._buffered:
            data = connection._buffered + data
            connection._buffered = b""
        producer = connection.producer
        quiet = producer is None or producer._many_times is None
        in_flight = self._in_flight
        connection._feeding = True
        try:
            while data and not connection._closing:
                consumer = in_flight[0] if in_flight else None
                if consumer is None or not (consumer._sent or self._waits_unsent(consumer)):
                    break
                self._fed = consumer
                try:
                    if quiet and consumer._many_times is None:
                        rest = consumer.data_received(data)
                    else:
                        rest = _tell(consumer, data)
                    data = self._left(consumer, rest, data) if rest else b""
                except Exception as exc:  # noqa: BLE001 - it is the request's exception
                    connection.request_failed(consumer, exc)
        finally:
            connection._feeding = False
        self._after_feeding(data)

    def _left(self, consumer: ProtocolConsumer, rest: bytes, data: bytes) -> bytes:
        """What of the data is for the next in flight."""
        if type(rest) is not bytes:
            rest = unused_bytes(rest, consumer)
        if not consumer._done:
            connection = self._connection
            if len(rest) > connection.max_buffered:
                raise MessageTooLarge(
                    f"{connection}: {len(rest)} bytes are left over, at most "
                    f"{connection.max_buffered} are kept"
                )
            connection._buffered = rest
            return b""
        if len(rest) >= len(data):
            raise RuntimeError(f"{consumer!r} finished without taking a byte of what it was given")
        return rest

    def _after_feeding(self, data: bytes) -> None:
        """Go on when the replies that arrived have been read; ``data`` is nobody's."""
        connection = self._connection
        if connection._closing:
            return
        if connection._upgraded and not self._in_flight:
            connection.tell_drained()
            connection.leave_pipeline(data)
        elif data:
            self.failure = ProtocolError(f"{connection}: {len(data)} bytes that nobody asked for")
            connection.logger.debug("%s, closing", self.failure)
            connection.abort()
        elif not self._in_flight or self._waiting:
            self._settle()

    def _waits_unsent(self, head: ProtocolConsumer) -> bool:
        """True if a request that was not sent waits for data: it has written nothing at all."""
        return not head._withdrawn and not any(owner is head for owner in self._owners)

    # The end of the connection

    def lost(self) -> list[ProtocolConsumer]:
        """The connection is lost: give those that it took with it, in their order."""
        if self._overdue_handle is not None:
            self._overdue_handle.cancel()
            self._overdue_handle = None
        left = [*self._in_flight, *self._waiting, *self._preparing.values()]
        self._in_flight.clear()
        self._waiting.clear()
        self._preparing.clear()
        self._chunks, self._owners = [], []
        self._waiting_over = self._abandoned = 0
        self._fed = None
        return left


def _tell(consumer: ProtocolConsumer, data: bytes) -> bytes | None:
    """Give data to a consumer to whose events somebody listens."""
    consumer._fire_many("data_received", data=data)
    rest = consumer.data_received(data)
    consumer._fire_many("data_processed", data=data)
    return rest
