"""Binding: which sockets there are, on which ports, and what is left after a failure."""

import errno
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pulsar_client.servers import listening_sockets
from pulsar_client.servers.listening_sockets import (
    bind_listening_sockets,
    remove_socket_file,
    socket_file_inode,
)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's list of descriptors")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="sock-") as name:
        yield str(Path(name, "s"))


def bind(opened: ExitStack, address: Any, **options: Any) -> list[socket.socket]:
    return [opened.enter_context(s) for s in bind_listening_sockets(address, **options)]


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def names(*addresses: str) -> Any:
    """Make a resolver that gives `addresses` for every name."""

    def getaddrinfo(host: Any, port: int, *args: Any, **kw: Any) -> list[Any]:
        found: list[Any] = []
        for address in addresses:
            if ":" in address:
                found.append((socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)))
            else:
                found.append((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)))
        return found

    return getaddrinfo


def test_ipv4(opened: ExitStack) -> None:
    [sock] = bind(opened, ("127.0.0.1", 0))
    host, port = sock.getsockname()
    assert host == "127.0.0.1"
    assert port > 0
    assert sock.family == socket.AF_INET
    assert sock.getblocking() is False
    assert sock.get_inheritable() is False
    with socket.create_connection((host, port)) as client:
        peer, name = sock.accept()
        peer.close()
        assert name == client.getsockname()


@needs_ipv6
def test_ipv6_is_ipv6_only(opened: ExitStack) -> None:
    [sock] = bind(opened, ("::1", 0))
    assert sock.family == socket.AF_INET6
    assert sock.getsockname()[0] == "::1"
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@needs_ipv6
@pytest.mark.parametrize("repetition", range(5))
def test_every_interface_on_one_port(opened: ExitStack, repetition: int) -> None:
    first, second = bind(opened, ("", 0))
    assert (first.family, second.family) == (socket.AF_INET, socket.AF_INET6)
    assert first.getsockname()[0] == "0.0.0.0"
    assert second.getsockname()[0] == "::"
    port = first.getsockname()[1]
    assert port == second.getsockname()[1] > 0
    socket.create_connection(("127.0.0.1", port)).close()
    socket.create_connection(("::1", port)).close()


