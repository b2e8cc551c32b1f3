"""Opening sockets: the order of attempts, the race, its errors, and cancellation anywhere."""

import asyncio
import contextlib
import errno
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pulsar_client.clients import connector
from pulsar_client.clients.connector import open_socket

linux = pytest.mark.skipif(sys.platform != "linux", reason="full queues as Linux has them")

Name = tuple[Any, ...]


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="conn-") as name:
        yield str(Path(name, "s"))


def listen(opened: ExitStack, host: str = "127.0.0.1", backlog: int = 10) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = opened.enter_context(socket.socket(family))
    sock.bind((host, 0))
    sock.listen(backlog)
    return sock


def deaf(opened: ExitStack, host: str = "127.0.0.1") -> Name:
    """Make a listener whose queue is full: a connect to it waits, for seconds at least."""
    sock = listen(opened, host, backlog=0)
    first = opened.enter_context(socket.socket(sock.family))
    first.connect(sock.getsockname())
    name: Name = sock.getsockname()
    return name


def dead(host: str = "127.0.0.1") -> Name:
    """Give a name that nobody listens on, outside of the ephemeral ports."""
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        start = random.randrange(10_000, 30_000)
        for port in range(start, start + 1000):
            sock = stack.enter_context(socket.socket(family))
            with contextlib.suppress(OSError):
                sock.bind((host, port))
                name: Name = sock.getsockname()
                return name
    raise AssertionError("no port is free")


