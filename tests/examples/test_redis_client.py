"""The Redis client: at a real Redis, at the example's server, and at bad ones."""

import asyncio
import os
import random
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from real_servers import RedisProcess, required

pytest.importorskip("hiredis", reason="hiredis is not installed")

from examples.redis_client import Message, Redis, RedisError, Transaction, WatchError
from examples.redis_client import subscription as subscriptions
from examples.redis_client.protocol import RespCodec
from examples.redis_server import RedisServer
from pulsar_client import (
    Connection,
    ConnectionClosed,
    LeaseReleased,
    PoolUnavailable,
    ProtocolConsumer,
    ProtocolError,
    RequestTimeout,
    TcpServer,
)
from pulsar_client.testing import FaultProxy, Link, memory_pair

LONG = os.environ.get("PULSAR_CLIENT_LONG") == "1"
OPERATIONS = 1_000_000 if LONG else 20_000
#: Seconds for what takes milliseconds on a machine with nothing else to do.
PATIENCE = 30.0

Client = partial(Redis, timeout=PATIENCE)


@pytest.fixture(scope="module")
def redis_or_none(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess | None]:
    if shutil.which("redis-server") is None:
        yield None
    else:
        with RedisProcess(tmp_path_factory.mktemp("redis")) as server:
            yield server


@pytest.fixture(scope="module")
def redis_process(redis_or_none: RedisProcess | None) -> RedisProcess:
    if redis_or_none is None:
        required("redis-server")
    assert redis_or_none is not None
    return redis_or_none


@pytest.fixture
async def redis(redis_process: RedisProcess) -> AsyncIterator[Redis]:
    async with Client(redis_process.address, pool_size=4) as client:
        await client.execute("FLUSHALL")
        yield client


# -- commands --------------------------------------------------------------------------------


@pytest.fixture(params=["redis, RESP 3", "redis, RESP 2", "example, RESP 3", "example, RESP 2"])
async def either(
    request: pytest.FixtureRequest, redis_or_none: RedisProcess | None
) -> AsyncIterator[Redis]:
    """A client of the real server or of the example's, with either protocol."""
    name, _, protocol = request.param.partition(", RESP ")
    if name == "redis":
        address = request.getfixturevalue("redis_process").address
        async with Client(address, protocol=int(protocol)) as client:
            await client.execute("FLUSHALL")
            yield client
    else:
        async with (
            RedisServer() as server,
            Client(server.address, protocol=int(protocol)) as client,
        ):
            yield client


async def test_strings(either: Redis) -> None:
    assert await either.ping() is True
    assert await either.get("key") is None
    assert await either.set("key", "значение") is True
    assert await either.get(b"key") == "значение".encode()
    assert await either.set("key", b"\0\r\n\xff", nx=True) is False
    assert await either.set("key", b"\0\r\n\xff", xx=True) is True
    assert await either.get("key") == b"\0\r\n\xff"
    assert await either.set("other", 1.5, xx=True) is False
    assert await either.incr("n") == 1
    assert await either.incrby("n", 41) == 42
    await either.mset({"a": 1, "b": 2.5})
    assert await either.mget("a", "none", "b", "n") == [b"1", None, b"2.5", b"42"]


async def test_keys(either: Redis) -> None:
    await either.set("key", "v", ex=100)
    assert 0 < await either.ttl("key") <= 100
    await either.set("key", "v", px=100_000)
    assert 0 < await either.ttl("key") <= 100
    await either.set("key", "v")
    assert await either.ttl("key") == -1
    assert await either.expire("key", 100) is True
    assert await either.expire("none", 100) is False
    assert await either.exists("key", "none", "key") == 2
    assert await either.delete("key", "none") == 1
    assert await either.ttl("key") == -2


async def test_a_transaction(either: Redis) -> None:
    async with either.transaction() as transaction:
        transaction.execute("SET", "a", 1)
        transaction.execute("INCR", "a")
        transaction.execute("GET", "none")
    assert transaction.results == [b"OK", 2, None] or transaction.results == ["OK", 2, None]
    async with either.transaction() as transaction:
        pass
    assert transaction.results == []