@needs_ipv6
def test_another_port_is_tried_when_ipv6_has_it_in_use(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind_one = listening_sockets._bind_one
    taken: list[int] = []

    def bind_late(family: Any, name: Any, backlog: int) -> socket.socket:
        if family == socket.AF_INET6 and len(taken) < 3:
            taken.append(name[1])
            opened.enter_context(bind_one(family, name, backlog))
        return bind_one(family, name, backlog)

    monkeypatch.setattr(listening_sockets, "_bind_one", bind_late)
    first, second = bind(opened, ("", 0))
    assert len(taken) == 3
    assert 0 not in taken
    port = first.getsockname()[1]
    assert port == second.getsockname()[1]
    assert port not in taken


@needs_ipv6
@linux
def test_the_search_for_a_common_port_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bind_one = listening_sockets._bind_one
    attempts: list[int] = []

    def refuse(family: Any, name: Any, backlog: int) -> socket.socket:
        if family == socket.AF_INET6:
            attempts.append(name[1])
            raise OSError(errno.EADDRINUSE, "in use")
        return bind_one(family, name, backlog)

    monkeypatch.setattr(listening_sockets, "_bind_one", refuse)
    before = descriptors()
    with pytest.raises(OSError, match=r"can't listen on :0: in use") as caught:
        bind_listening_sockets(("", 0))
    assert caught.value.errno == errno.EADDRINUSE
    assert 1 < len(attempts) <= 100
    assert descriptors() == before


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_machine_without_ipv6(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    bind_one = listening_sockets._bind_one

    def refuse(family: Any, name: Any, backlog: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, "no IPv6")
        return bind_one(family, name, backlog)

    monkeypatch.setattr(listening_sockets, "_bind_one", refuse)
    [sock] = bind(opened, ("", 0))
    assert sock.getsockname()[0] == "0.0.0.0"
    with pytest.raises(OSError, match="no IPv6") as caught:
        bind_listening_sockets(("::1", 0))
    assert caught.value.errno == number


def test_an_interpreter_without_ipv6(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_ipv6", False)
    [sock] = bind(opened, ("", 0))
    assert sock.family == socket.AF_INET


def test_a_host_with_several_addresses(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = names("127.0.0.1", "127.0.0.2", "127.0.0.1", "192.0.2.1")
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    first, second = bind(opened, ("several.example", 0))
    assert first.getsockname()[0] == "127.0.0.1"
    assert second.getsockname() == ("127.0.0.2", first.getsockname()[1])


def test_a_host_without_an_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", names("192.0.2.1"))
    with pytest.raises(OSError, match=r"can't listen on elsewhere\.example:80: ") as caught:
        bind_listening_sockets(("elsewhere.example", 80))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kw: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(
        socket.gaierror, match=r"can't resolve nowhere\.example:80: Name"
    ) as caught:
        bind_listening_sockets(("nowhere.example", 80))
    assert caught.value.errno == socket.EAI_NONAME


def test_a_name_that_can_not_be_encoded() -> None:
    with pytest.raises(socket.gaierror, match="can't resolve aaaa"):
        bind_listening_sockets(("a" * 64 + ".example", 80))


@linux
def test_port_in_use(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    [sock] = bind(opened, ("127.0.0.2", 0))
    port = sock.getsockname()[1]
    # The first address can be bound, the second can't: nothing is left open.
    monkeypatch.setattr(socket, "getaddrinfo", names("127.0.0.1", "127.0.0.2"))
    before = descriptors()
    with pytest.raises(OSError, match=rf"can't listen on two\.example:{port}: ") as caught:
        bind_listening_sockets(("two.example", port))
    assert caught.value.errno == errno.EADDRINUSE
    assert descriptors() == before


def test_a_port_can_be_bound_again_at_once(opened: ExitStack) -> None:
    [sock] = bind_listening_sockets(("127.0.0.1", 0))
    address = sock.getsockname()
    with socket.create_connection(address):
        peer, _ = sock.accept()
        sock.close()
        peer.close()  # closes first: its end stays in TIME_WAIT
    [again] = bind(opened, address)
    assert again.getsockname() == address


@pytest.mark.parametrize("backlog", [0, -1, True, "5", None, 1.0])
def test_bad_backlog(backlog: Any) -> None:
    with pytest.raises(ValueError, match="backlog") as caught:
        bind_listening_sockets(("127.0.0.1", 0), backlog=backlog)
    assert repr(backlog) in str(caught.value)


@pytest.mark.parametrize(
    ("address", "error"),
    [(None, TypeError), (("h", -1), ValueError), ("h:80", ValueError), ("unix:", ValueError)],
)
def test_bad_address(address: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="address"):
        bind_listening_sockets(address)


# Unix sockets


def test_unix(opened: ExitStack, path: str) -> None:
    [sock] = bind(opened, f"unix:{path}", backlog=3)
    assert sock.family == socket.AF_UNIX
    assert sock.getsockname() == path
    assert sock.getblocking() is False
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        sock.accept()[0].close()


def test_stale_socket_file_is_replaced(opened: ExitStack, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    bind(opened, f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_live_socket_file_is_left_alone(opened: ExitStack, path: str) -> None:
    [sock] = bind(opened, f"unix:{path}")
    inode = socket_file_inode(f"unix:{path}")
    with pytest.raises(OSError, match=f"can't listen on unix:{path}: ") as caught:
        bind_listening_sockets(f"unix:{path}")
    assert caught.value.errno == errno.EADDRINUSE
    assert socket_file_inode(f"unix:{path}") == inode
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        # The first in the queue is the probe, which is gone already.
        probe, _ = sock.accept()
        assert probe.recv(1) == b""
        probe.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_other_files_are_never_removed(path: str, kind: str) -> None:
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "directory":
        os.mkdir(path)
    else:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path + "-target")
        os.symlink(path + "-target", path)
    before = os.lstat(path)
    with pytest.raises(OSError, match=f"can't listen on unix:{path}: ") as caught:
        bind_listening_sockets(f"unix:{path}")
    assert caught.value.errno == errno.EADDRINUSE
    assert os.lstat(path).st_ino == before.st_ino
    assert os.lstat(path).st_mode == before.st_mode


@linux
@pytest.mark.parametrize(
    ("tail", "number"),
    [("/missing/directory", errno.ENOENT), ("-long" * 100, None)],
)
def test_unix_path_that_can_not_be_bound(path: str, tail: str, number: int | None) -> None:
    before = descriptors()
    with pytest.raises(OSError, match=f"can't listen on unix:{path}{tail}: ") as caught:
        bind_listening_sockets(f"unix:{path}{tail}")
    assert caught.value.errno == number
    assert descriptors() == before


@linux
def test_a_failing_listen_leaves_no_file(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(socket.socket):
        def listen(self, backlog: int = 0, /) -> None:
            raise OSError(errno.ENOBUFS, "no room")

    monkeypatch.setattr(socket, "socket", Deaf)
    before = descriptors()
    with pytest.raises(OSError, match="no room"):
        bind_listening_sockets(f"unix:{path}")
    assert not os.path.exists(path)
    assert descriptors() == before


@linux
def test_abstract_name(opened: ExitStack) -> None:
    address = f"unix:@listening-test-{os.getpid()}"
    bind(opened, address)
    assert socket_file_inode(address) is None
    assert remove_socket_file(address, None) is False
    with pytest.raises(OSError, match="can't listen on unix:@listening") as caught:
        bind_listening_sockets(address)
    assert caught.value.errno == errno.EADDRINUSE


def test_remove_own_socket_file(opened: ExitStack, path: str) -> None:
    address = f"unix:{path}"
    bind(opened, address)
    inode = socket_file_inode(address)
    assert inode is not None
    assert remove_socket_file(address, inode) is True
    assert not os.path.exists(path)
    assert remove_socket_file(address, inode) is False


def test_the_socket_file_of_a_successor_is_not_removed(opened: ExitStack, path: str) -> None:
    address = f"unix:{path}"
    bind(opened, address)
    inode = socket_file_inode(address)
    os.unlink(path)
    bind(opened, address)
    assert socket_file_inode(address) != inode
    assert remove_socket_file(address, inode) is False
    assert os.path.exists(path)


def test_remove_never_touches_another_kind_of_file(path: str) -> None:
    Path(path).write_text("precious")
    status = os.stat(path)
    assert socket_file_inode(f"unix:{path}") is None
    assert remove_socket_file(f"unix:{path}", (status.st_dev, status.st_ino)) is False
    assert os.path.exists(path)


def test_no_socket_file_for_tcp() -> None:
    assert socket_file_inode(("127.0.0.1", 80)) is None
    assert remove_socket_file(("127.0.0.1", 80), (1, 1)) is False