def resolve_to(monkeypatch: pytest.MonkeyPatch, *names: Name) -> list[tuple[Any, Any]]:
    """Make the running loop resolve every host to `names`; gives the list of lookups."""
    lookups: list[tuple[Any, Any]] = []

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
        lookups.append((host, port))
        assert options == {"type": socket.SOCK_STREAM}
        await asyncio.sleep(0)
        families = [socket.AF_INET6 if ":" in name[0] else socket.AF_INET for name in names]
        return [
            (family, socket.SOCK_STREAM, 6, "", name)
            for family, name in zip(families, names, strict=True)
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return lookups


class Timers:
    """Stands in for ``loop.call_later``: nothing is due until the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[tuple[float, Callable[[], None]]] = []
        self.cancelled = 0
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self.call_later)

    def call_later(self, delay: float, callback: Callable[[], None]) -> "Timers":
        self.started.append((delay, callback))
        return self

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Name]:
    """Record the names that sockets are connected to."""
    names: list[Name] = []

    class Recording(socket.socket):
        def connect_ex(self, name: Any, /) -> int:
            names.append(name)
            return super().connect_ex(name)

    monkeypatch.setattr(socket, "socket", Recording)
    return names


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def check_tcp(sock: socket.socket, name: Name) -> None:
    assert sock.getpeername() == name
    assert sock.getblocking() is False
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    assert sock.get_inheritable() is False


# One address


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_literals_are_not_resolved(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    lookups = resolve_to(monkeypatch)
    name = listen(opened, host).getsockname()
    for address in {name, name[:2]}:
        check_tcp(opened.enter_context(await open_socket(address)), name)
    assert lookups == []


async def test_the_socket_serves_a_transport(opened: ExitStack) -> None:
    listener = listen(opened)
    sock = await open_socket(listener.getsockname())
    reader, writer = await asyncio.open_connection(sock=sock)
    peer, _ = listener.accept()
    with peer:
        writer.write(b"question")
        await writer.drain()
        assert peer.recv(100) == b"question"
        peer.sendall(b"answer")
        assert await reader.readexactly(6) == b"answer"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_empty_host_is_this_machine(opened: ExitStack, host: str) -> None:
    name = listen(opened, host).getsockname()
    sock = opened.enter_context(await open_socket(("", name[1])))
    assert sock.getpeername() == name


async def test_refused() -> None:
    host, port = dead()
    with pytest.raises(ConnectionRefusedError) as caught:
        await open_socket((host, port))
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.strerror == f"can't connect to {host}:{port}: Connection refused"


async def test_a_real_lookup(opened: ExitStack) -> None:
    name = listen(opened).getsockname()
    sock = opened.enter_context(await open_socket(("localhost", name[1])))
    check_tcp(sock, name)


async def test_a_connection_to_itself_counts_as_refused() -> None:
    name = dead()
    with pytest.raises(ConnectionRefusedError):
        await open_socket((name[0], name[1]), local_addr=(name[0], name[1]))


# Several addresses


async def test_every_address_is_tried(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, attempts: list[Name]
) -> None:
    name = listen(opened).getsockname()
    others = [dead("::1"), dead("127.0.0.2"), dead("127.0.0.3")]
    lookups = resolve_to(monkeypatch, *others, name)
    timers = Timers(monkeypatch)
    check_tcp(opened.enter_context(await open_socket(("several.example", name[1]))), name)
    assert lookups == [("several.example", name[1])]
    assert attempts == [*others, name]
    # A failure started the next attempt at once, and its timer was stopped.
    assert timers.cancelled == len(timers.started)


async def test_families_take_turns(monkeypatch: pytest.MonkeyPatch, attempts: list[Name]) -> None:
    six = [("::1", dead("::1")[1] + i, 0, 0) for i in range(2)]
    four = [dead("127.0.0.2"), dead("127.0.0.3"), dead("127.0.0.4")]
    # An address that comes twice is tried once.
    resolve_to(monkeypatch, *six, six[0], *four)
    with pytest.raises(ConnectionRefusedError) as caught:
        await open_socket(("several.example", 80))
    assert attempts == [six[0], four[0], six[1], four[1], four[2]]
    assert caught.value.errno == errno.ECONNREFUSED
    text = str(caught.value)
    assert "can't connect to several.example:80: " in text
    for host, port, *_ in six:
        assert f"[{host}]:{port}: Connection refused" in text
    for host, port in four:
        assert f"{host}:{port}: Connection refused" in text


async def test_the_family_of_the_first_address_begins(
    monkeypatch: pytest.MonkeyPatch, attempts: list[Name]
) -> None:
    names = [dead("127.0.0.2"), dead("127.0.0.3"), dead("::1")]
    resolve_to(monkeypatch, *names)
    with pytest.raises(ConnectionRefusedError):
        await open_socket(("several.example", 80))
    assert attempts == [names[0], names[2], names[1]]


@linux
async def test_the_next_address_waits_for_the_delay(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, attempts: list[Name]
) -> None:
    stalling, name = deaf(opened, "::1"), listen(opened).getsockname()
    resolve_to(monkeypatch, stalling, name)
    timers = Timers(monkeypatch)
    task = asyncio.create_task(open_socket(("several.example", 80), happy_eyeballs_delay=0.125))
    await turns(10)
    assert attempts == [stalling]
    [(delay, due)] = timers.started
    assert delay == 0.125
    due()
    assert attempts == [stalling, name]
    check_tcp(opened.enter_context(await task), name)
    assert len(timers.started) == 1


@linux
async def test_the_delay_passes(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    stalling, name = deaf(opened), listen(opened, "::1").getsockname()
    resolve_to(monkeypatch, stalling, name)
    before = descriptors()
    for delay in (0, 0.01):
        sock = await open_socket(("several.example", 80), happy_eyeballs_delay=delay)
        check_tcp(sock, name)
        sock.close()
    # The loser was closed as well.
    assert descriptors() == before


@linux
async def test_without_a_delay_one_follows_the_other(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, attempts: list[Name]
) -> None:
    refusing, stalling, name = dead("127.0.0.2"), deaf(opened, "::1"), listen(opened)
    resolve_to(monkeypatch, refusing, stalling, name.getsockname())
    timers = Timers(monkeypatch)
    task = asyncio.create_task(open_socket(("several.example", 80), happy_eyeballs_delay=None))
    while len(attempts) < 2:
        await asyncio.sleep(0)
    await turns(10)
    assert attempts == [refusing, stalling]
    assert timers.started == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@linux
async def test_a_slow_winner_beats_a_later_failure(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, attempts: list[Name]
) -> None:
    """The last attempt fails while the first is still under way: the race goes on."""
    stalling, refusing = listen(opened, backlog=0), dead("::1")
    with contextlib.closing(socket.socket()) as filler:
        filler.connect(stalling.getsockname())
        resolve_to(monkeypatch, stalling.getsockname(), refusing)
        task = asyncio.create_task(open_socket(("several.example", 80), happy_eyeballs_delay=0))
        while len(attempts) < 2:
            await asyncio.sleep(0)
        await turns(20)
        assert not task.done()
        # There is room now: the system repeats its request after about a second.
        stalling.accept()[0].close()
        sock = opened.enter_context(await task)
        assert sock.getpeername() == stalling.getsockname()


async def test_different_causes_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    six, four = dead("::1"), dead()
    resolve_to(monkeypatch, six, four)
    with pytest.raises(OSError, match=r"can't connect to two\.example:80") as caught:
        await open_socket(("two.example", 80), local_addr=("127.0.0.1", 0))
    assert type(caught.value) is OSError
    assert caught.value.errno is None
    text = str(caught.value)
    assert f"[::1]:{six[1]}: local_addr has no address of this family" in text
    assert f"127.0.0.1:{four[1]}: Connection refused" in text


def test_class_without_a_common_errno() -> None:
    first = BrokenPipeError(errno.EPIPE, "a")
    second = BrokenPipeError(errno.ESHUTDOWN, "b")
    error = connector._connect_error(("h", 1), [("x", first), ("y", second)])
    assert type(error) is BrokenPipeError
    assert error.errno is None
    assert str(error) == "can't connect to h:1: x: a; y: b"


async def test_no_descriptor_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", fail)
        with pytest.raises(OSError, match=r"can't connect to 127\.0\.0\.1:80: Too many") as caught:
            await open_socket(("127.0.0.1", 80))
    assert caught.value.errno == errno.EMFILE


# The resolver


async def test_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    with pytest.raises(socket.gaierror) as caught:
        await open_socket(("nowhere.example", 80))
    assert caught.value.errno == socket.EAI_NONAME
    assert caught.value.strerror == "can't resolve nowhere.example:80: Name or service not known"


async def test_a_name_that_can_not_be_encoded() -> None:
    with pytest.raises(socket.gaierror, match="can't resolve aaaa"):
        await open_socket(("a" * 64 + ".example", 80))


async def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch)
    with pytest.raises(socket.gaierror, match=r"empty\.example:80: it has no address"):
        await open_socket(("empty.example", 80))


# Local addresses


async def test_local_addr(opened: ExitStack) -> None:
    listener = listen(opened)
    _, port = dead("127.0.0.5")
    sock = opened.enter_context(
        await open_socket(listener.getsockname(), local_addr=("127.0.0.5", port))
    )
    assert sock.getsockname() == ("127.0.0.5", port)
    peer, name = listener.accept()
    peer.close()
    assert name == ("127.0.0.5", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_local_addr_of_any_interface(opened: ExitStack, host: str) -> None:
    name = listen(opened, host).getsockname()
    port = dead("::" if ":" in host else "0.0.0.0")[1]
    sock = opened.enter_context(await open_socket(name, local_addr=("", port)))
    assert sock.getsockname()[:2] == (host, port)


async def test_local_addr_of_ipv6_leaves_ipv4_alone(opened: ExitStack) -> None:
    name = listen(opened, "::1").getsockname()
    port = listen(opened, "0.0.0.0").getsockname()[1]
    sock = opened.enter_context(await open_socket(name, local_addr=("::", port)))
    assert sock.getsockname()[:2] == ("::1", port)


async def test_local_addr_in_use(opened: ExitStack) -> None:
    listener = listen(opened)
    taken = listen(opened).getsockname()
    with pytest.raises(OSError, match=rf"can't bind to local_addr 127.0.0.1:{taken[1]}") as caught:
        await open_socket(listener.getsockname(), local_addr=taken)
    assert caught.value.errno == errno.EADDRINUSE


# Unix sockets


async def test_unix(opened: ExitStack, path: str) -> None:
    listener = opened.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen()
    sock = opened.enter_context(await open_socket(f"unix:{path}"))
    assert sock.getblocking() is False
    assert sock.getpeername() == path
    listener.accept()[0].close()


@linux
async def test_abstract_unix(opened: ExitStack) -> None:
    name = f"connector-test-{os.getpid()}"
    listener = opened.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind("\0" + name)
    listener.listen()
    opened.enter_context(await open_socket(f"unix:@{name}"))


@pytest.mark.parametrize("stale", [False, True])
async def test_unix_without_a_listener(path: str, stale: bool) -> None:
    if stale:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
    error = ConnectionRefusedError if stale else FileNotFoundError
    with pytest.raises(error, match=f"can't connect to unix:{path}: ") as caught:
        await open_socket(f"unix:{path}")
    assert caught.value.errno == (errno.ECONNREFUSED if stale else errno.ENOENT)


async def test_unix_path_too_long(path: str) -> None:
    with pytest.raises(OSError, match=r"can't connect to unix:.*too long"):
        await open_socket(f"unix:{path * 20}")


@linux
async def test_unix_waits_for_room_in_a_full_queue(opened: ExitStack, path: str) -> None:
    listener = opened.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen(0)
    first = opened.enter_context(await open_socket(f"unix:{path}"))
    task = asyncio.create_task(open_socket(f"unix:{path}"))
    await turns(10)
    assert not task.done()
    opened.enter_context(listener.accept()[0])
    second = opened.enter_context(await task)
    peer = opened.enter_context(listener.accept()[0])
    second.send(b"second")
    assert peer.recv(100) == b"second"
    assert first.getpeername() == path


# Cancellation


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


async def cancel_after(count: int, operation: Coroutine[Any, Any, socket.socket]) -> bool:
    """Cancel `operation` after `count` turns of the loop; whether that came in time."""
    task = asyncio.create_task(operation)
    await turns(count)
    task.cancel()
    try:
        sock = await task
    except asyncio.CancelledError:
        return True
    sock.close()
    return False


@linux
@pytest.mark.parametrize(
    "scenario", ["literal", "live", "stalling", "stalling and live", "refusing", "local"]
)
async def test_cancelled_after_any_number_of_turns(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, scenario: str
) -> None:
    live = listen(opened, backlog=100).getsockname()
    address: Any = ("several.example", 80)
    options: dict[str, Any] = {"happy_eyeballs_delay": 0}
    if scenario == "literal":
        address = live
    elif scenario == "live":
        resolve_to(monkeypatch, live, listen(opened, "::1", backlog=100).getsockname())
    elif scenario == "stalling":
        resolve_to(monkeypatch, deaf(opened), deaf(opened, "::1"))
    elif scenario == "stalling and live":
        resolve_to(monkeypatch, deaf(opened), deaf(opened, "::1"), live)
    elif scenario == "refusing":
        resolve_to(monkeypatch, dead(), dead("::1"), deaf(opened))
    else:
        resolve_to(monkeypatch, live)
        options["local_addr"] = ("127.0.0.1", 0)
    before = descriptors()
    in_time = []
    for count in range(25):
        in_time.append(await cancel_after(count, open_socket(address, **options)))
        assert descriptors() == before, f"after {count} turns"
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert in_time[0]
    assert in_time[1]
    if "stalling" not in scenario and scenario != "refusing":
        assert not in_time[-1]
    if scenario in ("stalling", "refusing"):
        assert all(in_time)


@linux
async def test_a_cancelled_attempt_is_not_watched_any_more(opened: ExitStack) -> None:
    """Its descriptor may be given to the next socket in the same turn of the loop."""
    loop = asyncio.get_running_loop()
    name = deaf(opened)
    lowest = os.dup(0)
    os.close(lowest)
    task = asyncio.create_task(open_socket((name[0], name[1])))
    await turns(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left, right = socket.socketpair()
    with left, right:
        assert left.fileno() == lowest
        writable = loop.create_future()
        loop.add_writer(left.fileno(), writable.cancel)
        with pytest.raises(asyncio.CancelledError):
            await writable
        loop.remove_writer(left.fileno())


@linux
@pytest.mark.parametrize("turns_before", [0, 1])
async def test_cancelled_after_it_has_won(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, turns_before: int
) -> None:
    """The winner is known, and the cancellation arrives before the task has its turn."""
    loop = asyncio.get_running_loop()
    check = connector._check_connected
    known: list[socket.socket] = []

    def cancel_when_known(sock: socket.socket, number: int) -> None:
        check(sock, number)
        known.append(sock)
        if turns_before:
            loop.call_soon(task.cancel)
        else:
            task.cancel()

    monkeypatch.setattr(connector, "_check_connected", cancel_when_known)
    name = listen(opened).getsockname()
    before = descriptors()
    task = asyncio.create_task(open_socket(name))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(known) == 1
    assert known[0].fileno() == -1
    assert descriptors() == before


@linux
async def test_cancelled_within_a_real_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    gate: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lambda *a, **kw: gate)
    before = descriptors()
    assert await cancel_after(5, open_socket(("slow.example", 80)))
    assert gate.cancelled()
    assert descriptors() == before


@linux
async def test_cancelled_while_a_unix_queue_is_full(opened: ExitStack, path: str) -> None:
    listener = opened.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen(0)
    opened.enter_context(await open_socket(f"unix:{path}"))
    before = descriptors()
    for count in range(1, 5):
        assert await cancel_after(count, open_socket(f"unix:{path}"))
        assert descriptors() == before


@linux
async def test_the_deadline_of_the_caller(opened: ExitStack) -> None:
    name = deaf(opened)
    before = descriptors()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await open_socket((name[0], name[1]))
    assert descriptors() == before


# Arguments


@pytest.mark.parametrize(
    ("address", "options", "error", "named"),
    [
        (None, {}, TypeError, "address .*None"),
        ("localhost:80", {}, ValueError, "'localhost:80'"),
        (("h", 65536), {}, ValueError, "65536"),
        (("h", 80), {"local_addr": "h"}, TypeError, "local_addr .*'h'"),
        (("h", 80), {"local_addr": ("h", -1)}, ValueError, "-1"),
        ("unix:/x", {"local_addr": ("h", 1)}, ValueError, r"local_addr .*\('h', 1\)"),
        (("h", 80), {"happy_eyeballs_delay": -1}, ValueError, "happy_eyeballs_delay .*-1"),
        (("h", 80), {"happy_eyeballs_delay": float("nan")}, ValueError, "nan"),
        (("h", 80), {"happy_eyeballs_delay": "1"}, TypeError, "happy_eyeballs_delay .*'1'"),
        (("h", 80), {"happy_eyeballs_delay": True}, TypeError, "True"),
    ],
)
async def test_bad_arguments(
    address: Any, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        await open_socket(address, **options)