async def test_messages(either: Redis) -> None:
    async def listen() -> list[Message]:
        found = []
        async for message in either.subscribe("news", b"more"):
            found.append(message)
            if message.data == b"end":
                break
        return found

    task = asyncio.create_task(listen())
    while not await either.publish("more", "0"):
        await asyncio.sleep(0)
    for number in range(1, 50):
        assert await either.publish("news", number) == 1
    await either.publish("more", "end")
    assert await task == [
        Message(b"more", b"0"),
        *(Message(b"news", b"%d" % number) for number in range(1, 50)),
        Message(b"more", b"end"),
    ]
    while await either.publish("news", "nobody"):  # the end of the loop has closed its connection
        await asyncio.sleep(0)
    assert either.pool.in_use == 0


async def test_an_error_leaves_the_connection_usable(either: Redis) -> None:
    await either.set("key", "text")
    before = either.pool.stats().opened
    for _ in range(3):
        with pytest.raises(RedisError, match="not an integer") as error:
            await either.incr("key")
        assert error.value.code == "ERR"
        assert await either.get("key") == b"text"
    assert either.pool.stats().opened == before


async def test_hashes_and_lists(redis_process: RedisProcess, redis: Redis) -> None:
    async with Client(redis_process.address, protocol=2) as old:
        for client in (redis, old):
            await client.delete("hash", "list")
            assert await client.hset("hash", {"a": 1, b"b": "two"}) == 2
            assert await client.hget("hash", "a") == b"1"
            assert await client.hget("hash", "none") is None
            assert await client.hgetall("hash") == {b"a": b"1", b"b": b"two"}
            assert await client.hgetall("none") == {}
            assert await client.rpush("list", "b", "c") == 2
            assert await client.lpush("list", "a") == 3
            assert await client.lrange("list", 0, -1) == [b"a", b"b", b"c"]
            assert await client.blpop("none", "list") == [b"list", b"a"]
            assert await client.blpop("none", timeout=0.01) is None


async def test_replies_of_every_kind(redis: Redis) -> None:
    assert await redis.execute("DEBUG", "PROTOCOL", "null") is None
    assert await redis.execute("DEBUG", "PROTOCOL", "true") is True
    assert await redis.execute("DEBUG", "PROTOCOL", "double") == 3.141
    assert await redis.execute("DEBUG", "PROTOCOL", "map") == {0: False, 1: True, 2: False}
    assert await redis.execute("DEBUG", "PROTOCOL", "array") == [0, 1, 2]
    script = "return {1, {2, {'x', redis.error_reply('ERR inner')}}}"
    nested = await redis.execute("EVAL", script, 0)
    assert nested[:1] == [1]
    assert nested[1][:1] == [2]
    assert isinstance(nested[1][1][1], RedisError)
    with suppress(RedisError):
        await redis.execute("DEBUG", "PROTOCOL", "push")  # what nobody asked for is dropped
    assert await redis.ping()


async def test_decoded_replies(redis_process: RedisProcess) -> None:
    async with Client(redis_process.address, decode_responses=True) as client:
        await client.set("key", "значение")
        assert await client.get("key") == "значение"
        assert await client.ping() is True
        await client.delete("hash")
        await client.hset("hash", {"a": "ж"})
        assert await client.hgetall("hash") == {"a": "ж"}
        async with client.transaction() as transaction:
            transaction.execute("GET", "key")
        assert transaction.results == ["значение"]
        before = client.pool.stats().opened
        await client.set("key", b"\xff")
        with pytest.raises(UnicodeDecodeError):
            await client.get("key")
        assert await client.exists("key") == 1
        assert client.pool.stats().opened == before


