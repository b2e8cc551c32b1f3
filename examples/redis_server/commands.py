"""The commands: functions of a client, the store and the arguments, which return the reply.

A reply is written once it is complete; an error is raised as ``RedisFault``.  This module knows of
a connection only that it takes what is pushed to it.
"""

import hmac
from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

from examples.redis_server.replies import (
    OK,
    RedisFault,
    array,
    bulk,
    integer,
    mapping,
    null,
    push,
)
from examples.redis_server.store import Store, number_of

__all__ = ["Client", "answer"]

#: Commands that a transaction may hold, and channels that a client may listen to.
MAX_QUEUED = 10_000
MAX_CHANNELS = 10_000
_FOREVER = 2**53


class Client:
    """What the server remembers of a connection.

    Args:
        connection: takes, with ``push``, what was not asked for.
        store: what the commands work on.
        password: what must be said before anything else; None if nothing.
    """

    def __init__(self, connection: Any, store: Store, password: str | None) -> None:
        self.connection = connection
        self.store = store
        self.password = password
        self.authenticated = password is None
        self.protocol = 2
        self.name = b""
        self.channels: set[bytes] = set()
        self.leaving = False
        #: The commands of a transaction; None outside of one.
        self.queued: list[list[bytes]] | None = None
        self.spoiled = False

    def forget(self) -> None:
        """The connection is gone."""
        for channel in self.channels:
            listeners = self.store.channels[channel]
            listeners.discard(self.connection)
            if not listeners:
                del self.store.channels[channel]
        self.channels.clear()


class _Command(NamedTuple):
    function: Callable[[Client, list[bytes]], bytes]
    least: int
    most: int | None


_COMMANDS: dict[bytes, _Command] = {}
_Function = Callable[[Client, list[bytes]], bytes]


def command(name: str, least: int = 0, most: int | None = 0) -> Callable[[_Function], _Function]:
    """Make a function a command with so many arguments, most=None for any number."""

    def register(function: _Function) -> _Function:
        _COMMANDS[name.encode()] = _Command(function, least, most)
        return function

    return register


#: What a client may do that has not said the password, or that listens with the old protocol.
_FOR_ANYBODY = {b"AUTH", b"HELLO", b"QUIT"}
_FOR_LISTENERS = {b"SUBSCRIBE", b"UNSUBSCRIBE", b"PING", b"QUIT"}
#: What is done at once in a transaction, and what can't be part of one.
_NOT_QUEUED = {b"EXEC", b"DISCARD", b"MULTI", b"QUIT"}
_NOT_IN_TRANSACTION = {b"SUBSCRIBE", b"UNSUBSCRIBE", b"HELLO", b"AUTH"}


def answer(client: Client, words: list[bytes]) -> bytes:
    """Carry out a command; the reply, an error too."""
    name = words[0].upper()
    try:
        found = _COMMANDS.get(name)
        if client.queued is not None and name not in _NOT_QUEUED:
            return _queue(client, name, found, words)
        arguments = words[1:]
        return _checked(client, name, found, arguments).function(client, arguments)
    except RedisFault as fault:
        return fault.encode()


def _checked(
    client: Client, name: bytes, found: _Command | None, arguments: list[bytes]
) -> _Command:
    """The command, if the client may call it so."""
    if not client.authenticated and name not in _FOR_ANYBODY:
        raise RedisFault("NOAUTH Authentication required.")
    if found is None:
        raise RedisFault(f"ERR unknown command '{name[:64].decode(errors='replace')}'")
    number = len(arguments)
    if number < found.least or (found.most is not None and number > found.most):
        raise RedisFault(f"ERR wrong number of arguments for '{name.decode().lower()}' command")
    if client.channels and client.protocol == 2 and name not in _FOR_LISTENERS:
        raise RedisFault(
            f"ERR Can't execute '{name.decode().lower()}': only (UN)SUBSCRIBE / PING / QUIT are "
            "allowed in this context"
        )
    return found


def _queue(client: Client, name: bytes, found: _Command | None, words: list[bytes]) -> bytes:
    assert client.queued is not None
    try:
        _checked(client, name, found, words[1:])
        if name in _NOT_IN_TRANSACTION:
            raise RedisFault("ERR Command not allowed inside a transaction")
        if len(client.queued) >= MAX_QUEUED:
            raise RedisFault(f"ERR a transaction has at most {MAX_QUEUED} commands")
    except RedisFault:
        client.spoiled = True
        raise
    client.queued.append(words)
    return b"+QUEUED\r\n"


# -- values ----------------------------------------------------------------------------------


@command("GET", 1, 1)
def _get(client: Client, arguments: list[bytes]) -> bytes:
    value = client.store.get(arguments[0])
    return null(client.protocol) if value is None else bulk(value)


