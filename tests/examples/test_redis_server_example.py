"""The Redis-like server: its decoder, its commands, bad clients, and real clients at it."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from real_servers import required

from examples.redis_server import RedisServer
from examples.redis_server.commands import MAX_QUEUED
from examples.redis_server.decoder import MAX_LINE, CommandDecoder
from examples.redis_server.server import JOINED, MAX_UNREAD, RedisConnection
from examples.redis_server.store import Store
from pulsar_client import MessageTooLarge, ProtocolError

ROOT = Path(__file__).resolve().parents[2]


def packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


# -- the decoder -----------------------------------------------------------------------------

STREAM = (
    packed(b"SET", b"key", b"va\r\nlue")
    + b"PING\r\n\r\n  get  key \n*0\r\n*-1\r\n"
    + packed(b"", b"\0" * 300)
    + packed(b"GET", b"key")
)
COMMANDS = [
    [b"SET", b"key", b"va\r\nlue"],
    [b"PING"],
    [b"get", b"key"],
    [b"", b"\0" * 300],
    [b"GET", b"key"],
]


def all_of(decoder: CommandDecoder) -> list[list[bytes]]:
    found = []
    while (words := decoder.next_command()) is not None:
        found.append(words)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1000])
def test_commands_are_found_however_they_are_cut(size: int) -> None:
    decoder = CommandDecoder()
    found = []
    for start in range(0, len(STREAM), size):
        decoder.feed(STREAM[start : start + size])
        found += all_of(decoder)
        assert decoder.pending <= len(STREAM)
    assert found == COMMANDS
    assert decoder.pending == 0


def test_two_pieces_cut_anywhere() -> None:
    for cut in range(len(STREAM)):
        decoder = CommandDecoder()
        decoder.feed(STREAM[:cut])
        found = all_of(decoder)
        complete = STREAM[:cut]
        decoder.feed(STREAM[cut:])
        assert found + all_of(decoder) == COMMANDS, complete
        assert decoder.pending == 0


def test_half_a_command_is_pending_even_if_no_byte_of_it_is_left() -> None:
    decoder = CommandDecoder()
    decoder.feed(b"*2\r\n")
    assert decoder.next_command() is None
    assert decoder.pending


def test_what_is_held_is_known_without_looking_at_every_piece() -> None:
    """Else a value that comes in single bytes costs the square of their number."""

    class Pieces(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("every piece is looked at")

    decoder = CommandDecoder()
    decoder.feed(b"*1\r\n$1000\r\n")
    assert decoder.next_command() is None
    decoder._chunks = Pieces()
    for n in range(100):
        decoder.feed(b"x")
        assert decoder.next_command() is None
        assert decoder.pending == n + 1


@pytest.mark.parametrize(
    "bad",
    [
        b"*x\r\n",
        b"*\r\n",
        b"*1048577\r\n",
        b"*99999999999999999999999\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$x\r\n",
        b"*1\r\n$1\r\nabc",
        b"x" * MAX_LINE,
        b"*1\r\n" + b"$" * MAX_LINE,
    ],
)
def test_garbage_is_a_protocol_error(bad: bytes) -> None:
    decoder = CommandDecoder()
    decoder.feed(bad)
    with pytest.raises(ProtocolError):
        decoder.next_command()


@pytest.mark.parametrize("bad", [b"*1\r\n$101\r\n", packed(b"a" * 50, b"b" * 51)])
def test_a_command_that_is_too_large_is_refused_as_soon_as_it_is_known(bad: bytes) -> None:
    decoder = CommandDecoder(max_size=100)
    decoder.feed(bad)
    with pytest.raises(MessageTooLarge, match="at most 100 bytes"):
        decoder.next_command()


# -- the store -------------------------------------------------------------------------------


def test_values_live_as_long_as_they_were_given() -> None:
    now = 10.0
    store = Store(lambda: now, 10_000)
    store.set(b"a", b"1", 2.0)
    store.set(b"b", b"1", 2.0)
    assert store.add(b"a", 1) == 2
    assert store.seconds_left(b"a") == 2.0
    now = 12.0
    assert store.get(b"a") is None
    assert len(store) == 0
    assert store.used == 0
    store.set(b"a", b"1", 2.0)
    store.set(b"a", b"1")  # for ever
    now = 20.0
    assert store.get(b"a") == b"1"
    assert store.expire(b"a", 1)
    assert not store.expire(b"none", 1)
    now = 21.0
    assert store.get(b"a") is None


def test_what_has_expired_makes_room() -> None:
    now = 10.0
    store = Store(lambda: now, 1000)
    store.set(b"old", b"x" * 700, 1.0)
    with pytest.raises(Exception, match=r"^OOM "):
        store.set(b"new", b"x" * 700)
    store.set(b"old", b"y" * 700, 1.0)  # it takes the place of itself
    now = 11.0
    store.set(b"new", b"x" * 700)
    assert store.get(b"old") is None


# -- commands --------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer(max_memory=2_000_000) as running:
        running.store.clock = lambda: 1000.0  # it stands still: times to live are exact
        yield running


async def exchange(server: RedisServer, *pieces: bytes) -> bytes:
    """Send bytes and the end; return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        for piece in pieces:
            writer.write(piece)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


