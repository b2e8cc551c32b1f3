"""A connection for one task alone, and the commands that need one."""

from typing import Any

from examples.redis_client.commands import Commands
from examples.redis_client.protocol import RedisError, Value, Words, decoded
from examples.redis_client.special import CHANGES, CLIENT, CLOSES, ENDS_NEVER, OPENS, name_of
from examples.redis_client.transaction import Transaction, exchange

__all__ = ["Exclusive"]


class Exclusive(Commands):
    """A connection that nobody else uses until the end of the block.

    Args:
        lease: the connection.
        timeout: seconds for a reply, unless a command has a time-out of its own.
        decode: whether replies are decoded.
    """

    def __init__(self, lease: Any, timeout: float | None, *, decode: bool) -> None:
        self._lease = lease
        self._timeout = timeout
        self._decode = decode
        self._open = self._changed = False

    @property
    def is_clean(self) -> bool:
        """True if others can use the connection afterwards."""
        return not (self._open or self._changed)

    async def execute(self, *words: Value, timeout: float | None = -1.0) -> Any:
        """Send a command and return its reply.

        Args:
            *words: the command and its arguments.
            timeout: seconds for the reply, None for no limit; by default that of the client.

        Raises:
            RedisError: the server refused it; the connection goes on.
            RequestTimeout, ConnectionClosed: there was no reply.
            LeaseReleased: the block is over.
            ValueError: the command's replies would never end.
        """
        name = name_of(words)
        if name in ENDS_NEVER:
            raise ValueError(f"{words[0]!r} has replies without end: use subscribe()")
        if name in OPENS:
            self._open = True
        elif name in CHANGES or name in CLIENT:
            self._changed = True
        reply = await self._lease.request(words, self._timeout if timeout == -1.0 else timeout)
        if name in CLOSES:
            self._open = False
        return decoded(reply) if self._decode else reply

    def transaction(self) -> Transaction:
        """Several commands as one, and only if what was watched before has not changed."""
        return Transaction(self.carry_out)

    async def carry_out(self, commands: list[Words]) -> list[Any]:
        """Carry out commands as one; see :func:`exchange`."""
        self._open = True
        try:
            results = await exchange(self._lease, commands, self._timeout)
        except RedisError:
            self._open = False  # refused, and over
            raise
        self._open = False
        return [decoded(result) for result in results] if self._decode else results
