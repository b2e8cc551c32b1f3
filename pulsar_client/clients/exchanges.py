"""A client's exchanges on the connections of its pool: leased, made, and made again if lost.

The first attempt is made here, with nothing on its way that only the others need; what follows is
in ``attempts``.  This module knows no protocol, and not how connections are opened.
"""

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, TypeVar

from pulsar_client.clients.attempts import check_attempts, is_safe, perform, within
from pulsar_client.durations import check_seconds
from pulsar_client.exceptions import RequestTimeout
from pulsar_client.pool.pool import Pool
from pulsar_client.pool.pool_connection import PoolConnection
from pulsar_client.protocols.connection import Connection
from pulsar_client.protocols.producer import Producer

__all__ = ["Exchanges"]

T = TypeVar("T")


class Exchanges(Producer):
    """The part of a client that makes requests; see :class:`~pulsar_client.AbstractClient`."""

    #: How often :meth:`request` and :meth:`perform` try at most; 1 never repeats anything.
    attempts: int = 3
    #: The pool of this client, if a subclass sets one.
    pool: Pool | None = None

    _retries = 0

    @property
    def retries(self) -> int:
        """How often :meth:`request` and :meth:`perform` have tried again."""
        return self._retries

    def info(self) -> dict[str, Any]:
        """What is known of this client, for people to read."""
        info = super().info()
        info["producer"]["retries"] = self._retries
        return info

    async def request(
        self,
        message: Any,
        *,
        idempotent: bool = False,
        attempts: int | None = None,
        timeout: float | None = None,
        pool: Pool | None = None,
    ) -> Any:
        """Make one request on a connection of the pool.

        When the connection is lost the request is made again on another one if no byte of it was
        sent, or if it is ``idempotent``.  See :meth:`perform`, which takes the same options.

        Args:
            message: what the connection's ``request()`` gets.

        Returns:
            The result of the request.
        """
        if pool is None:
            pool = self.pool or self._own_pool()
        if attempts is None:
            attempts = self.attempts
        if attempts.__class__ is not int or attempts < 1:
            check_attempts(attempts)
        if timeout is not None and not (timeout.__class__ is float and 0.0 <= timeout < inf):
            check_seconds("timeout", timeout)  # a call that most need not make
        failure = None
        # The first attempt, without anything that only the others need: where a connection is
        # there at once, not even an object for the lease.
        entry = pool.borrow()
        if entry is not None:
            connection, begin, owner = entry.connection, entry.begin, entry.owner
            begun = 0.0 if timeout is None else owner.time()
            failed = True
            try:
                waiter = None if begin is None else begin(message, timeout)
                if waiter is not None:
                    try:
                        reply = await waiter
                    except BaseException:
                        connection.end_request(waiter, waiter)
                        raise
                    failed = False
                    return reply
                if begin is None or owner.may_still_be_asked(entry):
                    reply = await _asked(connection, message, timeout)
                    failed = False
                    return reply
                entry = None
            except OSError as exc:
                left = None if timeout is None else timeout - (owner.time() - begun)
                if attempts == 1 or not _is_repeatable(exc, connection, idempotent, left):
                    raise
                timeout, failure = left, repr(exc)
            finally:
                if entry is not None:
                    owner.give_back(entry, False, failed)
        return await perform(
            pool,
            _request,
            (message,),
            single=True,
            idempotent=idempotent,
            attempts=attempts,
            timeout=timeout,
            repeated=self._repeated,
            failure=failure,
        )

    async def perform(
        self,
        operation: Callable[..., Awaitable[T]],
        *args: Any,
        idempotent: bool = False,
        attempts: int | None = None,
        timeout: float | None = None,
        pool: Pool | None = None,
    ) -> T:
        """Run an operation on a leased connection, and again on another if that is safe.

        It is repeated when the connection was lost

        * before any byte was sent: the error is a :class:`~pulsar_client.ConnectionClosed` that is
          not ``sent``, of the only request that was begun on the connection since it was leased;
        * at any time, or when a time-out of the operation's own has passed, if it is
          ``idempotent``.

        Never repeated are what the pool raises, a reply that breaks the protocol, any error that
        is neither a ``ConnectionError`` nor a ``TimeoutError``, and a cancellation.

        Args:
            operation: a coroutine function; called with the lease and ``args``.  It must not hand
                out anything before it has ended: it may be called again.
            *args: what else it gets.
            idempotent: running it twice does no harm.
            attempts: how often it is run at most; :attr:`attempts` by default.
            timeout: seconds for everything, all attempts and waits for a connection included;
                None for the pool's own limit of each lease, and none for the operation.
            pool: where the connection comes from; the client's own by default.

        Returns:
            What the operation returned.

        Raises:
            RequestTimeout: ``timeout`` has passed while the operation ran.
            PoolError: no connection could be leased; see :meth:`Pool.connect`.
            Exception: what the operation raised at its last attempt.
            RuntimeError: the client has no pool, and none was given.
            ValueError: ``attempts`` or ``timeout`` is out of range.
        """
        if pool is None:
            pool = self._own_pool()
        if attempts is None:
            attempts = self.attempts
        if attempts.__class__ is not int or attempts < 1:
            check_attempts(attempts)
        if timeout is not None:
            check_seconds("timeout", timeout)
        failure = connection = begun = None
        if timeout is None:
            try:
                async with pool.connect() as lease:
                    connection = lease.connection
                    begun = getattr(connection, "requests_processed", None)
                    return await operation(lease, *args)
            except OSError as exc:
                safe = is_safe(exc, connection, begun, single=False, idempotent=idempotent)
                if attempts == 1 or not safe:
                    raise
                failure = repr(exc)
        return await perform(
            pool,
            operation,
            args,
            single=False,
            idempotent=idempotent,
            attempts=attempts,
            timeout=timeout,
            repeated=self._repeated,
            failure=failure,
        )

    def _own_pool(self) -> Pool:
        if self.pool is None:
            raise RuntimeError(f"{self!r} has no pool: set self.pool, or pass one as pool=")
        return self.pool

    def _repeated(self) -> None:
        self._retries += 1


def _is_repeatable(exc: OSError, connection: Any, idempotent: bool, left: float | None) -> bool:
    """Tell whether a request may be made again in the seconds that are left."""
    if left is not None and (left <= 0 or isinstance(exc, RequestTimeout)):
        return False
    return is_safe(exc, connection, None, single=True, idempotent=idempotent)


def _asked(connection: Any, message: Any, timeout: float | None) -> Awaitable[Any]:
    """One request with a time-out, on whatever kind of connection."""
    if timeout is None:
        return _ask(connection, message)
    if isinstance(connection, Connection):
        return connection.request(message, timeout)
    return within(asyncio.timeout(timeout), timeout, _ask, connection, (message,))


def _request(lease: PoolConnection, message: Any) -> Awaitable[Any]:
    """The operation that is one request."""
    return _ask(lease.connection, message)


def _ask(connection: Any, message: Any) -> Awaitable[Any]:
    made: Awaitable[Any] = connection.request(message)
    return made
