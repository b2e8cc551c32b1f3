"""The requests of one endpoint: when each is sent, sent again, answered, or given up.

All deadlines of an endpoint are in one heap under one timer.  This module must not know of sockets
and servers; which request a reply belongs to is in ``reply_matcher``.
"""

import asyncio
import errno
import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from tenacity import RetryCallState

from pulsar_client.addresses import format_address
from pulsar_client.exceptions import (
    AbortRequest,
    ConnectionClosed,
    MessageTooLarge,
    RequestTimeout,
)
from pulsar_client.protocols.consumer_contract import refuse_coroutine
from pulsar_client.protocols.datagram_exchange import DatagramExchange
from pulsar_client.protocols.reply_matcher import ReplyMatcher

__all__ = ["ClientExchange", "DatagramRequests"]


class ClientExchange(DatagramExchange):
    """One request and its reply: the ``connection`` of a client's consumer."""

    server_side = False

    def __init__(self, protocol: Any, address: Any, requests: "DatagramRequests") -> None:
        self.protocol = protocol
        self.address = address
        self.producer = protocol.producer
        self._requests = requests
        self.consumer: Any = None
        self.key: Any = None
        #: In the book of requests that wait for a reply.
        self.pending = False
        self.ended = False
        #: In the queue of those that take turns.
        self.queued = False
        #: A datagram has come for it.
        self.replied = False
        #: Seconds that the request may take, and when they are over.
        self.timeout: float = 0.0
        self.deadline: float | None = None
        #: When to look at it next.
        self.due = 0.0
        self.last_sent = 0.0
        self.tries = 0
        #: What was written, for as long as it has to be sent, or may have to be again.
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """Send a datagram of the request, at once or when it is this request's turn.

        Returns:
            None while the socket takes more, else an awaitable that completes when it does.

        Raises:
            ConnectionClosed: the request is over, or the endpoint closed.
            ValueError: more bytes than ``max_payload``, or a key that can't be used now.
            OSError: the system refuses the datagram, or too many wait to be sent.
        """
        return self._requests.write(self, data)

    def fresh_key(self, make: Callable[[], Any] | None = None, *, size: int = 2) -> Any:
        """A random key for this request, one that its ``match_key`` will find.

        It is one that no other request to this peer uses, or used a short while ago.

        Args:
            make: gives a random candidate; ``size`` random bytes by default.
            size: bytes of a key.

        Raises:
            RuntimeError: nearly all keys are in use.
        """
        return self._requests.fresh_key(self.address, make, size=size)

    def close(self) -> Any:
        """Close the whole endpoint, as the ``close`` of a connection does."""
        return self.protocol.close()

    def abort(self) -> None:
        """Close the whole endpoint at once."""
        self.protocol.abort()

    # What the consumer calls

    def request_done(self, consumer: Any) -> None:
        """The consumer has finished."""
        self._requests.end(self, answered=self.replied and consumer._exc is None)

    def request_failed(self, consumer: Any, exc: BaseException) -> None:
        """The consumer raised: its request ends with ``exc``, and no other does."""
        if consumer._done:
            self.logger.error("%s: %r failed after its end", self, consumer, exc_info=exc)
        consumer.finished(exc=exc)

    def tasks_done(self, consumer: Any) -> None:
        """The tasks of the consumer have ended; its reply may still come."""

    def request_ready(self, consumer: Any) -> None:
        """The coroutine callbacks of ``pre_request`` have ended."""


