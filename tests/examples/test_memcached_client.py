"""The memcached client: at a real memcached, and at servers that misbehave."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from real_servers import MemcachedProcess

from examples.memcached_client import Memcached, MemcachedError
from examples.memcached_client.protocol import Command
from pulsar_client import (
    Connection,
    ConnectionClosed,
    MessageTooLarge,
    PoolUnavailable,
    ProtocolConsumer,
    ProtocolError,
    RequestTimeout,
    TcpServer,
)
from pulsar_client.testing import FaultProxy, Link, memory_pair

OPERATIONS = 100_000 if os.environ.get("PULSAR_CLIENT_LONG") == "1" else 4_000


@pytest.fixture(scope="module")
def memcached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemcachedProcess]:
    with MemcachedProcess(tmp_path_factory.mktemp("memcached"), "-I", "2m") as server:
        yield server


@pytest.fixture
async def cache(memcached: MemcachedProcess) -> AsyncIterator[Memcached]:
    async with Memcached(memcached.address, pool_size=4, timeout=20.0) as cache:
        await cache.flush_all()
        yield cache


# -- commands --------------------------------------------------------------------------------

VALUES = [
    b"",
    b"v",
    b"two\r\nlines",
    b"END\r\n",
    b"VALUE k 0 1\r\nx\r\nEND\r\n",
    bytes(range(256)),
    b"\r\n",
    b"x" * 1_000_000,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value[:12]))
async def test_what_is_set_is_got_byte_by_byte_the_same(cache: Memcached, value: bytes) -> None:
    assert await cache.get("key") is None
    assert await cache.set("key", value) is True
    assert await cache.get("key") == value
    assert await cache.get(b"key") == value


async def test_str_is_sent_as_utf8(cache: Memcached) -> None:
    assert await cache.set("ключ", "значение")
    assert await cache.get("ключ".encode()) == "значение".encode()


async def test_add_and_replace(cache: Memcached) -> None:
    assert await cache.replace("key", b"1") is False
    assert await cache.add("key", b"2") is True
    assert await cache.add("key", b"3") is False
    assert await cache.replace("key", b"4") is True
    assert await cache.get("key") == b"4"


async def test_cas_stores_only_what_nobody_has_changed(cache: Memcached) -> None:
    assert await cache.cas("key", b"1", 1) is None
    assert await cache.gets("key") is None
    await cache.set("key", b"1")
    item = await cache.gets("key")
    assert item is not None
    assert item.value == b"1"
    assert await cache.cas("key", b"2", item.cas) is True
    assert await cache.cas("key", b"3", item.cas) is False
    assert await cache.get("key") == b"2"


async def test_tasks_share_a_connection(cache: Memcached) -> None:
    await asyncio.gather(*(cache.set(f"key{i}", str(i)) for i in range(50)))
    found = await asyncio.gather(*(cache.get(f"key{i}") for i in range(50)))
    assert found == [b"%d" % i for i in range(50)]
    assert cache.pool.stats().opened == 1


async def test_many_at_once(cache: Memcached) -> None:
    keys = [f"key{i}" for i in range(350)]
    await asyncio.gather(*(cache.set(key, key) for key in keys[::2]))
    assert await cache.get_many(keys) == {key: key.encode() for key in keys[::2]}
    assert await cache.get_many([b"key0", b"none"]) == {b"key0": b"key0"}
    assert await cache.get_many([]) == {}


async def test_counting(cache: Memcached) -> None:
    assert await cache.incr("n") is None
    assert await cache.decr("n") is None
    await cache.set("n", "10")
    assert await cache.incr("n") == 11
    assert await cache.incr("n", 2**63) == 2**63 + 11
    assert await cache.decr("n", 2**64 - 1) == 0
    await cache.set("n", "eleven")
    with pytest.raises(MemcachedError, match="non-numeric"):
        await cache.incr("n")
    assert await cache.get("n") == b"eleven"


async def test_delete_and_touch(cache: Memcached) -> None:
    assert await cache.delete("key") is False
    assert await cache.touch("key", 100) is False
    await cache.set("key", b"1", expire=0.5)  # up to a second: nothing is forgotten too early
    assert await cache.touch("key", 100) is True
    assert await cache.delete("key") is True
    assert await cache.get("key") is None


async def test_thirty_days_and_more_are_no_date(cache: Memcached) -> None:
    await cache.set("key", b"1", expire=31 * 24 * 3600)
    assert await cache.get("key") == b"1"


async def test_the_server_tells_of_itself(cache: Memcached, memcached: MemcachedProcess) -> None:
    assert memcached.process is not None
    stats = await cache.stats()
    assert stats["pid"] == str(memcached.process.pid)
    assert stats["version"] == await cache.version()
    assert (await cache.stats("settings"))["item_size_max"] == str(2 * 1024 * 1024)
    assert await cache.stats("reset") == {}
    assert cache.pool.stats().closed == 0


# -- what is refused -------------------------------------------------------------------------

BAD_KEYS = ["", "two words", "new\r\nline", "tab\t", "nul\0", "del\x7f", "k" * 251, "я" * 126]


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_a_bad_key_is_not_sent(key: str) -> None:
    async with Memcached(("127.0.0.1", 1)) as cache:
        for call in (
            cache.get(key),
            cache.gets(key.encode()),
            cache.get_many(["fine", key]),
            cache.set(key, b"v"),
            cache.delete(key),
            cache.incr(key),
            cache.touch(key, 1),
        ):
            with pytest.raises(ValueError, match="a key has 1 to 250 bytes"):
                await call


async def test_other_bad_arguments_are_named() -> None:
    wrong: Any = 17
    async with Memcached(("127.0.0.1", 1)) as cache:
        with pytest.raises(TypeError, match="not 17"):
            await cache.get(wrong)
        with pytest.raises(TypeError, match="not 17"):
            await cache.set("key", wrong)
        for expire in (-1, float("nan"), float("inf"), 2**31):
            with pytest.raises(ValueError, match="expire is "):
                await cache.set("key", b"", expire)
        for amount in (-1, 2**64, True, 1.5):
            with pytest.raises(ValueError, match="amount is "):
                await cache.incr("key", amount)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="token is -1"):
            await cache.cas("key", b"", -1)


async def test_i16_a_value_that_is_too_large_is_an_error_and_never_a_wrong_reply(
    cache: Memcached,
) -> None:
    """I16: what follows on the same connection is its own reply."""
    evil = b"get secret\r\n" * 250_000  # would be commands if the server took them for some
    await cache.set("secret", b"secret")
    await cache.set("mine", b"mine")

    async def store() -> None:
        with pytest.raises(MemcachedError, match="too large"):
            await cache.set("big", evil)

    async def read() -> None:
        for _ in range(20):
            assert await cache.get("mine") == b"mine"
            assert await cache.get("none") is None

    await asyncio.gather(*(store() for _ in range(3)), *(read() for _ in range(8)))
    assert await cache.get("big") is None


# -- many tasks, and what goes wrong ---------------------------------------------------------


async def test_i16_every_reply_is_its_own(cache: Memcached) -> None:
    """I16: with cancellations and time-outs at random."""
    rng = random.Random(11)
    numbers = iter(range(OPERATIONS))
    counted = {"fine": 0, "cut": 0}

    async def work(name: int) -> None:
        for number in numbers:
            key, value = f"key{name}.{number % 7}", b"%d.%d" % (name, number)
            try:
                async with asyncio.timeout(rng.choice([None, None, None, 0.0, 0.0005, 0.002])):
                    await cache.set(key, value)
            except TimeoutError:
                counted["cut"] += 1
                continue
            assert await cache.get(key) == value
            counted["fine"] += 1

    await asyncio.gather(*(work(name) for name in range(50)))
    assert counted["fine"] > OPERATIONS // 4
    assert counted["cut"] > 0
    assert cache.pool.in_use == 0


async def until_it_answers(cache: Memcached) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await cache.version()
            except PoolUnavailable:
                await asyncio.sleep(0.01)  # the pool waits before it tries again
            else:
                return


async def test_i22_the_client_goes_on_after_a_restart(tmp_path: Path) -> None:
    with MemcachedProcess(tmp_path) as server:
        async with Memcached(server.address, pool_size=3, timeout=20.0) as cache:
            await asyncio.gather(*(cache.set(f"key{i}", b"1") for i in range(10)))
            server.stop()
            with pytest.raises(PoolUnavailable) as error:
                await until_it_fails(cache)
            assert isinstance(error.value.__cause__, OSError)
            server.start()
            await until_it_answers(cache)
            assert await cache.get("key1") is None


async def until_it_fails(cache: Memcached) -> None:
    """Ask until no connection is left whose end the loop has not seen yet."""
    for _ in range(5):
        try:
            await cache.get("key1")
        except ConnectionClosed:
            pass


async def test_a_reply_that_does_not_come(memcached: MemcachedProcess) -> None:
    async with (
        FaultProxy(memcached.address) as proxy,
        Memcached(proxy.address, pool_size=1, timeout=20.0) as cache,
    ):
        assert await cache.get("none") is None  # connected, however long that took
        cache.timeout = 0.2
        proxy.stall("to_client")
        with pytest.raises(RequestTimeout):
            await cache.set("key", b"late")
        proxy.resume()
        cache.timeout = 20.0
        assert await cache.get("none") is None


async def test_one_byte_at_a_time() -> None:
    class Canned(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            if data.endswith(b"\n"):
                self.write(b"VALUE a 0 6 7\r\nv\r\nEND\r\nVALUE b 1 0 8\r\n\r\nEND\r\n")
                self.finished()

    asking = Memcached(("127.0.0.1", 1)).create_protocol()
    answering = TcpServer(partial(Connection, Canned)).create_protocol()
    memory_pair(asking, answering, to_server=Link(), to_client=Link(split=1))
    await asking.event("connection_made")
    items = await asking.request(Command(b"gets a b"))
    assert items == {b"a": (b"v\r\nEND", 7), b"b": (b"", 8)}
    assert asking.is_reusable
    await asking.close()
    await answering.event("connection_lost")


class Says(ProtocolConsumer):
    """Answers whatever it gets with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self.reply = reply

    def data_received(self, data: bytes) -> None:
        self.write(self.reply)
        self.finished()