@pytest.mark.parametrize("word", [None, True, ["a"], {"a": 1}, object(), bytearray(b"x")])
async def test_words_of_other_types_are_refused(redis: Redis, word: Any) -> None:
    others = [asyncio.ensure_future(redis.incr("n")) for _ in range(5)]
    with pytest.raises(TypeError, match="str, bytes, int and float"):
        await redis.execute("SET", "key", word)
    with pytest.raises(TypeError, match="str, bytes, int and float"):
        await redis.execute(word)
    assert await asyncio.gather(*others) == [1, 2, 3, 4, 5]
    assert redis.pool.stats().opened == 1


@pytest.mark.parametrize(
    "words",
    [("BLPOP", "a", 0), ("multi",), (b"WATCH", "a"), ("Subscribe", "a"), ("SELECT", 1),
     ("CLIENT", "reply", "off"), ("MONITOR",), ("EXEC",), ("AUTH", "x"), ("QUIT",)],
)  # fmt: skip
async def test_what_would_disturb_others_is_refused(words: tuple[Any, ...]) -> None:
    async with Client(("127.0.0.1", 1)) as client:
        with pytest.raises(ValueError, match="needs a connection of its own"):
            await client.execute(*words)


async def test_no_command_is_refused(redis: Redis) -> None:
    with pytest.raises(TypeError, match="a command consists of"):
        await redis.execute()


# -- addresses and logins --------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, ca: trustme.CA) -> Iterator[RedisProcess]:
    """With a password, TLS and few clients."""
    issued = ca.issue_cert("localhost", "127.0.0.1")
    pem = issued.private_key_and_cert_chain_pem.bytes()
    directory = tmp_path_factory.mktemp("guarded")
    with RedisProcess(directory, certificate=pem, password="p@ss/wörd") as server:
        yield server


async def test_a_password(guarded: RedisProcess) -> None:
    for protocol in (2, 3):
        async with Client(guarded.address, password="p@ss/wörd", protocol=protocol) as client:
            assert await client.ping()
    async with Client(guarded.address, password="p@ss/wörd") as client:
        await client.execute("ACL", "SETUSER", "me", "on", ">mine", "+@all", "~*")
    for protocol in (2, 3):
        async with Client(
            guarded.address, username="me", password="mine", protocol=protocol
        ) as client:
            assert await client.execute("ACL", "WHOAMI") == b"me"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("login", [{}, {"password": "wrong"}, {"username": "no", "password": "x"}])
async def test_a_wrong_password_is_said_at_the_first_request(
    guarded: RedisProcess, protocol: int, login: dict[str, str]
) -> None:
    async with Redis(guarded.address, protocol=protocol, **login) as client:  # type: ignore[arg-type]
        started = asyncio.get_running_loop().time()
        with pytest.raises((PoolUnavailable, RedisError), match=r"WRONGPASS|NOAUTH") as info:
            await client.get("key")
        if info.type is PoolUnavailable:  # I35: it says where
            assert f"127.0.0.1:{guarded.address[1]}" in str(info.value)
        assert asyncio.get_running_loop().time() - started < 5.0
        assert client.pool.in_use == client.pool.available == 0 or not login


async def test_a_database(redis_process: RedisProcess, redis: Redis) -> None:
    await redis.set("key", "zero")
    async with Client(redis_process.address, db=3) as client:
        assert await client.get("key") is None
        await client.set("key", "three")
    assert await redis.get("key") == b"zero"
    async with Client(redis_process.address, db=99) as client:
        with pytest.raises(PoolUnavailable, match="DB index is out of range"):
            await client.get("key")


async def test_tls(guarded: RedisProcess, client_ssl: ssl.SSLContext) -> None:
    address = ("localhost", guarded.tls_port)
    async with Client(address, password="p@ss/wörd", ssl=client_ssl) as client:
        value = os.urandom(300_000)
        await client.set("key", value)
        assert await asyncio.gather(*(client.get("key") for _ in range(20))) == [value] * 20
    async with Client(address, password="p@ss/wörd", ssl=True) as client:
        with pytest.raises(PoolUnavailable, match="certificate"):
            await client.get("key")