class DatagramRequests:
    """The book of the requests of one endpoint.

    Args:
        protocol: whose socket they use.
        loop: its loop.
    """

    def __init__(self, protocol: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol = protocol
        self._loop = loop
        self.matcher: ReplyMatcher[ClientExchange] = ReplyMatcher()
        # What finds the key in a datagram; None: one request at a time to each peer.
        self._match_key: Callable[[bytes], Any] | None = None
        # Without keys: who waits for the reply to another, by peer, in order.
        self._turns: dict[Any, deque[ClientExchange]] = {}
        # Without keys: peers that may still send what belongs to a request that has ended, and
        # the timer that ends it.
        self._quiet: dict[Any, asyncio.TimerHandle] = {}
        self._heap: list[tuple[float, int, ClientExchange]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._open = 0

    def __len__(self) -> int:
        """How many requests are not over."""
        return self._open

    @property
    def waits_for_late_replies(self) -> bool:
        """True while what arrives could belong to a request that has ended."""
        return bool(self._quiet)

    # A request begins

    def begin(self, exchange: ClientExchange, consumer: Any) -> None:
        """A consumer was made for an exchange."""
        exchange.consumer = consumer
        self._match_key = getattr(consumer, "match_key", None)

    def set_deadline(self, exchange: ClientExchange, timeout: float) -> None:
        """The request may take so many seconds from now."""
        self._open += 1
        exchange.timeout = timeout
        exchange.due = exchange.deadline = self._loop.time() + timeout
        self._watch(exchange)

    def fresh_key(self, address: Any, make: Callable[[], Any] | None, *, size: int) -> Any:
        """See `ReplyMatcher.fresh_key`."""
        return self.matcher.fresh_key(address, self._loop.time(), make, size=size)

    def write(self, exchange: ClientExchange, data: Any) -> Awaitable[None] | None:
        """Send what a request writes, or keep it until it is its turn."""
        if exchange.ended:
            raise ConnectionClosed(f"{exchange}: the request is over", sent=exchange.tries > 0)
        self._protocol.check_payload(data)
        if exchange.deadline is None:
            self.set_deadline(exchange, self._protocol.request_timeout)
        match_key = self._match_key
        if exchange.pending:
            if match_key is not None and match_key(bytes(data)) != exchange.key:
                raise ValueError(
                    f"{exchange}: the datagrams of a request must have one key, {exchange.key!r}"
                )
            return self._send_first(exchange, data)
        if match_key is None:
            if not self._is_its_turn(exchange):
                exchange.written.append(bytes(data))
                return None
        else:
            exchange.key = key = match_key(bytes(data))
            if key is None:
                raise ValueError(f"{exchange}: match_key finds no key in the request {data!r}")
            self.matcher.check(exchange.address, key, self._loop.time())
        waiter = self._send_first(exchange, data)
        # Not before it is sent: news of an earlier datagram that come with it are not its own.
        if not exchange.ended:
            exchange.pending = True
            self.matcher.add(exchange.address, exchange.key, exchange)
        return waiter

    def _send_first(self, exchange: ClientExchange, data: Any) -> Awaitable[None] | None:
        consumer = exchange.consumer
        idempotent = getattr(consumer, "idempotent", False) and self._protocol.retry is not None
        if idempotent:
            exchange.written.append(bytes(data))
        waiter, sent = self._protocol.send_counted(data, exchange.address)
        if not sent and not idempotent:
            raise OSError(errno.ENOBUFS, f"{exchange}: too many datagrams wait to be sent")
        consumer._sent = True
        exchange.last_sent = self._loop.time()
        if exchange.tries == 0:
            exchange.tries = 1
            if idempotent:
                self._set_due(exchange)
        result: Awaitable[None] | None = waiter
        return result

    # Turns, without keys

    def _is_its_turn(self, exchange: ClientExchange) -> bool:
        address = exchange.address
        turns = self._turns.get(address)
        if turns is None:
            turns = self._turns[address] = deque()
        if not exchange.queued:
            exchange.queued = True
            turns.append(exchange)
        return turns[0] is exchange and address not in self._quiet

    def _quiet_over(self, address: Any) -> None:
        del self._quiet[address]
        self._next_turn(address)

    def _next_turn(self, address: Any) -> None:
        turns = self._turns.get(address)
        if not turns:
            self._turns.pop(address, None)
            return
        exchange = turns[0]
        if exchange.pending or not exchange.written or not self._is_its_turn(exchange):
            return
        written, exchange.written = exchange.written, []
        try:
            for data in written:
                self.write(exchange, data)
        except Exception as exc:  # noqa: BLE001 - it is the request's exception
            exchange.consumer.finished(exc=exc)

    # A request ends

    def end(self, exchange: ClientExchange, *, answered: bool) -> None:
        """The consumer of a request has finished; called once, before anybody is told."""
        if exchange.ended:
            return
        exchange.ended = True
        exchange.consumer = None
        if exchange.deadline is None:
            return  # it has not begun
        self._open -= 1
        address = exchange.address
        if exchange.pending:
            now = self._loop.time()
            # Within its time-out the reply to it, or another copy, may come; without a reply so
            # far, for as long again.
            until = (exchange.last_sent if answered else now) + exchange.timeout
            self.matcher.remove(address, exchange.key, answered=answered, until=until, now=now)
            if self._match_key is None and not answered and not self._protocol.renew_socket():
                # What comes until then belongs to this request, and not to the next.
                self._quiet[address] = self._loop.call_at(until, self._quiet_over, address)
        if exchange.queued and address in self._turns:
            self._turns[address].remove(exchange)
            self._loop.call_soon(self._next_turn, address)
        heap = self._heap
        while heap and heap[0][2].ended:
            heapq.heappop(heap)
        if len(heap) > 4 * self._open + 256:
            # One that takes long stands before many that have ended.
            self._heap = [entry for entry in heap if not entry[2].ended]
            heapq.heapify(self._heap)

    def abandon(self, exchange: ClientExchange) -> None:
        """Nobody waits for a request any more: its reply will be dropped."""
        consumer = exchange.consumer
        if consumer is not None:
            consumer.cancel_tasks()
            consumer.finished(exc=AbortRequest(f"{exchange}: the request was abandoned"))

    def fail(self, exc: BaseException, address: Any = None, quoted: bytes = b"") -> None:
        """A peer can't be reached: its requests end with `exc`; those of all without an address.

        Args:
            exc: what they raise.
            address: the peer.
            quoted: the datagram that the network gave back.  If it was of a request that is over,
                this is no news of those that are not.
        """
        if quoted and self._match_key is not None and address is not None:
            try:
                key = self._match_key(quoted)
            except Exception:  # noqa: BLE001 - cut too short by the network
                key = None
            if key is not None and self.matcher.has_ended(address, key):
                return
        for exchange in self.matcher.pending(address):
            if exchange.consumer is not None:
                exchange.consumer.cancel_tasks()
                exchange.consumer.finished(exc=_unreachable(exc, exchange))

    def lose(self, exc: BaseException | None) -> None:
        """The endpoint is closed: no request gets a reply any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = [exchange for turns in self._turns.values() for exchange in turns]
        heap, self._heap = self._heap, []
        self._turns.clear()
        for timer in self._quiet.values():
            timer.cancel()
        self._quiet.clear()
        for exchange in (*self.matcher.pending(), *waiting, *(entry[2] for entry in heap)):
            consumer = exchange.consumer
            if consumer is not None:
                self._protocol.lose_consumer(consumer, exc)

    # A reply

    def reply_received(self, data: bytes, address: Any, *, truncated: bool = False) -> None:
        """Give a datagram to the request it belongs to, or count it."""
        key = None
        match_key = self._match_key
        if match_key is not None:
            try:
                key = match_key(data)
            except Exception:  # noqa: BLE001 - anybody can send what has no key
                self._protocol.counts.malformed += 1
                return
        if address in self._quiet:
            # The reply to the request before: from here on replies are those of the next.
            self._quiet.pop(address).cancel()
            self.matcher.late += 1
            self._loop.call_soon(self._next_turn, address)
            return
        exchange = self.matcher.find(address, key)
        if exchange is None:
            return
        consumer = exchange.consumer
        exchange.replied = True
        if truncated:
            size = self._protocol.max_datagram
            consumer.finished(
                exc=MessageTooLarge(f"{exchange}: the reply has more than {size} bytes")
            )
            return
        try:
            if self._protocol.is_quiet() and consumer._many_times is None:
                rest = consumer.data_received(data)
            else:
                consumer._fire_many("data_received", data=data)
                rest = consumer.data_received(data)
                consumer._fire_many("data_processed", data=data)
            if rest:
                refuse_coroutine(consumer, "data_received", rest)
        except Exception as exc:  # noqa: BLE001 - it is the request's exception
            exchange.request_failed(consumer, exc)
            return
        if rest:
            self._protocol.counts.unused += 1

    # Time

    def _watch(self, exchange: ClientExchange) -> None:
        due = exchange.due
        heap = self._heap
        heapq.heappush(heap, (due, next(self._numbers), exchange))
        timer = self._timer
        if timer is None:
            self._timer = self._loop.call_at(due, self._look)
        elif heap[0][2] is exchange and due < timer.when():
            timer.cancel()
            self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """The timer: end, or send again, what is due."""
        self._timer = None
        now = self._loop.time()
        # What ends here may put another heap in the place of this one.
        while self._heap and (self._heap[0][2].ended or self._heap[0][0] <= now):
            due, _, exchange = heapq.heappop(self._heap)
            if not exchange.ended and due == exchange.due:
                self._due(exchange, now)
        if self._heap and self._timer is None:
            self._timer = self._loop.call_at(self._heap[0][0], self._look)

    def _due(self, exchange: ClientExchange, now: float) -> None:
        assert exchange.deadline is not None
        if now >= exchange.deadline or self._has_tried_enough(exchange, now):
            tries = f"{exchange.tries} tries" if exchange.tries > 1 else "1 try"
            if exchange.tries == 0:
                tries = "not sent, another request was in flight"
            consumer = exchange.consumer
            consumer.cancel_tasks()
            consumer.finished(
                exc=RequestTimeout(
                    f"{_name(exchange)}: no reply within {exchange.timeout:g} s ({tries})"
                )
            )
            return
        exchange.tries += 1
        exchange.last_sent = now
        self._set_due(exchange)
        for data in exchange.written:
            try:
                self._protocol.send_counted(data, exchange.address)
                self._protocol.counts.retransmitted += 1
            except OSError as exc:
                self._protocol.send_failed(exc, exchange.address)

    def _set_due(self, exchange: ClientExchange) -> None:
        """When to send it again, if there is no reply before: the policy says."""
        assert exchange.deadline is not None
        wait: Any = self._protocol.retry.wait
        seconds = float(wait(self._state(exchange, exchange.last_sent)))
        due = min(exchange.deadline, exchange.last_sent + seconds)
        if due != exchange.due:
            exchange.due = due
            self._watch(exchange)

    def _has_tried_enough(self, exchange: ClientExchange, now: float) -> bool:
        stop: Any = self._protocol.retry.stop
        return bool(stop(self._state(exchange, now)))

    def _state(self, exchange: ClientExchange, now: float) -> RetryCallState:
        """What the policy is asked with."""
        assert exchange.deadline is not None
        state = RetryCallState(self._protocol.retry, None, (), {})
        state.attempt_number = exchange.tries
        began = exchange.deadline - exchange.timeout
        state.outcome_timestamp = state.start_time + max(0.0, now - began)
        return state


def _name(exchange: ClientExchange) -> str:
    address = exchange.address
    return str(exchange) if address is None else format_address(address)


def _unreachable(exc: BaseException, exchange: ClientExchange) -> BaseException:
    """An error of the request's own: one object raised in many tasks mixes their tracebacks."""
    if not isinstance(exc, OSError):
        return exc
    text = f"{_name(exchange)} can't be reached: {exc.strerror or exc}"
    return OSError(exc.errno, text) if exc.errno else type(exc)(text)
