"""A connection for one task alone, and the commands that need one."""

from typing import Any

from examples.redis_client.commands import Commands
from examples.redis_client.protocol import RedisError, Value, decoded
from examples.redis_client.transaction import Transaction, Words, exchange

__all__ = ["Exclusive", "check_shareable"]

#: They block, and on a shared connection everybody else with them.
_BLOCKING = (
    "BLPOP BRPOP BLMOVE BLMPOP BRPOPLPUSH BZPOPMIN BZPOPMAX BZMPOP XREAD XREADGROUP WAIT WAITAOF"
)
#: They change what the commands behind them mean, until one of _CLOSING or for good.
_OPENING = "MULTI WATCH"
_CLOSING = "EXEC DISCARD UNWATCH"
_CHANGING = "SELECT AUTH HELLO RESET QUIT READONLY READWRITE"
#: Their replies never end.
_ENDLESS = (
    "SUBSCRIBE PSUBSCRIBE SSUBSCRIBE UNSUBSCRIBE PUNSUBSCRIBE SUNSUBSCRIBE MONITOR SYNC PSYNC"
)


def _names(*texts: str) -> frozenset[object]:
    words = " ".join(texts).split()
    return frozenset([*words, *(word.encode() for word in words)])


_SUSPECT = _names(_BLOCKING, _OPENING, _CLOSING, _CHANGING, _ENDLESS, "CLIENT")
_OPENS, _CLOSES, _CHANGES, _ENDS_NEVER = map(_names, (_OPENING, _CLOSING, _CHANGING, _ENDLESS))
_CLIENT, _TELLS = _names("CLIENT"), _names("REPLY TRACKING")


def check_shareable(words: Words) -> None:
    """Refuse what would disturb the others on a shared connection.

    Raises:
        ValueError: the command needs a connection of its own.
    """
    name = _name(words)
    if name in _SUSPECT and (name not in _CLIENT or _name(words[1:]) in _TELLS):
        raise ValueError(
            f"{words[0]!r} needs a connection of its own: use subscribe(), transaction() or "
            "async with exclusive()"
        )


def _name(words: Words) -> object:
    # Anything else is refused when it is encoded.
    return words[0].upper() if words and isinstance(words[0], (str, bytes)) else None


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
        name = _name(words)
        if name in _ENDS_NEVER:
            raise ValueError(f"{words[0]!r} has replies without end: use subscribe()")
        if name in _OPENS:
            self._open = True
        elif name in _CHANGES or name in _CLIENT:
            self._changed = True
        reply = await self._lease.request(words, self._timeout if timeout == -1.0 else timeout)
        if name in _CLOSES:
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
