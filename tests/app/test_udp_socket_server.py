"""Datagrams served in production: the same settings, arbiter and workers."""

import os
import signal
import socket
from pathlib import Path

import pytest
from app_kit import LIMIT, App, until

from pulsar_client import ConfigError, UdpSocketServer

MODES = pytest.mark.parametrize("concurrency", ["process", "thread"])
PROGRAM = ("-m", "examples.echo_udp.manage")


def exchange(address: tuple[str, int], message: bytes) -> bytes:
    """One datagram, repeated until it is answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect(address)
        for _ in range(int(LIMIT / 0.5)):
            try:
                sock.send(message)
                return sock.recv(100)
            except (TimeoutError, ConnectionRefusedError):
                continue
    raise AssertionError("no answer")


@MODES
def test_it_serves_and_stops(concurrency: str) -> None:
    with App("-w", "2", program=PROGRAM, concurrency=concurrency).ready() as app:
        assert app.url.startswith("udp://127.0.0.1:")
        assert exchange(app.address, b"Hello!\n") == b"Hello!\n"
        assert app.stop()[0] == 0


def test_p29_both_families_have_one_port() -> None:
    """P29, for datagrams."""
    with App("-w", "2", program=PROGRAM, bind=":0").ready() as app:
        app.wait_line("listening on", count=2)
        assert exchange(("127.0.0.1", app.address[1]), b"x\n") == b"x\n"
        assert app.stop()[0] == 0


def test_p6_p16_kills_and_reloads() -> None:
    """P6, P16, for datagrams: the socket stays, so clients need only ask again."""
    with App("-w", "2", program=PROGRAM).ready() as app:
        os.kill(min(app.workers()), signal.SIGKILL)
        assert exchange(app.address, b"1\n") == b"1\n"
        app.kill(signal.SIGHUP)
        app.wait_line("reloaded: 2 new workers serve")
        assert exchange(app.address, b"2\n") == b"2\n"
        until(lambda: len(app.workers()) == 2)
        assert app.stop()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--cert-file", "x"], "cert_file has no meaning for this kind of server"),
        (["--backlog=3"], "backlog has no meaning for this kind of server"),
        (["--no-such"], "unrecognized arguments: --no-such"),
    ],
)
def test_settings_of_connections_are_refused(arguments: list[str], reason: str) -> None:
    with App(*arguments, program=PROGRAM) as app:
        assert app.wait() == 2
        app.wait_line(reason)


def test_unix_sockets_are_refused(tmp_path: Path) -> None:
    with App(program=PROGRAM, bind=f"unix:{tmp_path}/x") as app:
        assert app.wait() == 3
        app.wait_line("could not start: bind is 'unix:.*, expected HOST:PORT for datagrams")


def test_parameters_of_connections_are_refused() -> None:
    with pytest.raises(ConfigError, match="keep_alive has no meaning"):
        UdpSocketServer(list, keep_alive=3)
