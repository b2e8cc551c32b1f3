"""Commands by name.  Everything else goes through ``execute``, and so do these."""

from collections.abc import Coroutine
from typing import Any

from examples.redis_client.protocol import Value

__all__ = ["Commands"]

Key = str | bytes


class Commands:
    """The commands of whatever can ``execute`` one.

    What was stored comes back as bytes, or as str with ``decode_responses``; a missing key or
    field as None.
    """

    def execute(self, *words: Value) -> Coroutine[Any, Any, Any]:
        """Send a command and return its reply; see the subclass."""
        raise NotImplementedError

    async def ping(self) -> bool:
        """True, if the server is there."""
        return await self.execute("PING") in (b"PONG", "PONG")

    # Strings

    def get(self, key: Key) -> Coroutine[Any, Any, Any]:
        """The value, or None."""
        return self.execute("GET", key)

    async def set(
        self,
        key: Key,
        value: Value,
        *,
        ex: int | None = None,
        px: int | None = None,
        nx: bool = False,
        xx: bool = False,
    ) -> bool:
        """Store a value.

        Args:
            key: its key.
            value: what to store.
            ex: seconds to live.
            px: milliseconds to live.
            nx: only if there is none.
            xx: only if there is one.

        Returns:
            True if it was stored.
        """
        words: list[Value] = ["SET", key, value]
        if ex is not None:
            words += ["EX", ex]
        if px is not None:
            words += ["PX", px]
        words += ["NX"] * nx + ["XX"] * xx
        return await self.execute(*words) is not None

    async def mget(self, *keys: Key) -> list[Any]:
        """The values of several keys, None for those that are missing."""
        values: list[Any] = await self.execute("MGET", *keys)
        return values

    async def mset(self, values: dict[Key, Value]) -> None:
        """Store several values at once."""
        await self.execute("MSET", *(word for pair in values.items() for word in pair))

    async def incr(self, key: Key) -> int:
        """Add one to a number; the sum."""
        return int(await self.execute("INCR", key))

    async def incrby(self, key: Key, amount: int) -> int:
        """Add to a number; the sum."""
        return int(await self.execute("INCRBY", key, amount))

    # Keys

    async def delete(self, *keys: Key) -> int:
        """Forget keys; how many there were."""
        return int(await self.execute("DEL", *keys))

    async def exists(self, *keys: Key) -> int:
        """How many of the keys there are."""
        return int(await self.execute("EXISTS", *keys))

    async def expire(self, key: Key, seconds: int) -> bool:
        """Let a key live so many seconds from now; True if there is one."""
        return bool(await self.execute("EXPIRE", key, seconds))

    async def ttl(self, key: Key) -> int:
        """Seconds that a key has to live: -1 for ever, -2 if there is none."""
        return int(await self.execute("TTL", key))

    # Hashes and lists

    async def hset(self, key: Key, fields: dict[Key, Value]) -> int:
        """Store fields of a hash; how many are new."""
        return int(await self.execute("HSET", key, *(w for pair in fields.items() for w in pair)))

    async def hget(self, key: Key, field: Key) -> Any:
        """A field of a hash, or None."""
        return await self.execute("HGET", key, field)

    async def hgetall(self, key: Key) -> dict[Any, Any]:
        """All the fields of a hash."""
        reply = await self.execute("HGETALL", key)
        # The old protocol has lists only.
        return (
            dict(zip(reply[::2], reply[1::2], strict=True)) if isinstance(reply, list) else reply
        )

    async def lpush(self, key: Key, *values: Value) -> int:
        """Put values at the head of a list; its length."""
        return int(await self.execute("LPUSH", key, *values))

    async def rpush(self, key: Key, *values: Value) -> int:
        """Put values at the end of a list; its length."""
        return int(await self.execute("RPUSH", key, *values))

    async def lrange(self, key: Key, first: int, last: int) -> list[Any]:
        """A part of a list, both ends included, -1 being its last."""
        values: list[Any] = await self.execute("LRANGE", key, first, last)
        return values

    # Channels

    async def publish(self, channel: Key, message: Value) -> int:
        """Send a message to those who listen; how many they are."""
        return int(await self.execute("PUBLISH", channel, message))