@command("SET", 2, 6)
def _set(client: Client, arguments: list[bytes]) -> bytes:
    key, value, *options = arguments
    seconds = None
    condition = b""
    rest = iter(options)
    for option in rest:
        word = option.upper()
        if word in (b"NX", b"XX") and not condition:
            condition = word
        elif word in (b"EX", b"PX") and seconds is None:
            number = number_of(next(rest, b"?"))
            if not 0 < number < _FOREVER:
                raise RedisFault("ERR invalid expire time in 'set' command")
            seconds = number / 1000 if word == b"PX" else float(number)
        else:
            raise RedisFault("ERR syntax error")
    if condition and (client.store.get(key) is None) != (condition == b"NX"):
        return null(client.protocol)
    client.store.set(key, value, seconds)
    return OK


@command("MGET", 1, None)
def _mget(client: Client, arguments: list[bytes]) -> bytes:
    return array([_get(client, [key]) for key in arguments])


@command("MSET", 2, None)
def _mset(client: Client, arguments: list[bytes]) -> bytes:
    if len(arguments) % 2:
        raise RedisFault("ERR wrong number of arguments for 'mset' command")
    for key, value in zip(arguments[::2], arguments[1::2], strict=True):
        client.store.set(key, value)
    return OK


@command("INCR", 1, 1)
def _incr(client: Client, arguments: list[bytes]) -> bytes:
    return integer(client.store.add(arguments[0], 1))


@command("INCRBY", 2, 2)
def _incrby(client: Client, arguments: list[bytes]) -> bytes:
    return integer(client.store.add(arguments[0], number_of(arguments[1])))


@command("DEL", 1, None)
def _del(client: Client, arguments: list[bytes]) -> bytes:
    store = client.store
    return integer(sum(store.get(key) is not None and store.delete(key) for key in arguments))


@command("EXISTS", 1, None)
def _exists(client: Client, arguments: list[bytes]) -> bytes:
    return integer(sum(client.store.get(key) is not None for key in arguments))


@command("EXPIRE", 2, 2)
def _expire(client: Client, arguments: list[bytes]) -> bytes:
    seconds = number_of(arguments[1])
    if seconds >= _FOREVER:
        raise RedisFault("ERR invalid expire time in 'expire' command")
    return integer(client.store.expire(arguments[0], seconds))


@command("TTL", 1, 1)
def _ttl(client: Client, arguments: list[bytes]) -> bytes:
    if client.store.get(arguments[0]) is None:
        return integer(-2)
    left = client.store.seconds_left(arguments[0])
    return integer(-1 if left is None else ceil(left))


@command("DBSIZE")
def _dbsize(client: Client, arguments: list[bytes]) -> bytes:
    return integer(len(client.store))


@command("FLUSHALL", 0, 1)
def _flushall(client: Client, arguments: list[bytes]) -> bytes:
    client.store.clear()
    return OK


# -- transactions ----------------------------------------------------------------------------


@command("MULTI")
def _multi(client: Client, arguments: list[bytes]) -> bytes:
    if client.queued is not None:
        raise RedisFault("ERR MULTI calls can not be nested")
    client.queued, client.spoiled = [], False
    return OK


@command("DISCARD")
def _discard(client: Client, arguments: list[bytes]) -> bytes:
    if client.queued is None:
        raise RedisFault("ERR DISCARD without MULTI")
    client.queued = None
    return OK


@command("EXEC")
def _exec(client: Client, arguments: list[bytes]) -> bytes:
    if client.queued is None:
        raise RedisFault("ERR EXEC without MULTI")
    queued, client.queued = client.queued, None
    if client.spoiled:
        raise RedisFault("EXECABORT Transaction discarded because of previous errors.")
    return array([answer(client, words) for words in queued])


# -- channels --------------------------------------------------------------------------------


@command("SUBSCRIBE", 1, None)
def _subscribe(client: Client, arguments: list[bytes]) -> bytes:
    replies = []
    for channel in arguments:
        if channel not in client.channels:
            if len(client.channels) >= MAX_CHANNELS:
                raise RedisFault(f"ERR a client listens to at most {MAX_CHANNELS} channels")
            client.channels.add(channel)
            client.store.channels.setdefault(channel, set()).add(client.connection)
        replies.append(_listening(client, b"subscribe", channel))
    return b"".join(replies)


@command("UNSUBSCRIBE", 0, None)
def _unsubscribe(client: Client, arguments: list[bytes]) -> bytes:
    replies = []
    for channel in arguments or sorted(client.channels):
        if channel in client.channels:
            client.channels.discard(channel)
            client.store.channels[channel].discard(client.connection)
            if not client.store.channels[channel]:
                del client.store.channels[channel]
        replies.append(_listening(client, b"unsubscribe", channel))
    return b"".join(replies) or _listening(client, b"unsubscribe", None)