@asynccontextmanager
async def cache_of(reply: bytes) -> AsyncIterator[Memcached]:
    factory = partial(Connection, partial(Says, reply))
    async with (
        TcpServer(factory, address=("127.0.0.1", 0)) as bad,
        Memcached(bad.address, pool_size=1) as cache,
    ):
        yield cache


@pytest.mark.parametrize(
    "reply",
    [
        b"\r\n",
        b"STORED\r\n",
        b"OK\r\n",
        b"STAT a 1\r\nEND\r\n",
        b"VALUE other 0 1\r\nx\r\nEND\r\n",
        b"VALUE key 0 1\r\nxx\r\nEND\r\n",
        b"VALUE key 0 -1\r\n\r\nEND\r\n",
        b"VALUE key 0 x\r\n\r\nEND\r\n",
        b"VALUE key 0\r\nEND\r\n",
        b"VALUE key 0 1\r\nx\r\nVALUE key 0 1\r\nx\r\nEND\r\n",
        b"x" * 5000,
    ],
)
async def test_a_reply_that_is_none_is_a_protocol_error(reply: bytes) -> None:
    async with cache_of(reply) as cache:
        with pytest.raises(ProtocolError):
            await cache.get("key")
        assert cache.pool.available == 0


async def test_a_value_that_is_too_large_to_take() -> None:
    async with cache_of(b"VALUE key 0 99999999999\r\n") as cache:
        with pytest.raises(MessageTooLarge, match="99999999999 bytes"):
            await cache.get("key")
        assert cache.pool.available == 0


@pytest.mark.parametrize("reply", [b"ERROR\r\n", b"CLIENT_ERROR bad data chunk\r\n"])
async def test_an_error_after_which_the_value_may_be_taken_for_commands_ends_the_connection(
    reply: bytes,
) -> None:
    async with cache_of(reply) as cache:
        with pytest.raises(MemcachedError):
            await cache.set("key", b"get secret\r\n")
        assert cache.pool.available == 0
        with pytest.raises(MemcachedError):
            await cache.delete("key")  # without a value: nothing to take for commands
        assert cache.pool.available == 1
