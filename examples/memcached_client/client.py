"""The client: what its users call, and the pool that it keeps."""

import time
from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

from examples.memcached_client.protocol import Command, Item, MemcachedProtocol, checked_key
from pulsar_client import AbstractClient, Connection, Pool

__all__ = ["Memcached"]

Key = TypeVar("Key", str, bytes)

#: Tasks that share a connection before another one is opened.
SHARE = 64
#: Commands in flight on a connection, those that were given up included.
PIPELINE = 128
#: Keys that are asked for with one command.
KEYS_AT_ONCE = 100
#: The server takes longer times than thirty days for a date.
_THIRTY_DAYS = 30 * 24 * 3600
_LAST_DATE = 2**31 - 1


class Memcached(AbstractClient):
    """A pooled, pipelined client: ``async with Memcached(("127.0.0.1", 11211)) as cache: …``.

    Commands of tasks that run at the same time share connections and system calls.

    Args:
        address: ``(host, port)`` or ``"unix:/path"``.
        pool_size: the most connections that exist at once.
        timeout: seconds for a command, all included.

    Keys are str (sent as UTF-8) or bytes: 1 to 250 bytes without spaces and control characters,
    anything else is a ValueError before anything is sent.  Values are bytes or str, and come back
    as bytes.  ``expire`` is in seconds, 0 for never.

    Every command may raise :class:`MemcachedError` (the server refused it),
    :class:`~pulsar_client.ConnectionClosed`, :class:`~pulsar_client.RequestTimeout` and what a
    :class:`~pulsar_client.Pool` raises.
    """

    protocol_factory = partial(Connection, MemcachedProtocol, pipeline=PIPELINE)

    def __init__(self, address: Any, *, pool_size: int = 10, timeout: float = 5.0) -> None:
        super().__init__()
        self.address = address
        self.timeout = timeout
        self.pool: Pool = Pool(
            self.connect, pool_size, timeout=timeout, name="memcached", share=SHARE
        )

    async def connect(self) -> Any:
        """Open a connection, for the pool."""
        return await self.create_connection(self.address, timeout=self.timeout)

    # Reading

    async def get(self, key: str | bytes) -> bytes | None:
        """The value, or None."""
        item = (await self._items(b"get", [checked_key(key)])).get(checked_key(key))
        return None if item is None else item.value

    async def gets(self, key: str | bytes) -> Item | None:
        """The value and the token that :meth:`cas` wants, or None."""
        return (await self._items(b"gets", [checked_key(key)])).get(checked_key(key))

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        """The values of the keys that there are."""
        encoded = {key: checked_key(key) for key in keys}
        asked = list(dict.fromkeys(encoded.values()))
        found: dict[bytes, Item] = {}
        for start in range(0, len(asked), KEYS_AT_ONCE):
            found |= await self._items(b"get", asked[start : start + KEYS_AT_ONCE])
        return {key: found[sent].value for key, sent in encoded.items() if sent in found}

    async def _items(self, verb: bytes, keys: list[bytes]) -> dict[bytes, Item]:
        line = b" ".join((verb, *keys))
        items: dict[bytes, Item] = await self._ask(Command(line), idempotent=True)
        return items

    # Storing

    async def set(self, key: str | bytes, value: str | bytes, expire: float = 0) -> bool:
        """Store a value; True."""
        return await self._store(b"set", key, value, expire) == b"STORED"

    async def add(self, key: str | bytes, value: str | bytes, expire: float = 0) -> bool:
        """Store a value unless there is one; True if it was stored."""
        return await self._store(b"add", key, value, expire) == b"STORED"

    async def replace(self, key: str | bytes, value: str | bytes, expire: float = 0) -> bool:
        """Store a value if there is one; True if it was stored."""
        return await self._store(b"replace", key, value, expire) == b"STORED"

    async def cas(
        self, key: str | bytes, value: str | bytes, token: int, expire: float = 0
    ) -> bool | None:
        """Store a value if nobody has since :meth:`gets` gave the token.

        Returns:
            True if it was stored, False if somebody else was faster, None if there is no value.
        """
        token = _checked_number("token", token)
        reply = await self._store(b"cas", key, value, expire, b" %d" % token)
        return None if reply == b"NOT_FOUND" else reply == b"STORED"

    async def _store(
        self, verb: bytes, key: str | bytes, value: str | bytes, expire: float, more: bytes = b""
    ) -> bytes:
        data = value.encode() if isinstance(value, str) else value
        if not isinstance(data, bytes):
            raise TypeError(f"a value is bytes or str, not {value!r:.80}")
        head = (verb, checked_key(key), _checked_expire(expire), len(data), more)
        reply: bytes = await self._ask(Command(b"%s %s 0 %d %d%s" % head, data))
        return reply

    # Changing

    async def delete(self, key: str | bytes) -> bool:
        """Forget a value; True if there was one."""
        return await self._tell(b"delete " + checked_key(key)) == b"DELETED"

    async def touch(self, key: str | bytes, expire: float) -> bool:
        """Let a value live so many seconds from now; True if there is one."""
        line = b"touch %s %d" % (checked_key(key), _checked_expire(expire))
        return await self._tell(line) == b"TOUCHED"

    async def incr(self, key: str | bytes, amount: int = 1) -> int | None:
        """Add to a number that was stored as text; the sum, or None if there is no value."""
        return await self._count(b"incr", key, amount)

    async def decr(self, key: str | bytes, amount: int = 1) -> int | None:
        """Subtract from it, down to 0; the difference, or None if there is no value."""
        return await self._count(b"decr", key, amount)

    async def _count(self, verb: bytes, key: str | bytes, amount: int) -> int | None:
        line = b"%s %s %d" % (verb, checked_key(key), _checked_number("amount", amount))
        reply = await self._tell(line)
        return None if reply == b"NOT_FOUND" else int(reply)

    async def flush_all(self) -> None:
        """Forget every value."""
        await self._tell(b"flush_all")

    # The server

    async def stats(self, about: str = "") -> dict[str, str]:
        """Statistics of the server: general ones, or about ``items``, ``slabs``, ``settings``.

        ``reset`` sets them to zero, and gives none.
        """
        line = b"stats " + checked_key(about) if about else b"stats"
        found: dict[str, str] = await self._ask(Command(line), idempotent=True)
        return found

    async def version(self) -> str:
        """The version of the server."""
        return (await self._tell(b"version")).decode().removeprefix("VERSION ")

    async def _tell(self, line: bytes) -> bytes:
        reply: bytes = await self._ask(Command(line))
        return reply

    async def _ask(self, command: Command, *, idempotent: bool = False) -> Any:
        return await self.request(command, idempotent=idempotent, timeout=self.timeout)


def _checked_number(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise ValueError(f"{name} is {value!r}, expected an int from 0 to 2**64 - 1")
    return value


def _checked_expire(seconds: float) -> int:
    """The time to live as the server wants it."""
    if not 0 <= seconds <= 2**31:  # not a number neither
        raise ValueError(f"expire is {seconds!r}, expected seconds >= 0, 0 for never")
    whole = -int(-seconds // 1)
    if whole <= _THIRTY_DAYS:
        return whole
    date = int(time.time()) + whole
    if date > _LAST_DATE:  # which it would take for one in the past
        raise ValueError(f"expire is {seconds!r} seconds: later than the server's last date, 2038")
    return date
