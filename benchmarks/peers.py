"""Other pools, run without a database: their own code, with fake connections.

Each entry gives a function that makes the pool and returns how to lease from it, or says why it
is left out.
"""

import contextlib
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any

__all__ = ["PEERS", "missing", "open_peers"]

Lease = Callable[[], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def psycopg_pool(size: int) -> AsyncIterator[Lease]:
    """psycopg_pool.AsyncConnectionPool with a connection class that talks to nobody."""
    from psycopg.pq import TransactionStatus
    from psycopg_pool import AsyncConnectionPool

    class FakeConnection:
        def __init__(self) -> None:
            self.pgconn = SimpleNamespace(transaction_status=TransactionStatus.IDLE)
            self.closed = False

        @classmethod
        async def connect(cls, conninfo: str, **kw: Any) -> "FakeConnection":
            return cls()

        async def close(self) -> None:
            self.closed = True

        # The real one commits or rolls back here.
        async def __aenter__(self) -> "FakeConnection":
            return self

        async def __aexit__(self, *exc_info: object) -> None: ...

    factory: Any = AsyncConnectionPool
    pool = factory("", connection_class=FakeConnection, min_size=size, open=False)
    await pool.open(wait=True)
    try:
        yield pool.connection
    finally:
        await pool.close()


@asynccontextmanager
async def asyncio_connection_pool(size: int) -> AsyncIterator[Lease]:
    """asyncio-connection-pool with a strategy that makes plain objects."""
    from asyncio_connection_pool import ConnectionPool, ConnectionStrategy

    class Strategy(ConnectionStrategy[Any]):
        async def make_connection(self) -> Any:
            return SimpleNamespace(closed=False)

        def connection_is_closed(self, conn: Any) -> bool:
            return bool(conn.closed)

        async def close_connection(self, conn: Any) -> None:
            conn.closed = True

    pool: Any = ConnectionPool(strategy=Strategy(), max_size=size)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(size):
            await stack.enter_async_context(pool.get_connection())
    yield pool.get_connection


@asynccontextmanager
async def asyncpg(size: int) -> AsyncIterator[Lease]:
    """asyncpg.Pool with ``connect=``; the reset query of a release is left out, it is I/O."""
    package: Any = importlib.import_module("asyncpg")

    class FakeProtocol:
        queries_count = 0
        connected = True

        def is_connected(self) -> bool:
            return self.connected

        def is_in_transaction(self) -> bool:
            return False

        def _is_cancelling(self) -> bool:
            return False

        def get_settings(self) -> Any:
            return SimpleNamespace(server_version="16.0")

        async def close(self, timeout: float | None) -> None:
            self.connected = False

        def abort(self) -> None:
            self.connected = False

    class FakeConnection(package.Connection):  # type: ignore[misc]
        def get_reset_query(self) -> str:
            return ""

    config = SimpleNamespace(statement_cache_size=0, max_cached_statement_lifetime=0)

    async def connect(*args: Any, loop: Any, **kw: Any) -> FakeConnection:
        return FakeConnection(FakeProtocol(), SimpleNamespace(), loop, None, config, None)

    pool = await package.create_pool(
        connect=connect, connection_class=FakeConnection, min_size=size, max_size=size
    )
    try:
        yield pool.acquire
    finally:
        await pool.close()


class _Checkout:
    """One lease of SQLAlchemy's pool: its code is synchronous, and waits by way of greenlets."""

    __slots__ = ("connection", "pool", "spawn")

    def __init__(self, pool: Any, spawn: Any) -> None:
        self.pool = pool
        self.spawn = spawn

    async def __aenter__(self) -> Any:
        self.connection = await self.spawn(self.pool.connect)
        return self.connection

    async def __aexit__(self, *exc_info: object) -> None:
        await self.spawn(self.connection.close)


@asynccontextmanager
async def sqlalchemy(size: int) -> AsyncIterator[Lease]:
    """The pool of SQLAlchemy's AsyncEngine, alone: without a reset at the release, that is I/O."""
    pools: Any = importlib.import_module("sqlalchemy.pool")
    greenlets: Any = importlib.import_module("sqlalchemy.util.concurrency")

    class FakeConnection:
        def rollback(self) -> None: ...

        def close(self) -> None: ...

    pool = pools.AsyncAdaptedQueuePool(
        FakeConnection, pool_size=size, max_overflow=0, timeout=600, reset_on_return=None
    )
    spawn = greenlets.greenlet_spawn
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(size):
            await stack.enter_async_context(_Checkout(pool, spawn))
    try:
        yield lambda: _Checkout(pool, spawn)
    finally:
        await spawn(pool.dispose)


#: Name, the module it needs, and how to make it.
PEERS: dict[str, tuple[str, Callable[[int], AbstractAsyncContextManager[Lease]]]] = {
    "psycopg_pool": ("psycopg_pool", psycopg_pool),
    "asyncio-connection-pool": ("asyncio_connection_pool", asyncio_connection_pool),
    "SQLAlchemy": ("sqlalchemy.ext.asyncio", sqlalchemy),
    "asyncpg.Pool": ("asyncpg", asyncpg),
}


def missing(module: str) -> str | None:
    """Why a module can't be used; None if it can."""
    try:
        importlib.import_module(module)
    except ImportError as exc:
        return f"{type(exc).__name__}: {str(exc).splitlines()[0]}"
    return None


@asynccontextmanager
async def open_peers(size: int, notes: list[str], goal: str) -> AsyncIterator[dict[str, Lease]]:
    """How to lease from each of the other pools that can run here; why one can't is noted."""
    async with contextlib.AsyncExitStack() as stack:
        leases: dict[str, Lease] = {}
        for name, (module, make) in PEERS.items():
            why = missing(module)
            if why is None:
                try:
                    leases[name] = await stack.enter_async_context(make(size))
                except Exception as exc:
                    why = f"can't be run without a database: {exc!r}"
            if why is not None:
                notes.append(f"{goal} without {name}: {why}")
        yield leases