HELLO3 = b"HELLO 3\r\n"


async def replies(server: RedisServer, text: str, *, protocol: int = 2) -> str:
    """What a few typed lines are answered."""
    sent = text.replace("; ", "\r\n").encode() + b"\r\n"
    if protocol == 2:
        return (await exchange(server, sent)).decode()
    greeting = await exchange(server, HELLO3 + b"ECHO end\r\n")
    answer = await exchange(server, HELLO3 + b"ECHO end\r\n" + sent)
    end = b"$3\r\nend\r\n"
    assert greeting.endswith(end)
    return answer.partition(end)[2].decode()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("PING; PING hi; ECHO hi", "+PONG|$2|hi|$2|hi|"),
        ("GET a; SET a 1; get a", "$-1|+OK|$1|1|"),
        ("SET a 1 NX; SET a 2 NX; SET b 1 XX; GET a; GET b", "+OK|$-1|$-1|$1|1|$-1|"),
        ("SET a 1 XX; SET a 1; SET a 2 xx; GET a", "$-1|+OK|+OK|$1|2|"),
        ("SET a 1 EX 100; TTL a; SET a 1; TTL a; TTL b", "+OK|:100|+OK|:-1|:-2|"),
        ("SET a 1 PX 2500; TTL a; INCR a; TTL a", "+OK|:3|:2|:3|"),
        ("SET a 1; EXPIRE a 100; TTL a; EXPIRE b 1", "+OK|:1|:100|:0|"),
        ("SET a 1; EXPIRE a -1; GET a", "+OK|:1|$-1|"),
        ("INCR a; INCRBY a -5; GET a", ":1|:-4|$2|-4|"),
        ("SET a x; INCR a", "+OK|-ERR value is not an integer or out of range|"),
        (
            "INCRBY a 9223372036854775807; INCR a",
            ":9223372036854775807|-ERR increment or decrement would overflow|",
        ),
        ("MSET a 1 b 2; MGET a none b; DEL a b c; DBSIZE", "+OK|*3|$1|1|$-1|$1|2|:2|:0|"),
        ("SET a 1; EXISTS a a b; FLUSHALL; EXISTS a", "+OK|:2|+OK|:0|"),
        ("SELECT 0; SELECT 1", "+OK|-ERR DB index is out of range|"),
        (
            "CLIENT SETNAME me; CLIENT GETNAME; CLIENT SETINFO LIB-NAME x; CLIENT KILL",
            "+OK|$2|me|+OK|-ERR unknown subcommand of 'client', or wrong number of its arguments|",
        ),
        (
            "CONFIG GET save nothing; CONFIG SET a b",
            "*2|$4|save|$0||-ERR this server has no configuration but its command line|",
        ),
        ("QUIT; PING", "+OK|"),
        (
            "AUTH x; HELLO 4",
            "-ERR AUTH called without any password configured for the default user.|-NOPROTO "
            "unsupported protocol version|",
        ),
        # transactions
        ("MULTI; SET a 1; INCR a; GET b; EXEC", "+OK|+QUEUED|+QUEUED|+QUEUED|*3|+OK|:2|$-1|"),
        ("MULTI; SET a 1; DISCARD; GET a", "+OK|+QUEUED|+OK|$-1|"),
        (
            "MULTI; SET a 1; NONSENSE; EXEC; GET a",
            "+OK|+QUEUED|-ERR unknown command 'NONSENSE'|-EXECABORT Transaction discarded "
            "because of previous errors.|$-1|",
        ),
        (
            "MULTI; SET a x; INCR a; SET b 1; EXEC",
            "+OK|+QUEUED|+QUEUED|+QUEUED|*3|+OK|-ERR value is not an integer or out of range|+OK|",
        ),
        (
            "MULTI; MULTI; SUBSCRIBE a; EXEC",
            "+OK|-ERR MULTI calls can not be nested|-ERR Command not allowed inside a "
            "transaction|-EXECABORT Transaction discarded because of previous errors.|",
        ),
        ("EXEC; DISCARD", "-ERR EXEC without MULTI|-ERR DISCARD without MULTI|"),
        # channels
        (
            "SUBSCRIBE a b; GET a; PING; UNSUBSCRIBE a; UNSUBSCRIBE; GET a",
            "*3|$9|subscribe|$1|a|:1|*3|$9|subscribe|$1|b|:2|-ERR Can't execute 'get': only "
            "(UN)SUBSCRIBE / PING / QUIT are allowed in this context|*2|$4|pong|$0||*3|$11|"
            "unsubscribe|$1|a|:1|*3|$11|unsubscribe|$1|b|:0|$-1|",
        ),
        ("UNSUBSCRIBE; PUBLISH a m", "*3|$11|unsubscribe|$-1|:0|:0|"),
    ],
)
async def test_commands(server: RedisServer, typed: str, expected: str) -> None:
    """The line ends of what is expected are written as bars."""
    assert await replies(server, typed) == expected.replace("|", "\r\n")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("GET a; SET a 1 XX; MGET a", "_|_|*1|_|"),
        ("CONFIG GET save", "%1|$4|save|$0||"),
        ("SUBSCRIBE a; GET b; PUBLISH a m", ">3|$9|subscribe|$1|a|:1|_|"),
        ("UNSUBSCRIBE", ">3|$11|unsubscribe|_|:0|"),
    ],
)
async def test_commands_of_resp3(server: RedisServer, typed: str, expected: str) -> None:
    assert (await replies(server, typed, protocol=3)).startswith(expected.replace("|", "\r\n"))


