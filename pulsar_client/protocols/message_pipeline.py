"""Pipelining for protocols whose replies a parser can tell apart: a future a request, no consumer.

A *codec* knows how a request is written and where a reply ends.  That is all that is needed when
nobody listens to the events of single requests, so a request is then nothing but the future of its
caller.  The rules are those of ``pipeline``; requests are in one of three places here:

- ``_waiting``: there was no room yet;
- ``_batch``: their bytes leave at the end of this loop turn;
- ``_in_flight``: sent; replies go to them in their order, whether or not somebody still waits.

This module knows nothing of pools, nor of what the bytes mean.
"""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Awaitable, Iterator
from itertools import islice
from typing import Any

from pulsar_client.exceptions import AbortRequest, ConnectionClosed, ProtocolError
from pulsar_client.protocols.deadlines import Together
from pulsar_client.protocols.message_consumer import ListenedRequest
from pulsar_client.protocols.protocol import Protocol as StreamProtocol
from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["MessagePipeline"]

#: Bytes that leave at once, without waiting for more in this turn of the loop.
_BATCH_LIMIT = 65536
#: So many replies are always given out in one turn of the loop.
_AT_ONCE = 3
#: Requests that wait before it is looked whether they were given up.
_FEW = 64


class MessagePipeline:
    """The requests of one connection with a codec, in their order.

    Args:
        connection: the ``Connection`` they are made on.
        limit: how many may be in flight.
        codec: see :class:`Codec`.
    """

    def __init__(self, connection: Any, limit: int, codec: Any) -> None:
        self.limit = limit
        #: What made it impossible to go on; the cause of what those in flight get.
        self.failure: BaseException | None = None
        self._connection = connection
        self._codec = codec
        self._encode = codec.encode
        self._in_flight: deque[Any] = deque()
        # What to write in this turn, and whose it is.
        self._chunks: list[bytes] = []
        self._batch: list[Any] = []
        self._size = 0
        # Those of the batch that must be answered within so many seconds.
        self._timed: Together[asyncio.Future[Any]] = Together()
        self._seconds = 0.0
        self._scheduled = False
        self._last_batch = 1
        # Gives others that have arrived with them, in the next turn; and to how many requests.
        self._held: tuple[Iterator[Any], int] | None = None
        self._waiting: deque[tuple[Any, bytes]] = deque()
        self._sweep_at = _FEW
        # Coroutine callbacks of their pre_request run.
        self._preparing: dict[int, ProtocolConsumer] = {}
        # Since when the next reply is one that nobody waits for.
        self._given_up = False
        self._silent_since = 0.0
        self._overdue_handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._in_flight) + len(self._batch)

    @property
    def busy(self) -> bool:
        """True while there is any request, whatever its state."""
        waiting = self._waiting
        while waiting and waiting[0][0].done():
            waiting.popleft()
        return bool(self._in_flight or self._batch or waiting or self._preparing)

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return sum(not waiter.done() for waiter, _ in self._waiting)

    @property
    def abandoned(self) -> int:
        """How many replies are still to come that nobody waits for."""
        return sum(waiter.done() for waiter in self._in_flight)

    # The way of a request

    def begin_request(self, message: Any, timeout: float | None) -> "asyncio.Future[Any] | None":
        """Make a request; this is ``Connection.begin_request()`` where there is a codec."""
        connection = self._connection
        transport, producer = connection._transport, connection.producer
        if (
            connection._closing
            or connection._last_request
            or connection._upgraded
            or transport is None
            or transport.is_closing()
            or (producer is not None and producer._many_times is not None)
        ):
            return None
        connection._requests_processed += 1
        if producer is not None:
            producer.request_started()
        data = self._encode(message)
        waiter: asyncio.Future[Any] = Future(loop=connection._loop)
        if (
            self._waiting
            or connection._paused
            or len(self._in_flight) + len(self._batch) >= self.limit
        ):
            self._begin_later(waiter, data)
            if timeout is not None and not waiter.done():
                connection.expire_later(waiter, timeout)
            return waiter
        self._batch.append(waiter)
        self._chunks.append(data)
        if timeout is not None:
            # Most have the same; those of a batch share an entry, and one look at the clock.
            if not self._timed:
                self._seconds = timeout
            if timeout == self._seconds:
                self._timed.append(waiter)
            else:
                connection.expire_later(waiter, timeout)
        size = self._size = self._size + len(data)
        if not self._scheduled:
            if not self._in_flight and self._last_batch == 1 and len(self._batch) == 1:
                # Nobody to share a system call with, neither now nor the last time.
                self._flush_now()
            else:
                self._schedule_flush()
        elif size >= _BATCH_LIMIT:
            self._flush_now()
        return waiter

    def _begin_later(self, waiter: Any, data: bytes) -> None:
        connection = self._connection
        if connection._closing or connection._last_request or connection._upgraded:
            why = "is closed" if connection._closing else "takes no more requests"
            raise ConnectionClosed(f"{connection} {why}", sent=False)
        self._waiting.append((waiter, data))
        if len(self._waiting) > self._sweep_at:
            # Those that were given up cost no memory.
            self._waiting = deque(entry for entry in self._waiting if not entry[0].done())
            self._sweep_at = 2 * len(self._waiting) + _FEW
        self.advance()

    def advance(self) -> None:
        """Put those that wait into the batch, as far as there is room."""
        connection = self._connection
        waiting = self._waiting
        while (
            waiting and len(self) < self.limit and not connection._paused
        ) and not connection._closing:
            waiter, data = waiting.popleft()
            if waiter.done():
                continue
            self._batch.append(waiter)
            self._chunks.append(data)
            self._size += len(data)
            if self._size >= _BATCH_LIMIT:
                self._flush_now()
        if self._batch and not self._scheduled:
            self._schedule_flush()

    def _flush_now(self) -> None:
        """Flush; but not in the middle of replies, of which the next may be nobody's (I16)."""
        if not self._connection._feeding:
            self.flush()
        elif not self._scheduled:
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        self._scheduled = True
        self._connection._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Hand the batch to the transport, in one call."""
        connection = self._connection
        self.give_rest()  # what has arrived is for those that were sent before
        batch = self._batch
        if self._timed:
            timed, self._timed = self._timed, Together()
            connection.expire_later(timed, self._seconds)
        if not batch or connection._closing or connection._transport.is_closing():
            return  # those that stay here learn from the loss that they were not sent
        chunks = self._chunks
        for waiter in batch:
            if waiter.done():  # given up: it is never sent
                left = [pair for pair in zip(batch, chunks, strict=True) if not pair[0].done()]
                batch = [pair[0] for pair in left]
                chunks = [pair[1] for pair in left]
                break
        self._batch, self._chunks, self._size = [], [], 0
        if not batch:
            self._settle()
            return
        self._last_batch = len(batch)
        self._in_flight.extend(batch)
        StreamProtocol.write(connection, chunks[0] if len(chunks) == 1 else b"".join(chunks))

    # Requests that somebody listens to

    def prepare(self, consumer: ProtocolConsumer) -> None:
        """A request is started, but callbacks of its ``pre_request`` have to end first."""
        self._preparing[id(consumer)] = consumer
        if self._connection._upgraded:
            self.upgrade()

    def enter(self, consumer: ProtocolConsumer) -> None:
        """Make the request of a consumer."""
        prepared = self._preparing.pop(id(consumer), None)
        try:
            data = self._encode(consumer.request)
            self._begin_later(ListenedRequest(consumer), data)
        except Exception as exc:  # noqa: BLE001 - it is the request's exception
            consumer.finished(exc=exc)
            if prepared is not None:
                self._settle()  # it may have been the last that was waited for

    def request_done(self, consumer: ProtocolConsumer) -> None:
        """A consumer has finished; its place in the line knows that by itself."""
        if self._preparing.pop(id(consumer), None) is not None:
            self._settle()

    def write(self, consumer: ProtocolConsumer, data: object) -> Awaitable[None] | None:
        """Refuse what is not a message.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{consumer!r}: where there is a codec, it writes the requests")

    def write_raw(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """Write what is no request's, behind all that was written before."""
        self.flush()
        return StreamProtocol.write(self._connection, data)

    def expose(self) -> None:
        """Somebody gets the transport itself: all that was written before goes first."""
        self.flush()

    # Given up

    def give_up(self, request: Any) -> None:
        """Nobody waits for this request any more.

        Args:
            request: its future, which is done, or its consumer.
        """
        if isinstance(request, ProtocolConsumer):
            self._give_up_consumer(request)
        if self._connection._closing:
            return
        head = self._in_flight[0] if self._in_flight else None
        if not self._given_up or head is request or getattr(head, "consumer", None) is request:
            self._silent_since = self._connection._loop.time()
        self._given_up = True
        if self._overdue_handle is None and self._in_flight:
            self._watch(self._connection.reply_grace)
        if not self.busy:
            self._settle()

    def _give_up_consumer(self, consumer: ProtocolConsumer) -> None:
        # What is in flight ends with its reply, or with the connection: who listens is told then.
        if all(getattr(waiter, "consumer", None) is not consumer for waiter in self._in_flight):
            consumer.finished(exc=AbortRequest(f"{consumer!r} was given up before it was sent"))

    def _watch(self, seconds: float) -> None:
        self._overdue_handle = self._connection._loop.call_later(seconds, self._check_overdue)

    def _check_overdue(self) -> None:
        """Close the connection if the reply that nobody waits for holds up all the others."""
        self._overdue_handle = None
        connection = self._connection
        if not any(waiter.done() for waiter in self._in_flight):
            self._given_up = False
            return
        if not self._in_flight[0].done():
            # Somebody waits for this one and decides how long.
            self._silent_since = connection._loop.time()
        left = self._silent_since + connection.reply_grace - connection._loop.time()
        if left > 0:
            self._watch(left)
            return
        self.failure = ProtocolError(
            f"{connection}: no reply for {connection.reply_grace} s to a request that was given up"
        )
        connection.logger.debug("%s, closing", self.failure)
        connection.abort()

    # Replies

    def feed(self, data: bytes) -> None:
        """Give replies to those in flight, in order.

        Where all that is in flight left together, and nobody else is about to ask, half of them
        get theirs in the next turn: the peer works for one half while the other has its turn.
        """
        self.give_rest()
        if self._connection._pipeline is not self:  # upgraded, and that was the last reply
            self._connection._feed(data)
        elif not self._connection._closing:
            sent = len(self._in_flight)
            alone = self._last_batch >= sent and not self._scheduled
            self._give_replies(data, sent // 2 if alone and sent > _AT_ONCE else None)
            if sent > _AT_ONCE and not self._scheduled:
                self._schedule_flush()  # they ask again now: not a turn later than that

    def give_rest(self) -> None:
        """Give out what has arrived and was left for the next turn."""
        if self._held is not None and not self._connection._closing:
            self._give_replies(b"", None)

    def _give_replies(self, data: bytes, most: int | None) -> None:
        """Give out the replies that are there, or so many of them now and the others later."""
        connection, codec, in_flight = self._connection, self._codec, self._in_flight
        before = due = 0
        connection._feeding = True
        try:
            if data:
                codec.feed(data)
            # What a callback sends meanwhile has no reply here.
            replies, due = self._held or (iter(codec), len(in_flight))
            before, self._held = due, None
            for reply in replies if most is None else islice(replies, most):
                if not due:
                    raise ProtocolError(f"{connection}: a reply that nobody asked for")
                due -= 1
                waiter = in_flight.popleft()
                if waiter.done() and waiter.__class__ is not ListenedRequest:
                    continue  # nobody gets it
                if reply.__class__ is not bytes and isinstance(reply, Exception):
                    waiter.set_exception(reply)
                    waiter.exception()  # a task cancelled in this turn is not owed a log line
                else:
                    waiter.set_result(reply)
                if connection._closing or (connection._upgraded and not in_flight):
                    break
            else:
                if most is not None:
                    self._held = replies, due
                    connection._loop.call_soon(self.give_rest)
                elif not due and codec.pending:
                    raise ProtocolError(f"{connection}: {codec.pending} bytes nobody asked for")
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with the replies
            self._refuse(exc)
        finally:
            connection._feeding = False
        self._after_feeding(due != before)

    def _after_feeding(self, replied: bool) -> None:
        if self._given_up and replied:
            self._silent_since = self._connection._loop.time()
        if not self._in_flight or self._waiting:
            self._settle()

    def _refuse(self, exc: Exception) -> None:
        """What was received is no reply to anything."""
        connection = self._connection
        if not isinstance(exc, ProtocolError):
            cause, exc = exc, ProtocolError(f"{connection}: not a reply: {exc}")
            exc.__cause__ = cause
        self.failure = exc
        if connection._closing:
            return
        connection.logger.debug("%s, closing", exc)
        connection.abort()
        if self._in_flight:
            # Its reply it was.
            waiter = self._in_flight.popleft()
            if not waiter.done() or waiter.__class__ is ListenedRequest:
                waiter.set_exception(exc)
                waiter.exception()  # a task cancelled in this turn is not owed a log line

    def _settle(self) -> None:
        connection = self._connection
        if self._waiting:
            self.advance()
        if self.busy or connection._closing or connection._pipeline is not self:
            return
        connection.tell_drained()
        if connection._upgraded:
            connection.leave_pipeline(self._rest())
        elif connection._last_request:
            connection._close()

    def _rest(self) -> bytes:
        take_rest = getattr(self._codec, "take_rest", None)
        return take_rest() if take_rest is not None else b""

    def upgrade(self) -> None:
        """Another protocol comes behind what is in flight; those that wait can't be made."""
        waiting = [waiter for waiter, _ in self._waiting]
        self._waiting.clear()
        for waiter in (*waiting, *map(ListenedRequest, self._preparing.values())):
            if not waiter.done():
                why = f"{self._connection} takes no more requests"
                waiter.set_exception(ConnectionClosed(why, sent=False))
        self._settle()

    # The end of the connection

    def lost(self) -> list[ProtocolConsumer]:
        """The connection is lost: fail what it took with it, but for the consumers returned."""
        if self._overdue_handle is not None:
            self._overdue_handle.cancel()
            self._overdue_handle = None
        sent = tuple(self._in_flight)
        unsent = (*self._batch, *(waiter for waiter, _ in self._waiting))
        left = list(self._preparing.values())
        self._in_flight.clear()
        self._waiting.clear()
        self._preparing.clear()
        self._held = None
        self._batch, self._chunks, self._timed = [], [], Together()
        cause = self._connection._lost_exc or self.failure
        for waiters, was in ((sent, True), (unsent, False)):
            for waiter in waiters:
                if waiter.done() and waiter.__class__ is not ListenedRequest:
                    continue
                when = "after (part of) it was sent" if was else "before any of it was sent"
                closed = ConnectionClosed(
                    f"{self._connection}: the request lost its connection {when}: "
                    f"{cause or 'closed'}",
                    sent=was,
                )
                closed.__cause__ = cause
                waiter.set_exception(closed)
                waiter.exception()  # a task cancelled in this turn is not owed a log line
        return left
