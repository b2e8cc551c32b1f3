"""Which commands are not like the others: for a connection alone, or no part of a transaction."""

from functools import lru_cache

from examples.redis_client.protocol import Words, encoded

__all__ = [
    "CHANGES",
    "CLIENT",
    "CLOSES",
    "ENDS_NEVER",
    "OPENS",
    "check_shareable",
    "check_transactional",
    "name_of",
]

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
OPENS, CLOSES, CHANGES, ENDS_NEVER = map(_names, (_OPENING, _CLOSING, _CHANGING, _ENDLESS))
_NOT_IN_ONE = _names(_OPENING, _CLOSING, _CHANGING, _ENDLESS, "CLIENT")
CLIENT, _TELLS = _names("CLIENT"), _names("REPLY TRACKING")


def check_shareable(words: Words) -> None:
    """Refuse what would disturb the others on a shared connection.

    Raises:
        ValueError: the command needs a connection of its own.
    """
    if words and words[0].__class__ is str and _is_harmless(words[0]):
        return
    name = name_of(words)
    if name in _SUSPECT and (name not in CLIENT or name_of(words[1:]) in _TELLS):
        raise ValueError(
            f"{words[0]!r} needs a connection of its own: use subscribe(), transaction() or "
            "async with exclusive()"
        )


@lru_cache(maxsize=1000)
def _is_harmless(name: str) -> bool:
    """The command may be sent by anybody, whatever follows; however it is spelled."""
    return name.upper() not in _SUSPECT


def check_transactional(words: Words) -> None:
    """Refuse what would not be a part of the transaction, but end it or outlive it.

    Raises:
        TypeError: it is no command.
        ValueError: it can't be a part of one.
    """
    if name_of(words) in _NOT_IN_ONE:
        raise ValueError(
            f"{words[0]!r} can't be a part of a transaction: it ends it, or changes the connection"
        )
    encoded(words)


def name_of(words: Words) -> str | bytes:
    """The name of a command, in capitals.

    Raises:
        TypeError: it has none.
    """
    if not words or not isinstance(words[0], (str, bytes)):
        raise TypeError(
            "a command consists of str, bytes, int and float, its name (text) first, not of "
            f"{words!r:.200}"
        )
    return words[0].upper()