@pytest.mark.parametrize(
    "typed",
    ["GET", "GET a b", "SET a", "SET a 1 EX", "SET a 1 EX 0", "SET a 1 EX x", "SET a 1 EX 1 PX 1",
     "SET a 1 NX XX", "SET a 1 KEEPTTL", "MSET a", "MSET a 1 b", "INCRBY a 1.5", "INCRBY a 1e3",
     "EXPIRE a 99999999999999999999", "SELECT x", "HELLO x", "HELLO 3 AUTH x", "NONSENSE"],
)  # fmt: skip
async def test_wrong_use_gets_one_error_and_the_connection_goes_on(
    server: RedisServer, typed: str
) -> None:
    answer = await replies(server, f"{typed}; PING")
    assert answer.startswith("-")
    assert answer.count("\r\n") == 2
    assert answer.endswith("\r\n+PONG\r\n")
    assert len(server.store) == 0


async def test_an_error_is_one_line_whatever_it_quotes(server: RedisServer) -> None:
    answer = await exchange(server, packed(b"evil\r\n+OK\xff\0"), packed(b"PING"))
    assert answer.count(b"\r\n") == 2
    assert answer.startswith(b"-ERR unknown command")


@pytest.mark.parametrize("text", ["1_0", "+5", "05", "-0", "1.0", "--1", "9223372036854775808"])
async def test_what_is_no_number(server: RedisServer, text: str) -> None:
    error = "-ERR value is not an integer or out of range\r\n"
    answer = await replies(server, f"SET n {text}; INCR n; INCRBY m {text}; GET m")
    assert answer == f"+OK\r\n{error}{error}$-1\r\n"


async def test_an_empty_value_is_no_number(server: RedisServer) -> None:
    answer = await exchange(server, packed(b"SET", b"n", b"") + packed(b"INCR", b"n"))
    assert answer == b"+OK\r\n-ERR value is not an integer or out of range\r\n"


async def test_who_publishes_to_itself_gets_it_behind_the_replies_before(
    server: RedisServer,
) -> None:
    answer = await replies(server, "SUBSCRIBE a; PUBLISH a x; PING", protocol=3)
    assert answer.replace("\r\n", "|") == (
        ">3|$9|subscribe|$1|a|:1|>3|$7|message|$1|a|$1|x|:1|+PONG|"
    )


async def test_pieces_and_pipelines(server: RedisServer) -> None:
    """One byte at a time, and everything at once: the same answers in the same order."""
    commands = b"".join(packed(b"INCR", b"n") + packed(b"ECHO", b"%d" % i) for i in range(30))
    expected = b"".join(b":%d\r\n$%d\r\n%d\r\n" % (i + 1, len(str(i)), i) for i in range(30))
    assert await exchange(server, commands) == expected
    await exchange(server, packed(b"FLUSHALL"))
    reader, writer = await asyncio.open_connection(*server.address)
    for byte in commands:
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await reader.readexactly(len(expected)) == expected
    writer.close()
    await writer.wait_closed()