def _listening(client: Client, what: bytes, channel: bytes | None) -> bytes:
    name = null(client.protocol) if channel is None else bulk(channel)
    return push(client.protocol, [bulk(what), name, integer(len(client.channels))])


@command("PUBLISH", 2, 2)
def _publish(client: Client, arguments: list[bytes]) -> bytes:
    channel, message = arguments
    listeners = tuple(client.store.channels.get(channel, ()))
    for connection in listeners:
        connection.push([bulk(b"message"), bulk(channel), bulk(message)])
    return integer(len(listeners))


# -- the connection --------------------------------------------------------------------------


@command("PING", 0, 1)
def _ping(client: Client, arguments: list[bytes]) -> bytes:
    if client.channels and client.protocol == 2:
        return array([bulk(b"pong"), bulk(arguments[0] if arguments else b"")])
    return bulk(arguments[0]) if arguments else b"+PONG\r\n"


@command("ECHO", 1, 1)
def _echo(client: Client, arguments: list[bytes]) -> bytes:
    return bulk(arguments[0])


@command("SELECT", 1, 1)
def _select(client: Client, arguments: list[bytes]) -> bytes:
    if number_of(arguments[0]) != 0:
        raise RedisFault("ERR DB index is out of range")
    return OK


@command("QUIT")
def _quit(client: Client, arguments: list[bytes]) -> bytes:
    client.leaving = True
    return OK


@command("AUTH", 1, 2)
def _auth(client: Client, arguments: list[bytes]) -> bytes:
    if client.password is None:
        raise RedisFault("ERR AUTH called without any password configured for the default user.")
    user = arguments[0] if len(arguments) == 2 else b"default"
    right = hmac.compare_digest(arguments[-1], client.password.encode())
    if user != b"default" or not right:
        raise RedisFault("WRONGPASS invalid username-password pair or user is disabled.")
    client.authenticated = True
    return OK


@command("HELLO", 0, 6)
def _hello(client: Client, arguments: list[bytes]) -> bytes:
    protocol, name, rest = client.protocol, client.name, iter(arguments[1:])
    if arguments:
        if arguments[0] not in (b"2", b"3"):
            raise RedisFault("NOPROTO unsupported protocol version")
        protocol = int(arguments[0])
    for option in rest:
        words = [next(rest, None) for _ in range(2 if option.upper() == b"AUTH" else 1)]
        if option.upper() not in (b"AUTH", b"SETNAME") or None in words:
            raise RedisFault("ERR Syntax error in HELLO")
        given = [word for word in words if word is not None]
        if len(given) == 2:
            _auth(client, given)
        else:
            name = given[0]
    if not client.authenticated:
        raise RedisFault(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the "
            "HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client"
        )
    client.protocol, client.name = protocol, name
    facts = [bulk(b"server"), bulk(b"redis"), bulk(b"version"), bulk(b"7.0.0")]
    facts += [bulk(b"proto"), integer(protocol), bulk(b"id"), integer(id(client))]
    facts += [bulk(b"mode"), bulk(b"standalone"), bulk(b"role"), bulk(b"master")]
    facts += [bulk(b"modules"), array([])]
    return mapping(protocol, facts)


@command("CLIENT", 1, 4)
def _client(client: Client, arguments: list[bytes]) -> bytes:
    match [arguments[0].upper(), *arguments[1:]]:
        case [b"SETNAME", name]:
            client.name = name[:64]
            return OK
        case [b"GETNAME"]:
            return bulk(client.name)
        case [b"SETINFO", _, _]:
            return OK
        case [b"ID"]:
            return integer(id(client))
    raise RedisFault("ERR unknown subcommand of 'client', or wrong number of its arguments")


@command("CONFIG", 1, 4)
def _config(client: Client, arguments: list[bytes]) -> bytes:
    if arguments[0].upper() != b"GET":
        raise RedisFault("ERR this server has no configuration but its command line")
    known = {b"save": b"", b"appendonly": b"no"}
    known[b"maxmemory"] = b"%d" % client.store.max_memory
    found = []
    for name in dict.fromkeys(argument.lower() for argument in arguments[1:]):
        if name in known:
            found += [bulk(name), bulk(known[name])]
    return mapping(client.protocol, found)


@command("COMMAND", 0, None)
def _command(client: Client, arguments: list[bytes]) -> bytes:
    if arguments and arguments[0].upper() == b"COUNT":
        return integer(len(_COMMANDS))
    if arguments and arguments[0].upper() == b"DOCS":
        return mapping(client.protocol, [])
    return array([])


@command("INFO", 0, None)
def _info(client: Client, arguments: list[bytes]) -> bytes:
    lines = ["# Server", "redis_version:7.0.0", "redis_mode:standalone", "# Memory"]
    lines += [f"used_memory:{client.store.used}", f"maxmemory:{client.store.max_memory}", ""]
    return bulk("\r\n".join(lines).encode())
