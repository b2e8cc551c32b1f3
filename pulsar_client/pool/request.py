"""What ``pool.connect()`` returns: a lease that has yet to begin."""

from collections.abc import Generator
from sys import _getframe
from typing import Any, Self

from pulsar_client.pool.leases import Leases
from pulsar_client.pool.ledger import Entry
from pulsar_client.pool.pool_connection import PoolConnection

__all__ = ["DEFAULT", "ExclusiveRequest", "Request"]

#: Stands for the pool's own time-out.
DEFAULT: Any = object()


class Request(PoolConnection):
    """What ``pool.connect()`` returns: await it or enter it, and it is the lease.

    One object for both: making two costs an eighth of a whole lease.
    """

    __slots__ = ("_timeout",)

    def __init__(self, pool: Any, timeout: float | None) -> None:
        self.pool = pool
        self._leases = pool._leases
        self._timeout = timeout
        self._entry = None

    def __await__(self) -> Generator[Any, None, PoolConnection]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        leases: Leases | None = self._leases
        if leases is None:
            return await super().__aenter__()
        entry = leases.take_now()
        waited = 0.0
        if entry is None:
            timeout = self._timeout
            if timeout is DEFAULT:
                timeout = leases.options.timeout
            entry, waited = await leases.take_later(timeout)
            if self._leases is None:
                raise self._taken_twice(leases, entry)
        # Where it was taken, should it be forgotten: what takes no time to note (I30).
        frame = _getframe(1)
        self._site = frame.f_code
        self._instruction = frame.f_lasti
        self._leases = None
        self._entry = entry
        # One lease in 64 is measured: to look at the clock twice would cost a quarter of each.
        if leases.observed or not leases.ledger.leases & 63:
            self.observe(waited)
        return self

    def _taken_twice(self, leases: Leases, entry: Entry) -> RuntimeError:
        leases.give_back(entry, False, False)
        return RuntimeError(f"{self!r} was awaited by two tasks: call connect() twice")


class ExclusiveRequest(Request):
    """The same for a connection that nobody else may use meanwhile."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        leases: Leases | None = self._leases
        if leases is None:
            return await PoolConnection.__aenter__(self)
        entry = leases.take_alone()
        waited = 0.0
        if entry is None:
            timeout = self._timeout
            if timeout is DEFAULT:
                timeout = leases.options.timeout
            entry, waited = await leases.take_later(timeout, exclusive=True)
            if self._leases is None:
                raise self._taken_twice(leases, entry)
        frame = _getframe(1)
        self._site = frame.f_code
        self._instruction = frame.f_lasti
        self._leases = None
        self._entry = entry
        self.observe(waited)
        return self