async def test_a_password_is_asked_for() -> None:
    async with RedisServer(password="påss") as server:
        ask = "-NOAUTH Authentication required.\r\n"
        wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n"
        assert await replies(server, "PING; GET a; MULTI") == ask * 3
        assert await replies(server, "AUTH no; AUTH you påss; PING") == wrong * 2 + ask
        assert await replies(server, "AUTH påss; PING") == "+OK\r\n+PONG\r\n"
        assert await replies(server, "AUTH default påss; PING") == "+OK\r\n+PONG\r\n"
        assert (await replies(server, "HELLO 3; PING")).startswith("-NOAUTH HELLO")
        answer = await replies(server, "HELLO 3 AUTH default påss SETNAME me; CLIENT GETNAME")
        assert answer.startswith("%7\r\n")
        assert answer.endswith("$2\r\nme\r\n")
        assert (await replies(server, "HELLO 3 AUTH default no; PING")) == wrong + ask


async def test_memory_is_limited(server: RedisServer) -> None:
    value = b"x" * 1_500_000
    answer = await exchange(
        server, packed(b"SET", b"a", value), packed(b"SET", b"b", value), packed(b"GET", b"a")
    )
    assert answer.startswith(b"+OK\r\n-OOM ")
    assert answer.endswith(value + b"\r\n")
    assert server.store.used < 2_000_000


async def test_a_transaction_is_limited(server: RedisServer) -> None:
    many = packed(b"PING") * (MAX_QUEUED + 1)
    answer = await exchange(server, packed(b"MULTI"), many, packed(b"EXEC"), packed(b"PING"))
    assert answer.endswith(
        b"-ERR a transaction has at most 10000 commands\r\n"
        b"-EXECABORT Transaction discarded because of previous errors.\r\n+PONG\r\n"
    )


# -- bad clients -----------------------------------------------------------------------------


async def test_garbage_gets_one_error_and_the_end(server: RedisServer) -> None:
    answer = await exchange(server, packed(b"PING") + b"*1\r\n+hello\r\n" + packed(b"PING"))
    assert answer == b"+PONG\r\n-ERR Protocol error: expected '$', got b'+'\r\n"


async def test_half_a_command_is_not_carried_out(server: RedisServer) -> None:
    assert (
        await exchange(server, packed(b"PING") + packed(b"SET", b"a", b"b")[:-2]) == b"+PONG\r\n"
    )
    assert len(server.store) == 0


async def test_p25_a_client_that_does_not_read_is_not_answered(server: RedisServer) -> None:
    """P25: the replies of a thousand commands in one piece wait for their reader."""
    value = b"x" * 100_000
    await exchange(server, packed(b"SET", b"a", value))
    connections: list[RedisConnection] = []
    server.bind_event("connection_made", lambda made, exc=None: connections.append(made))
    reader, writer = await asyncio.open_connection(*server.address, limit=1000)
    writer.write(packed(b"GET", b"a") * 1000)
    await writer.drain()
    while not (connections and connections[0].transport.get_write_buffer_size()):
        await asyncio.sleep(0)
    most = 0
    for _ in range(100):
        await asyncio.sleep(0)
        most = max(most, connections[0].transport.get_write_buffer_size())
    assert most <= 2 * JOINED + len(value) + 100
    # ... and then it gets all of them, and the next command as well.
    writer.write(packed(b"PING"))
    reply = b"$100000\r\n%s\r\n" % value
    for _ in range(1000):
        assert await reader.readexactly(len(reply)) == reply
    assert await reader.readexactly(7) == b"+PONG\r\n"
    writer.close()
    await writer.wait_closed()


