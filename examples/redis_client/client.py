"""The client: what its users call, and the pool that it keeps."""

import ssl as ssl_module
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from examples.redis_client.commands import Commands, Key
from examples.redis_client.exclusive import Exclusive
from examples.redis_client.protocol import RedisError, RespCodec, Value, Words, decoded
from examples.redis_client.special import check_shareable
from examples.redis_client.subscription import Listener, Message
from examples.redis_client.transaction import Transaction
from pulsar_client import AbstractClient, Connection, ConnectionClosed, Pool
from pulsar_client.addresses import format_address

__all__ = ["Redis"]

#: Tasks that share a connection before another one is opened.
SHARE = 256
#: Commands in flight on a connection, those that were given up included.
PIPELINE = 512


class Redis(Commands, AbstractClient):
    """A pooled, pipelined client: ``async with Redis(("127.0.0.1", 6379)) as redis: …``.

    Commands of tasks that run at the same time share connections and system calls.

    Args:
        address: ``(host, port)`` or ``"unix:/path"``.
        pool_size: the most connections that exist at once, those of :meth:`subscribe` aside.
        username: of an ACL user; the default user if there is only a password.
        password: None if none is needed.
        db: the number of the database.
        decode_responses: give str instead of bytes.
        ssl: an SSLContext, or True for one that trusts the system's authorities.
        protocol: the version of RESP, 3 or 2.
        timeout: seconds for a command, all included; None for no limit.

    Every command may raise :class:`RedisError` (the server refused it),
    :class:`~pulsar_client.ConnectionClosed`, :class:`~pulsar_client.RequestTimeout` and what a
    :class:`~pulsar_client.Pool` raises.  A command that was cancelled or timed out may have been
    carried out nevertheless.
    """

    protocol_factory = partial(Connection, codec=RespCodec, pipeline=PIPELINE)

    def __init__(
        self,
        address: Any,
        *,
        pool_size: int = 10,
        username: str | None = None,
        password: str | None = None,
        db: int = 0,
        decode_responses: bool = False,
        ssl: ssl_module.SSLContext | bool | None = None,
        protocol: int = 3,
        timeout: float | None = 5.0,
    ) -> None:
        super().__init__()
        if protocol not in (2, 3):
            raise ValueError(f"protocol is {protocol!r}, expected 2 or 3")
        if isinstance(db, bool) or not isinstance(db, int) or db < 0:
            raise ValueError(f"db is {db!r}, expected an int >= 0")
        if username is not None and password is None:
            raise ValueError(f"username is {username!r}, but there is no password")
        self.address = address
        self.timeout = timeout
        self.decode_responses = decode_responses
        self._ssl = ssl
        self._greetings: list[Words] = []
        login = () if password is None else ("AUTH", username or "default", password)
        if protocol == 3:
            self._greetings.append(("HELLO", "3", *login))
        elif login:
            self._greetings.append(login if username else ("AUTH", login[2]))
        if db:
            self._greetings.append(("SELECT", db))
        self.pool: Pool = Pool(
            self.connect,
            pool_size,
            timeout=timeout,
            name=f"redis {format_address(address)}",  # errors say where
            share=SHARE,
            on_connect=self._greet,
        )

    @classmethod
    def from_url(cls, url: str, **kw: Any) -> Self:
        """A client for ``redis://user:password@host:port/db``.

        ``rediss://`` is TLS, ``unix://user:password@/path?db=1`` a unix socket.

        Args:
            url: the URL; what is missing is the default.
            **kw: see :class:`Redis`.

        Raises:
            ValueError: it can't be understood.
        """
        parts = urlsplit(url)
        path = unquote(parts.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        # For messages: a password does not belong into a log.
        shown = url.replace(parts.password, "***") if parts.password else url
        if parts.scheme == "unix" and path:
            address: Any = f"unix:{path}"
            db = query.pop("db", "0")
        elif parts.scheme in ("redis", "rediss"):
            address = (parts.hostname or "127.0.0.1", _port(parts))
            db = path.strip("/") or "0"
        else:
            raise ValueError(f"{shown!r} is no redis://, rediss:// or unix:// URL")
        if query or parts.fragment or not (db.isascii() and db.isdigit()):
            wrong = ", ".join(query) or (f"#{parts.fragment}" if parts.fragment else db)
            raise ValueError(f"{shown!r}: {wrong} is not understood")
        kw.setdefault("ssl", True if parts.scheme == "rediss" else None)
        for name, value in (("username", parts.username), ("password", parts.password)):
            if value:
                kw.setdefault(name, unquote(value))
        return cls(address, **{"db": int(db), **kw})

    async def connect(self) -> Any:
        """Open a connection, for the pool."""
        connection = await self.create_connection(self.address, ssl=self._ssl)
        _raise_refusal(connection)
        return connection

    async def _greet(self, connection: Any) -> None:
        """Log in, and choose the protocol and the database."""
        try:
            for greeting in self._greetings:
                await connection.request(greeting, self.timeout)
        except ConnectionClosed:
            _raise_refusal(connection)
            raise

    def execute(self, *words: Value) -> Coroutine[Any, Any, Any]:
        """Send a command and return its reply: ``await redis.execute("GET", "key")``.

        Args:
            *words: the command and its arguments: str (sent as UTF-8), bytes, int or float.

        Raises:
            RedisError: the server refused it.
            TypeError: a word is of another type.
            ValueError: the command needs a connection of its own, see :meth:`exclusive`.
        """
        check_shareable(words)
        reply = self.request(words, timeout=self.timeout)
        return _decoded(reply) if self.decode_responses else reply

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[Exclusive]:
        """A connection for one task alone: ``async with redis.exclusive() as connection: …``.

        For commands that block, for WATCH, and for whatever changes a connection.  It goes back
        to the pool at the end of the block, unless the block failed or was cancelled, or has left
        a transaction open or the connection changed.
        """
        async with self.pool.connect(exclusive=True) as lease:
            alone = Exclusive(lease, self.timeout, decode=self.decode_responses)
            try:
                yield alone
            except BaseException:
                lease.close(discard=True)
                raise
            lease.close(discard=not alone.is_clean)

    def transaction(self) -> Transaction:
        """Several commands as one: ``async with redis.transaction() as tr: tr.execute(…)``."""
        return Transaction(self._carry_out)

    async def _carry_out(self, commands: list[Words]) -> list[Any]:
        async with self.exclusive() as connection:
            try:
                return await connection.carry_out(commands)
            except RedisError as exc:
                refused = exc
        raise refused

    async def subscribe(self, *channels: Key) -> AsyncGenerator[Message, None]:
        """What is published on channels: ``async for message in redis.subscribe("news"): …``.

        It has a connection of its own, which is closed at the end of the loop.  A listener who is
        slow is waited for: the server cuts it off when its patience ends.

        Raises:
            ConnectionClosed: the connection was lost; messages may have been missed.
            RedisError: the server refused it.
        """
        connection = await self.connect()
        try:
            await self._greet(connection)
            connection.upgrade(Listener)
            listener: Listener = connection.current_consumer()
            listener.start(channels)
            while True:
                message = await listener.next()
                yield Message(*map(decoded, message)) if self.decode_responses else message
        finally:
            connection.abort()

    async def blpop(self, *keys: Key, timeout: float = 0) -> Any:
        """Wait for the head of the first of several lists that has one.

        Args:
            *keys: of the lists.
            timeout: seconds, 0 for no limit.

        Returns:
            The key and the value, or None when the time is up.
        """
        async with self.exclusive() as connection:
            limit = timeout + (self.timeout or 0.0) if timeout and self.timeout else None
            return await connection.execute("BLPOP", *keys, timeout, timeout=limit)


def _port(parts: SplitResult) -> int:
    try:
        return 6379 if parts.port is None else parts.port
    except ValueError:
        # Not what stands there: it may be the beginning of a password.
        raise ValueError(
            "the port of a Redis URL is no port number; '/', '?' and '#' in a password are "
            "written as %2F, %3F and %23"
        ) from None


async def _decoded(reply: Awaitable[Any]) -> Any:
    return decoded(await reply)


def _raise_refusal(connection: Any) -> None:
    """Raise what the server said before it closed the connection: it wants no more clients."""
    error = connection.parser.error
    if connection.closed and error is not None:
        raise ConnectionRefusedError(f"{connection}: {error}") from error
