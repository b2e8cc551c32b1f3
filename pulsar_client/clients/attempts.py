"""When an exchange may be made again, and the loop that does it (I21).

A request that was carried out must not be carried out again unless its author says that this does
no harm.  So an exchange is repeated only when no byte of it was sent, or when it is idempotent.

There is no pause between attempts: each takes a connection from the pool, and it is the pool that
backs off from a target that is down.  This module knows no protocol.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pulsar_client.exceptions import ConnectionClosed, PoolError, ProtocolError, RequestTimeout
from pulsar_client.pool.pool import Pool

__all__ = ["check_attempts", "is_safe", "perform", "within"]

T = TypeVar("T")

#: Loop turns in which the ends of connections that have arrived already are seen.
_TURNS = 3


def check_attempts(value: int) -> None:
    """Refuse anything but a number of attempts.

    Raises:
        ValueError: it is no int, or below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"attempts is {value!r}, expected an int >= 1; 1 never repeats")


def is_safe(
    exc: Exception, connection: Any, begun: int | None, *, single: bool, idempotent: bool
) -> bool:
    """Tell whether an exchange that failed may be made again, and whether there is a point in it.

    Args:
        exc: what it failed with.
        connection: the connection it was made on; None if none could be leased.
        begun: how many requests had been begun there before; None if that is not known.
        single: it makes exactly one request, so that what an error says of the request is true of
            the whole.
        idempotent: making it twice does no harm.
    """
    if connection is None or not isinstance(exc, ConnectionError | TimeoutError):
        return False
    if isinstance(exc, PoolError | ProtocolError):
        return False  # a pool has its own patience, and another peer would say the same
    if idempotent:
        return True
    if not isinstance(exc, ConnectionClosed) or exc.sent:
        return False
    # The error speaks of one request, and there may have been others before.
    return single or (begun is not None and connection.requests_processed == begun + 1)


async def perform(
    pool: Pool,
    operation: Callable[..., Awaitable[T]],
    args: tuple[Any, ...],
    *,
    single: bool,
    idempotent: bool,
    attempts: int,
    timeout: float | None,
    repeated: Callable[[], object],
    failure: str | None = None,
) -> T:
    """Lease a connection and run an operation with it, again as long as that is safe.

    Args:
        pool: where the connections come from.
        operation: called with the lease and `args`.
        args: what else it gets.
        single: see :func:`is_safe`.
        idempotent: see :func:`is_safe`.
        attempts: how often it is made at most.
        timeout: seconds for everything; None for no limit but the pool's.
        repeated: called before each attempt but the first.
        failure: how the first attempt ended, if it was made elsewhere.
    """
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    attempt = 1
    while True:
        if failure is not None:
            # The peer may have closed more of its connections than one.  Those whose end is known
            # to the system leave the pool in these turns, and a cancellation ends the call here
            # before anything is sent again (I11).
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            attempt += 1
            repeated()
        connection = begun = None
        limit = asyncio.timeout_at(deadline)
        try:
            if deadline is None:
                leasing = pool.connect()
            else:
                leasing = pool.connect(timeout=max(0.0, deadline - _now()))
            async with leasing as lease:
                connection = lease.connection
                begun = getattr(connection, "requests_processed", None)
                if deadline is None:
                    return await operation(lease, *args)
                return await within(limit, timeout, operation, lease, args)
        except (OSError, PoolError) as exc:  # ConnectionError and TimeoutError are OSErrors
            if failure is not None:
                exc.add_note(f"attempt {attempt}; the one before ended with {failure}")
            if (
                attempt >= attempts
                or not is_safe(exc, connection, begun, single=single, idempotent=idempotent)
                # The clock may lag behind the timer that has just ended it.
                or (deadline is not None and (limit.expired() or _now() >= deadline))
            ):
                raise
            failure = repr(exc)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def within(
    limit: asyncio.Timeout,
    timeout: float | None,
    operation: Callable[..., Awaitable[T]],
    lease: Any,
    args: tuple[Any, ...],
) -> T:
    """Run one attempt up to the deadline of all."""
    try:
        async with limit:
            return await operation(lease, *args)
    except TimeoutError as exc:
        if not limit.expired():
            raise
        raise RequestTimeout(f"{lease!r}: not done within {timeout:g} s") from exc
