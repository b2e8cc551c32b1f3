"""Addresses: what is read, what is refused, and that formatting never fails."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulsar_client.addresses import (
    Address,
    check_address,
    format_address,
    is_unix_socket_alive,
    parse_address,
    unix_path,
)


@pytest.fixture
def directory() -> Iterator[Path]:
    # Shorter than tmp_path: the path of a unix socket has about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="addr-") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8060", ("127.0.0.1", 8060)),
        (" localhost:0\n", ("localhost", 0)),
        (":8060", ("", 8060)),
        ("[::1]:65535", ("::1", 65535)),
        ("[::]:1", ("::", 1)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("unix:/tmp/x.sock", "unix:/tmp/x.sock"),
        ("unix:relative:80", "unix:relative:80"),
        ("unix:@name", "unix:@name"),
        ("host:00080", ("host", 80)),
    ],
)
def test_parse(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "8060",
        "localhost:",
        "localhost:http",
        "localhost:-1",
        "localhost:+1",
        "localhost: 80",
        "localhost:65536",
        "localhost:" + "9" * 5000,
        "localhost:٣",
        "localhost:²",
        "::1:80",
        "::1",
        "[::1]",
        "[::1]80",
        "[::1:80",
        "::1]:80",
        "[localhost]:80",
        "[]:80",
        "unix:",
        "unix:@",
        "unix:/a\0b",
        "tcp://127.0.0.1:80",
        "a\0b:80",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", [None, 8060, b"h:1", ("h", 1)])
def test_parse_refuses_other_types(text: Any) -> None:
    with pytest.raises(TypeError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        ("", 0),
        ("localhost", 65535),
        ("::1", 80),
        ("::1", 80, 0, 0),
        ("fe80::1", 80, 1, 2),
        "unix:/x",
        "unix:@x",
    ],
)
def test_check_accepts(address: Address) -> None:
    assert check_address(address) is address


@pytest.mark.parametrize(
    "address",
    [None, 8060, ["h", 1], b"unix:/x", {"h": 1}, (None, 80), (b"h", 80), (1, 2)],
)
def test_check_refuses_wrong_types(address: Any) -> None:
    with pytest.raises(TypeError) as caught:
        check_address(address)
    assert repr(address) in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        (),
        ("h",),
        ("h", 1, 2),
        ("h", 1, 2, 3, 4),
        ("h", -1),
        ("h", 65536),
        ("h", True),
        ("h", "80"),
        ("h", 80.0),
        ("h", None),
        ("a\0b", 80),
        ("::1", 80, -1, 0),
        ("::1", 80, 0, "eth0"),
        "",
        "/tmp/x",
        "localhost:80",
        "unix:",
        "unix:@",
        "unix:\0x",
    ],
)
def test_check_refuses_wrong_values(address: Any) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        check_address(address)
    assert repr(address) in str(caught.value)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 8060), "127.0.0.1:8060"),
        (("localhost", 0), "localhost:0"),
        (("", 80), ":80"),
        (("::1", 8060), "[::1]:8060"),
        (("::1", 8060, 0, 0), "[::1]:8060"),
        (("fe80::1", 80, 0, 3), "[fe80::1%3]:80"),
        (("fe80::1%eth0", 80, 0, 3), "[fe80::1%eth0]:80"),
        ("unix:/tmp/x", "unix:/tmp/x"),
        ("/tmp/x", "unix:/tmp/x"),
        (b"/tmp/x", "unix:/tmp/x"),
        (b"\0name", "unix:@name"),
        ("\0name", "unix:@name"),
        ("unix:@name", "unix:@name"),
        ("", "unix:"),
        (b"", "unix:"),
        (None, "unknown"),
        ((b"host", 1), "host:1"),
        (("eth0", 3, 0, 1, b"\x00\x01"), "('eth0', 3, 0, 1, b'\\x00\\x01')"),
        ((0, 0), "0:0"),
    ],
)
def test_format(address: object, text: str) -> None:
    assert format_address(address) == text


@pytest.mark.parametrize("address", [b"\0evil\nline", "/tmp/a\nb", b"/tmp/\xff", ("a\r\n", 1)])
def test_format_gives_one_printable_line(address: object) -> None:
    text = format_address(address)
    assert text.isprintable()
    assert text.isascii()


@given(st.one_of(st.binary(), st.text(), st.tuples(st.text(), st.integers()), st.none()))
def test_format_never_raises(address: object) -> None:
    assert format_address(address).isprintable()


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 1), ("", 80), ("::1", 65535), "unix:/tmp/x", "unix:@x"]
)
def test_parse_reads_what_format_writes(address: Address) -> None:
    assert parse_address(format_address(address)) == address


def test_format_of_real_names(directory: Path) -> None:
    path = str(directory / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        assert format_address(client.getsockname()) == "unix:"
        listener.bind(path)
        listener.listen()
        client.connect(path)
        assert format_address(client.getpeername()) == f"unix:{path}"
        assert format_address(client.getsockname()) == "unix:"
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        assert format_address(tcp.getsockname()) == f"127.0.0.1:{tcp.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("unix:/tmp/x", "/tmp/x"),
        ("unix:relative", "relative"),
        ("unix:@name", "\0name"),
        (("unix:", 80), None),
        ("/tmp/x", None),
    ],
)
def test_unix_path(address: Address, path: str | None) -> None:
    assert unix_path(address) == path


def test_alive_while_somebody_listens(directory: Path) -> None:
    path = str(directory / "s")
    assert not is_unix_socket_alive(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert not is_unix_socket_alive(path)
        listener.listen()
        assert is_unix_socket_alive(path)
    assert os.path.exists(path)
    assert not is_unix_socket_alive(path)


@pytest.mark.skipif(sys.platform != "linux", reason="the queue is full without waiting on Linux")
def test_alive_with_a_full_queue_does_not_wait(directory: Path) -> None:
    path = str(directory / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            with socket.socket(socket.AF_UNIX) as second:
                second.setblocking(False)
                with pytest.raises(BlockingIOError):
                    second.connect(path)
            assert is_unix_socket_alive(path)


def test_alive_for_a_socket_of_another_type(directory: Path) -> None:
    path = str(directory / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        assert is_unix_socket_alive(path)
    assert not is_unix_socket_alive(path)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names exist on Linux only")
def test_abstract_name() -> None:
    address = f"unix:@addresses-test-{os.getpid()}"
    path = unix_path(address)
    assert path is not None
    assert not is_unix_socket_alive(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert is_unix_socket_alive(path)
        assert format_address(listener.getsockname()) == address