async def test_a_listener_who_does_not_read_is_cut_off(server: RedisServer) -> None:
    connections: list[RedisConnection] = []
    server.bind_event("connection_made", lambda made, exc=None: connections.append(made))
    reader, writer = await asyncio.open_connection(*server.address, limit=1000)
    writer.write(packed(b"SUBSCRIBE", b"news"))
    await reader.readuntil(b":1\r\n")
    listener = connections[0]
    message = packed(b"PUBLISH", b"news", b"x" * 1_000_000)
    for _ in range(2 + MAX_UNREAD // 1_000_000 + 8):
        if (await exchange(server, message)) == b":0\r\n":
            break
    else:
        pytest.fail("the listener was not cut off")
    await listener.close()
    assert server.store.channels == {}
    writer.transport.abort()


async def test_messages_reach_those_who_listen(server: RedisServer) -> None:
    two, three = [await asyncio.open_connection(*server.address) for _ in range(2)]
    two[1].write(packed(b"SUBSCRIBE", b"news"))
    three[1].write(packed(b"HELLO", b"3") + packed(b"SUBSCRIBE", b"news", b"more"))
    for reader, _ in (two, three):
        await reader.readuntil(b"news\r\n:1\r\n")
    assert await replies(server, "PUBLISH news hello; PUBLISH else hello") == ":2\r\n:0\r\n"
    body = b"$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n"
    assert await two[0].readuntil(b"hello\r\n") == b"*3\r\n" + body
    assert (await three[0].readuntil(b"hello\r\n")).endswith(b">3\r\n" + body)
    for _, writer in (two, three):
        writer.close()
        await writer.wait_closed()
    while server.store.channels:
        await asyncio.sleep(0)


async def test_the_server_closes_while_clients_are_idle_listening_and_half_way(
    server: RedisServer,
) -> None:
    sent = (b"PING\r\n", packed(b"SUBSCRIBE", b"news"), b"PING\r\n*1\r\n")
    pairs = [await asyncio.open_connection(*server.address) for _ in sent]
    for (reader, writer), text in zip(pairs, sent, strict=True):
        writer.write(text)
        await reader.readline()
    await server.close(grace=0.05)
    for _, writer in pairs:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass  # the one half way was cut


# -- real clients ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    """The server in a process of its own, as a user starts it."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "examples.redis_server", "--port", "0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        try:
            assert line.startswith("listening on tcp://127.0.0.1:"), line
            yield line.rpartition(":")[2].strip()
            process.send_signal(2)
            assert process.stderr.read() == ""
            assert process.wait(20) == 0
        finally:
            process.kill()


def output(*command: str, typed: str = "") -> str:
    done = subprocess.run(
        [required(command[0]), *command[1:]],
        input=typed,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("protocol", ["-2", "-3"])
def test_redis_cli(port: str, protocol: str) -> None:
    typed = "FLUSHALL\nSET a 1 EX 100\nINCR a\nTTL a\nMULTI\nGET a\nGET b\nEXEC\nNONSENSE\nDEL a\n"
    found = output("redis-cli", protocol, "-p", port, typed=typed).split("\n")
    assert 40 < int(found.pop(3)) <= 100
    assert found[:9] == [
        *("OK", "OK", "2", "OK", "QUEUED", "QUEUED", "2", ""),
        "ERR unknown command 'NONSENSE'",
    ]


@pytest.mark.parametrize("pipeline", ["1", "16"])
def test_redis_benchmark(port: str, pipeline: str) -> None:
    found = output(
        "redis-benchmark", "-p", port, "-n", "2000", "-P", pipeline, "--csv",
        "-t", "ping,set,get,incr,mset",
    )  # fmt: skip
    for name in ("PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)"):
        assert f'"{name}","' in found


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(port: str, protocol: int) -> None:
    redis = pytest.importorskip("redis", reason="redis is not installed")
    with redis.Redis(port=int(port), protocol=protocol, socket_timeout=20) as client:
        client.flushall()
        assert client.set("a", "1", ex=100, nx=True) is True
        assert client.set("a", "1", nx=True) is None
        assert client.incr("a", 2) == 3
        assert client.mget("a", "b") == [b"3", None]
        assert 40 < client.ttl("a") <= 100
        with client.pipeline() as pipe:
            assert pipe.incr("a").delete("a").get("a").execute() == [4, 1, None]
        with pytest.raises(redis.ResponseError, match="unknown command 'LPUSH'"):
            client.lpush("list", 1)
        with client.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe("news")
            assert channel.get_message(timeout=20) is None  # the subscription's own
            assert client.publish("news", "hello") == 1
            message = channel.get_message(timeout=20)
            assert message is not None
            assert message["data"] == b"hello"


def test_wrong_use_of_the_command() -> None:
    for arguments in (["--port", "x"], ["--port", "70000"], ["--password-file", "/none"]):
        done = subprocess.run(
            [sys.executable, "-m", "examples.redis_server", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("usage: python -m examples.redis_server ")


def test_an_address_in_use(port: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.redis_server", "--port", port],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("can't serve: ")