async def test_urls(guarded: RedisProcess, redis_process: RedisProcess) -> None:
    login = ":p%40ss%2Fw%C3%B6rd@"
    urls = [
        f"redis://{login}127.0.0.1:{guarded.port}/2",
        f"redis://default{login}127.0.0.1:{guarded.port}/2",
        f"unix://{login}{guarded.unix_path}?db=2",
    ]
    for url in urls:
        async with Redis.from_url(url, timeout=PATIENCE) as client:
            assert await client.ping()
            assert b" db=2 " in await client.execute("CLIENT", "INFO")
    async with Redis.from_url(f"redis://localhost:{redis_process.port}") as client:
        assert b" db=0 " in await client.execute("CLIENT", "INFO")


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost", "redis://localhost/x", "redis://localhost/1/2", "unix://",
     "redis://localhost?what=1", "redis://localhost:port", "redis://me@localhost",
     "redis://localhost#fragment"],
)  # fmt: skip
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|understood|[Pp]ort|password"):
        Redis.from_url(url)


@pytest.mark.parametrize(
    "rest", ["@localhost?what=1", "/x@localhost", "?x@localhost", "#x@localhost"]
)
def test_an_error_does_not_show_the_password(rest: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|written as %2F") as error:
        Redis.from_url(f"redis://me:secret{rest}")
    assert "secret" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_port_0_is_not_the_usual_one() -> None:
    assert Redis.from_url("redis://localhost:0").address == ("localhost", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": 4}, "protocol is 4"),
        ({"db": -1}, "db is -1"),
        ({"db": "0"}, "db is '0'"),
        ({"username": "me"}, "username is 'me'"),
        ({"pool_size": 0}, "pool_size is 0"),
        ({"timeout": -1}, "timeout is -1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Redis(("127.0.0.1", 6379), **options)


# -- transactions ----------------------------------------------------------------------------


async def test_a_transaction_whose_command_fails(redis: Redis) -> None:
    await redis.set("text", "x")
    transaction = redis.transaction()
    with pytest.raises(RedisError, match="not an integer"):
        await carry_out(transaction, ("SET", "a", 1), ("INCR", "text"), ("INCR", "a"))
    assert transaction.results[0] in (b"OK", "OK")
    assert isinstance(transaction.results[1], RedisError)
    assert transaction.results[2] == 2
    assert await redis.get("a") == b"2"


async def test_a_transaction_that_is_refused(redis: Redis) -> None:
    before = redis.pool.stats().opened
    with pytest.raises(RedisError, match="unknown command 'NONSENSE'"):
        await carry_out(redis.transaction(), ("SET", "a", 1), ("NONSENSE",))
    assert await redis.get("a") is None
    assert redis.pool.stats().opened == before


async def carry_out(transaction: Transaction, *commands: tuple[Any, ...]) -> None:
    async with transaction:
        for words in commands:
            transaction.execute(*words)


async def test_a_block_that_fails_sends_nothing(redis: Redis) -> None:
    with pytest.raises(TypeError):
        await carry_out(redis.transaction(), ("SET", "a", 1), 17)  # type: ignore[arg-type]
    assert await redis.get("a") is None


@pytest.mark.parametrize("bad", [("SET", "a", None), ("SET", "a", "\udc80"), (), (None,)])
async def test_a_transaction_with_a_word_that_cannot_be_sent_sends_nothing(
    redis: Redis, bad: tuple[Any, ...]
) -> None:
    with pytest.raises((TypeError, UnicodeEncodeError)):
        await carry_out(redis.transaction(), ("SET", "a", 1), bad)
    assert await redis.get("a") is None


@pytest.mark.parametrize(
    "bad",
    ["DISCARD", "exec", b"MULTI", "SELECT 1", "SUBSCRIBE news", "CLIENT REPLY OFF"],
)
async def test_what_would_end_a_transaction_or_outlive_it_is_no_part_of_it(
    redis: Redis, bad: str | bytes
) -> None:
    await redis.set("a", "of database 0")
    with pytest.raises(ValueError, match="can't be a part of a transaction"):
        await carry_out(redis.transaction(), ("SET", "a", 1), tuple(bad.split()))
    async with redis.exclusive() as connection:
        with pytest.raises(ValueError, match="can't be a part of a transaction"):
            await carry_out(connection.transaction(), ("SET", "a", 1), tuple(bad.split()))
    assert await redis.get("a") == b"of database 0"


@pytest.mark.parametrize("name", [memoryview(b"SELECT"), bytearray(b"SELECT"), 1, None])
async def test_a_command_in_disguise_is_refused(redis: Redis, name: Any) -> None:
    await redis.set("a", "of database 0")
    with pytest.raises(TypeError, match="its name \\(text\\) first"):
        await redis.execute(name, 1)
    assert await redis.get("a") == b"of database 0"


async def test_transactions_of_many_tasks_are_not_mixed(redis: Redis) -> None:
    async def work(number: int) -> None:
        for _ in range(10):
            async with redis.transaction() as transaction:
                transaction.execute("SET", "shared", number)
                transaction.execute("INCR", "count")
                transaction.execute("GET", "shared")
            assert transaction.results[2] == b"%d" % number

    await asyncio.gather(*(work(number) for number in range(40)))
    assert await redis.get("count") == b"400"
    assert redis.pool.stats().size <= 4


async def test_watch(redis: Redis) -> None:
    await redis.set("balance", 100)
    async with redis.exclusive() as connection:
        await connection.execute("WATCH", "balance")
        balance = int(await connection.get("balance"))
        async with connection.transaction() as transaction:
            transaction.execute("SET", "balance", balance - 1)
    assert await redis.get("balance") == b"99"

    async with redis.exclusive() as connection:
        await connection.execute("WATCH", "balance")
        await redis.set("balance", 0)
        with pytest.raises(WatchError):
            async with connection.transaction() as transaction:
                transaction.execute("SET", "balance", 98)
    assert await redis.get("balance") == b"0"


# -- a connection for oneself ----------------------------------------------------------------


async def test_i33_what_blocks_never_blocks_the_others(redis: Redis) -> None:
    """I33: as many blocking commands as there are connections, and more."""
    blocked = [asyncio.create_task(redis.blpop(f"list{i}")) for i in range(10)]
    async with asyncio.timeout(PATIENCE):
        for number in range(200):
            await redis.set("key", number)
            assert await redis.get("key") == b"%d" % number
        for number in range(10):
            await redis.rpush(f"list{number}", number)
        found = await asyncio.gather(*blocked)
    assert found == [[b"list%d" % i, b"%d" % i] for i in range(10)]
    assert redis.pool.stats().size <= 4


async def client_id(connection: Any) -> int:
    return int(await connection.execute("CLIENT", "ID"))


async def blocked_clients(redis: Redis) -> int:
    info = (await redis.execute("INFO", "clients")).decode()
    return int(info.partition("blocked_clients:")[2].partition("\r")[0])


async def test_a_cancelled_exclusive_exchange_drops_its_connection(redis: Redis) -> None:
    task = asyncio.create_task(redis.blpop("list"))
    while not await blocked_clients(redis):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while await blocked_clients(redis):
        await asyncio.sleep(0)
    await redis.rpush("list", "v")
    assert await redis.lrange("list", 0, -1) == [b"v"]  # nobody took it in vain
    assert redis.pool.in_use == 0


@pytest.mark.parametrize(
    "words", [("MULTI",), ("WATCH", "a"), ("SELECT", 1), ("CLIENT", "REPLY", "ON")]
)
async def test_a_connection_that_was_changed_is_not_given_to_others(
    redis: Redis, words: tuple[Any, ...]
) -> None:
    async with redis.exclusive() as connection:
        mine = int(await connection.execute("INCR", "n"))
        lost = connection._lease.connection
        await connection.execute(*words)
    assert mine == 1
    assert lost not in redis.pool
    assert await redis.incr("n") == 2


@pytest.mark.parametrize(
    "commands", [[("MULTI",), ("DISCARD",)], [("WATCH", "a"), ("UNWATCH",)], [("PING",)]]
)
async def test_one_that_is_as_it_was_goes_back(redis: Redis, commands: list[tuple[Any]]) -> None:
    async with redis.exclusive() as connection:
        kept = connection._lease.connection
        for words in commands:
            await connection.execute(*words)
    assert kept in redis.pool
    assert await redis.ping()


async def test_a_block_that_fails_drops_its_connection(redis: Redis) -> None:
    lost = []

    async def fail() -> None:
        async with redis.exclusive() as connection:
            lost.append(connection._lease.connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert lost[0] not in redis.pool
    assert await redis.ping()


async def test_i20_a_connection_is_not_used_after_its_block(redis: Redis) -> None:
    async with redis.exclusive() as connection:
        await connection.execute("PING")
    with pytest.raises(LeaseReleased):
        await connection.execute("PING")
    async with redis.exclusive() as connection:
        with pytest.raises(ValueError, match="replies without end"):
            await connection.execute("SUBSCRIBE", "news")


# -- listening -------------------------------------------------------------------------------


async def listeners(redis: Redis, channel: str) -> int:
    return int((await redis.execute("PUBSUB", "NUMSUB", channel))[1])


async def test_a_listener_that_is_cancelled_leaves_nothing(redis: Redis) -> None:
    async def listen() -> None:
        async for _ in redis.subscribe("news"):
            pass

    task = asyncio.create_task(listen())
    while not await listeners(redis, "news"):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while await listeners(redis, "news"):
        await asyncio.sleep(0)


async def test_a_listener_learns_of_the_loss(redis: Redis) -> None:
    async def listen() -> None:
        async for _ in redis.subscribe("news"):
            pass

    task = asyncio.create_task(listen())
    while not await listeners(redis, "news"):
        await asyncio.sleep(0)
    await redis.execute("CLIENT", "KILL", "TYPE", "pubsub")
    with pytest.raises(ConnectionClosed):
        await task


async def test_a_slow_listener_is_waited_for(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MANY", 5)
    messages = redis.subscribe("news")
    first = asyncio.ensure_future(anext(messages))
    while not await redis.publish("news", "first"):
        await asyncio.sleep(0)
    assert (await first).data == b"first"
    for number in range(300):
        assert await redis.publish("news", b"%d" % number + b"x" * 10_000) == 1
    for number in range(300):
        assert (await anext(messages)).data == b"%d" % number + b"x" * 10_000
    await messages.aclose()


# -- what goes wrong -------------------------------------------------------------------------


async def test_client_kill(redis: Redis) -> None:
    async def ask(request: Callable[[], Awaitable[Any]]) -> Any:
        """Until it works: those that are killed while they log in count as failed dials."""
        while True:
            try:
                return await request()
            except ConnectionClosed:
                pass
            except PoolUnavailable:
                await asyncio.sleep(0.01)  # it refuses all callers for a moment

    async def work() -> None:
        for _ in range(200):
            assert await ask(lambda: redis.set("key", "v"))

    async def kill() -> None:
        async with redis.exclusive() as connection:
            await connection.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    tasks = [asyncio.create_task(work()) for _ in range(20)]
    for _ in range(5):
        await asyncio.sleep(0.005)
        await ask(kill)
    await asyncio.gather(*tasks)
    assert await ask(lambda: redis.get("key")) == b"v"
    assert redis.pool.in_use == 0


async def test_a_server_that_stands_still_and_a_time_out(redis_process: RedisProcess) -> None:
    async with Redis(redis_process.address, timeout=PATIENCE) as hasty:
        await hasty.set("key", "v")
        hasty.timeout = 0.3
        assert redis_process.process is not None
        redis_process.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(RequestTimeout):
                await hasty.get("none")
        finally:
            redis_process.process.send_signal(signal.SIGCONT)
        hasty.timeout = PATIENCE
        # The late reply was somebody else's: read, and given to nobody.
        assert await hasty.get("key") == b"v"


async def test_a_value_of_100_megabytes(redis: Redis) -> None:
    value = os.urandom(1_000_000) * 100
    small = asyncio.gather(*(redis.set(f"key{i}", i) for i in range(50)))
    assert await redis.set("big", value)
    await small
    others = [asyncio.create_task(redis.get(f"key{i}")) for i in range(50)]
    assert await redis.get("big") == value
    assert await asyncio.gather(*others) == [b"%d" % i for i in range(50)]
    await redis.delete("big")


@pytest.mark.parametrize("attempt", range(5))
async def test_maxclients_reached_is_said(tmp_path: Path, attempt: int) -> None:
    with RedisProcess(tmp_path, "--maxclients", "2") as server:
        async with Client(server.address, pool_size=5) as client:
            async with client.exclusive(), client.exclusive():
                started = asyncio.get_running_loop().time()
                async with Redis(server.address) as late:
                    with pytest.raises(PoolUnavailable, match="max number of clients reached"):
                        await late.get("key")
                assert asyncio.get_running_loop().time() - started < 5.0
            assert await client.ping()


async def test_i22_the_client_goes_on_after_a_restart(tmp_path: Path) -> None:
    """I22: while it is down requests fail with the cause, and soon after it is back they work."""
    loop = asyncio.get_running_loop()
    with RedisProcess(tmp_path) as server:
        async with Redis(server.address) as client:
            await client.set("key", "v")
            listening = asyncio.create_task(anext(client.subscribe("news")))
            while not await listeners(client, "news"):
                await asyncio.sleep(0)
            server.stop()
            with pytest.raises(ConnectionClosed):
                await listening
            for attempt in range(20):
                started = loop.time()
                with pytest.raises((PoolUnavailable, ConnectionClosed)) as error:
                    await client.get("key")
                assert loop.time() - started < 5.0
                assert attempt < 5 or isinstance(error.value.__cause__, OSError)
            server.start()
            back = loop.time()
            while True:
                try:
                    assert await client.get("key") is None
                    break
                except PoolUnavailable:
                    await asyncio.sleep(0.01)
            # A step of the backoff is at most 2 s; the rest is for a machine that is busy.
            assert loop.time() - back < 2.5 + 5.0


async def test_i21_a_restart_between_requests_is_not_noticed(tmp_path: Path) -> None:
    """I21: the stale connection is known, or nothing of the request was sent on it."""
    with RedisProcess(tmp_path) as server:
        async with Client(server.address) as client:
            await client.set("key", "v")
            server.stop()
            server.start()
            await asyncio.sleep(0.01)
            assert await client.get("key") is None


async def storm(client: Redis, operations: int, tasks: int) -> dict[str, int]:
    """SET and GET of unique values, cut short at random; every reply must be its own."""
    rng = random.Random(7)
    numbers = iter(range(operations))
    counted = {"fine": 0, "cut": 0, "late": 0}

    async def exchange(key: str, value: bytes) -> None:
        assert await client.set(key, value) is True
        assert await client.get(key) == value
        assert await client.execute("ECHO", value) == value
        counted["fine"] += 1

    async def work(name: int) -> None:
        for number in numbers:
            key, value = f"key{name}", b"%d.%d" % (name, number)
            fate = rng.random()
            if fate < 0.85:
                await exchange(key, value)
            elif fate < 0.95:
                task = asyncio.ensure_future(exchange(key, value))
                for _ in range(rng.randrange(8)):
                    await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                counted["cut"] += 1
            else:
                try:
                    async with asyncio.timeout(rng.choice([0.0, 0.0002, 0.001])):
                        await exchange(key, value)
                except TimeoutError:
                    counted["late"] += 1

    await asyncio.gather(*(work(name) for name in range(tasks)))
    return counted


@pytest.mark.slow
async def test_i16_every_reply_is_its_own(redis: Redis) -> None:
    """I16: with random cancellations and time-outs, while others use connections alone."""
    blocked = [asyncio.create_task(redis.blpop(f"list{i}")) for i in range(3)]
    counted = await storm(redis, OPERATIONS, 100)
    assert counted["fine"] > OPERATIONS // 2
    assert counted["cut"] > 0
    for task in blocked:
        task.cancel()
    await asyncio.gather(*blocked, return_exceptions=True)
    assert redis.pool.in_use == 0
    assert await redis.ping()


async def test_i16_with_time_outs_of_the_client_itself(redis_process: RedisProcess) -> None:
    """I16: late replies are dropped, whoever asks next."""
    async with Redis(redis_process.address, pool_size=2, timeout=PATIENCE) as client:
        await client.ping()
        late = fine = 0
        for number in range(300):
            client.timeout = 0.0003 if number % 3 else PATIENCE

            async def ask(number: int) -> int:
                value = b"%d" % number
                try:
                    assert await client.execute("ECHO", value) == value
                except RequestTimeout:
                    return 0
                return 1

            answered = sum(await asyncio.gather(*(ask(10 * number + i) for i in range(10))))
            fine += answered
            late += 10 - answered
        assert fine > 0
        client.timeout = PATIENCE
        assert await client.execute("ECHO", "mine") == b"mine"


# -- bytes -----------------------------------------------------------------------------------


async def test_one_byte_at_a_time() -> None:
    answering = RedisServer().create_protocol()
    asking = Client(("127.0.0.1", 1)).create_protocol()
    memory_pair(asking, answering, to_server=Link(split=1), to_client=Link(split=1))
    await asking.event("connection_made")
    requests = [("SET", "a", "1\r\n"), ("GET", "a"), ("MGET", "a", "b")]
    assert await asyncio.gather(*map(asking.request, requests)) == [
        b"OK",
        b"1\r\n",
        [b"1\r\n", None],
    ]
    assert asking.is_reusable
    await asking.close()
    await answering.event("connection_lost")


def test_i17_a_reply_that_has_begun_is_seen() -> None:
    """I17: even where the parser has nothing left but the knowledge of what is to come."""
    for begun in (b"*1\r\n", b"*2\r\n:1\r\n", b"$", b"$5\r\nab", b"+", b"%1\r\n+a\r\n"):
        replies = RespCodec()
        replies.feed(b"+OK\r\n" + begun)
        assert list(replies) in ([b"OK"], ["OK"])
        assert replies.pending
    replies = RespCodec()
    for byte in b"*1\r\n$3\r\nabc\r\n":
        assert not list(replies)
        replies.feed(bytes([byte]))
    assert list(replies) == [[b"abc"]]
    assert not replies.pending


class Says(ProtocolConsumer):
    """Answers whatever it gets with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self.reply = reply

    def data_received(self, data: bytes) -> None:
        self.write(self.reply if data.count(b"\r\n") > 2 else b"+OK\r\n")
        self.finished()


@asynccontextmanager
async def client_of(reply: bytes) -> AsyncIterator[Redis]:
    factory = partial(Connection, partial(Says, reply))
    async with (
        TcpServer(factory, address=("127.0.0.1", 0)) as bad,
        Client(bad.address, pool_size=1, protocol=2) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"?\r\n", b"\0", b"$x\r\n"]
)
async def test_a_reply_that_is_none_is_a_protocol_error(reply: bytes) -> None:
    async with client_of(reply) as client:
        with pytest.raises(ProtocolError):
            await client.get("key")
        assert client.pool.available == 0


@pytest.mark.parametrize("more", [b"+forged\r\n", b"*1\r\n", b"$5\r\n"])
async def test_i16_bytes_behind_a_reply_end_the_connection(more: bytes) -> None:
    """I16: they would become the next reply."""
    async with client_of(b"$4\r\nmine\r\n" + more) as client:
        assert await client.get("key") == b"mine"
        assert client.pool.available == 0


async def test_a_reply_that_is_cut_fails_its_request_only(redis_process: RedisProcess) -> None:
    async with FaultProxy(redis_process.address) as proxy, Client(proxy.address) as client:
        await client.set("key", "v")
        proxy.cut_after(2, "to_client", once=True)
        with pytest.raises(ConnectionClosed) as error:
            await client.get("key")
        assert error.value.sent
        assert await client.get("key") == b"v"
