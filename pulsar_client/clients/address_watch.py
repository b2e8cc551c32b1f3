"""Moves a pool away from addresses that its host name has lost (I28).

A connection stays where it is for as long as it works, also when the name has long pointed
elsewhere: after a failover, a replacement, a drained machine.  New connections resolve the name
again by themselves; this looks after the old ones.
"""

import asyncio
import logging
import random
from typing import Any, Self

from pulsar_client.addresses import Address, format_address, unix_path
from pulsar_client.clients.connector import is_ip_address, resolve
from pulsar_client.durations import check_seconds
from pulsar_client.pool.pool import Pool

__all__ = ["AddressWatch"]

_logger = logging.getLogger("pulsar_client.clients")

#: Part of the interval by which a look may come sooner or later: many clients, one resolver.
_JITTER = 0.1


class AddressWatch:
    """Resolves a host name again and again, and has connections to vanished addresses replaced.

    Such a connection takes no new lease: an idle one is closed at once, a leased one when it is
    released.  So it is gone ``misses`` times ``interval`` after the name lost the address, plus
    what its lease lasts.  A lookup that fails, or takes too long, changes nothing.

    Args:
        address: ``(host, port)``, with a host name.
        pool: the pool; its connections have the peer's ``address``, as those of the library.
        interval: seconds between two lookups, give or take a tenth.
        misses: how many answers in a row must lack an address before it counts as gone; more than
            one for a name whose every answer is a part of its addresses.
        timeout: seconds for one lookup.

    Raises:
        TypeError, ValueError: an argument is wrong, or ``address`` has no name to resolve.

    ``async with`` starts and ends it, as :meth:`start` and :meth:`close` do.  It also ends by
    itself with the pool.
    """

    def __init__(
        self,
        address: Address,
        pool: Pool,
        *,
        interval: float = 30.0,
        misses: int = 2,
        timeout: float = 10.0,
    ) -> None:
        if unix_path(address) is not None or is_ip_address(address):
            raise ValueError(
                f"address is {address!r}, expected (host, port) with a host name: "
                "nothing else can lose an address"
            )
        for name, value in (("interval", interval), ("timeout", timeout)):
            check_seconds(name, value)
            if not value:
                raise ValueError(f"{name} is {value!r}, expected seconds > 0")
        if isinstance(misses, bool) or not isinstance(misses, int) or misses < 1:
            raise ValueError(f"misses is {misses!r}, expected an int >= 1")
        self.address = address
        self._pool = pool
        self._interval = interval
        self._misses = misses
        self._timeout = timeout
        # How many answers in a row have lacked an address that connections have.
        self._missed: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "watching" if self._task is not None and not self._task.done() else "stopped"
        return f"<AddressWatch of {format_address(self.address)} for {self._pool!r}: {state}>"

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
        await self.wait_closed()

    def start(self) -> None:
        """Begin to look, first after one interval; does nothing while it looks already.

        Raises:
            RuntimeError: no event loop is running.
        """
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._watch(), name=f"watch of {self.address!r}")

    def close(self) -> None:
        """Look no more; :meth:`wait_closed` waits for the end of it."""
        if self._task is not None:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Wait for the end; call :meth:`close` before."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def look(self) -> int:
        """Resolve the name now, once.

        Returns:
            How many connections are replaced.

        Cancelling it leaves the lookup to end in the loop's executor, without effect.
        """
        try:
            async with asyncio.timeout(self._timeout):
                found = await resolve(self.address)
        except OSError as exc:  # TimeoutError is one
            _logger.debug("%r: no answer, nothing is replaced: %r", self, exc)
            return 0
        if self._pool.closed:
            return 0
        present = {_plain(name[0]) for _, name in found}
        return self._replace(present)

    def _replace(self, present: set[str]) -> int:
        missed: dict[str, int] = {}

        def is_gone(connection: Any) -> bool:
            host = _host(connection)
            if host is None or host in present:
                return False
            missed[host] = self._missed.get(host, 0) + 1
            return missed[host] >= self._misses

        replaced = self._pool.expire(is_gone)
        self._missed = missed
        gone = sorted(host for host, count in missed.items() if count == self._misses)
        if gone:
            _logger.info(
                "%r: %s gone, %d connections are replaced", self, ", ".join(gone), replaced
            )
        return replaced

    async def _watch(self) -> None:
        while not self._pool.closed:
            await asyncio.sleep(self._interval * random.uniform(1 - _JITTER, 1 + _JITTER))
            await self.look()


def _host(connection: Any) -> str | None:
    """The IP address that a connection goes to; None where it can't be told."""
    address = getattr(connection, "address", None)
    return _plain(address[0]) if isinstance(address, tuple) and address else None


def _plain(host: str) -> str:
    """An IP address without its zone, which peers and resolvers write differently."""
    return host.partition("%")[0]
