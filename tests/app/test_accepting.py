"""Who accepts, how many, and what slow and greedy clients meet: as settings of an application."""

import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from app_kit import LIMIT, App, ask, read_line, until

from pulsar_client.app.fair_share import FairShare
from pulsar_client.app.restarts import FIRST, LONG_LIFE, MOST, RestartDelay
from pulsar_client.app.scoreboard import (
    ACCEPTING,
    BEAT,
    CONNECTIONS,
    RANK,
    STATE,
    Row,
    Scoreboard,
)
from pulsar_client.app.status_command import read_status

MODES = pytest.mark.parametrize("concurrency", ["process", "thread"])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_p3_paced_connections_are_spread_evenly(loop: str, tmp_path: Path) -> None:
    """P3: 500 connections, 1 ms apart, over 4 idle workers differ by at most 5 %."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    path = tmp_path / "status"
    arguments = ["-w", "4", "--loop", loop, "--status-socket", str(path)]
    with App(*arguments).ready() as app:
        # Workers that get no time from a busy machine can't accept: the best of three.
        spreads = [spread_of(app, path)]
        while spreads[-1] > 0.05 * 125 and len(spreads) < 3:
            spreads.append(spread_of(app, path))
        assert min(spreads) <= 0.05 * 125, spreads
        assert app.stop()[0] == 0


def spread_of(app: App, path: Path) -> int:
    """Make 500 connections; give by how many the workers differ."""
    held: list[socket.socket] = []
    address, pause = app.address, threading.Event()

    def counts() -> list[int]:
        return [worker["connections"] for worker in read_status(path)["workers"]]

    try:
        for _ in range(500):
            held.append(socket.create_connection(address, LIMIT))
            pause.wait(0.001)
        until(lambda: sum(counts()) == 500, what="all are accepted")
        return max(counts()) - min(counts())
    finally:
        for sock in held:
            sock.close()
        until(lambda: sum(counts()) == 0, what="all are closed")


def test_p3_short_connections_are_spread_as_well() -> None:
    """P3: where no connection stays open, the numbers of accepted ones decide."""
    with App("-w", "4").ready() as app:
        seen = Counter(app.ask("pid") for _ in range(200))
        assert len(seen) == 4
        assert min(seen.values()) >= 20, seen
        assert app.stop()[0] == 0


def worker(board: Scoreboard, connections: int, rank: int = 0) -> Row:
    row = board.take()
    row[STATE], row[BEAT] = ACCEPTING, time.monotonic_ns()
    row[CONNECTIONS], row[RANK] = connections, rank
    return row


def test_who_steps_back() -> None:
    board = Scoreboard()
    least, more, most = worker(board, 1), worker(board, 2), worker(board, 100)
    assert FairShare(board, least)() == 0
    share = FairShare(board, more)
    assert [share() > 0 for _ in range(3)] == [True, True, False]
    share = FairShare(board, most)
    assert [share() > 0 for _ in range(13)] == [True] * 12 + [False]
    least[BEAT] -= 10 * 10**9  # stuck: nobody waits for it
    assert FairShare(board, more)() == 0
    new = worker(board, 2)
    FairShare(board, new).begin()
    assert FairShare(board, new)() == 0
    board.close()


def test_p9_delays() -> None:
    """P9: the first early death costs nothing, then delays double, up to a bound."""
    delay = RestartDelay(lambda: 0.0)
    found = [delay.after(0.5) for _ in range(12)]
    assert found[:5] == [0, FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert found[-1] == MOST
    assert delay.after(LONG_LIFE) == 0
    assert delay.after(0.5) == 0
    assert RestartDelay(lambda: 1.0).after(0.1) == 0


@MODES
@pytest.mark.parametrize("binds", [1, 2])
def test_p4_a_full_worker_stops_accepting(concurrency: str, binds: int) -> None:
    """P4, P34: and goes on when there is room; of all addresses together."""
    bind = ",".join(["127.0.0.1:0"] * binds)
    arguments = ["-w", "1", "--max-connections", "2"]
    with App(*arguments, bind=bind, concurrency=concurrency).ready() as app:
        app.wait_line("listening on", count=binds)
        with app.connect() as first, app.connect() as second:
            assert (ask(first, "echo 1"), ask(second, "echo 2")) == ("1", "2")
            with app.connect() as third:
                third.sendall(b"echo 3\n")
                assert ask(first, "sleep 0.2") == "0.2"
                third.setblocking(False)
                with pytest.raises(BlockingIOError):
                    third.recv(1)
                third.settimeout(LIMIT)
                second.close()
                assert read_line(third) == "3"
        assert app.stop()[0] == 0


@MODES
def test_p21_p24_limits_are_settings(concurrency: str) -> None:
    """P21, P24, P34: silent, dripping and greedy clients are closed."""
    arguments = ["-w", "1", "--first-byte-timeout", "0.3", "--message-timeout", "0.3"]
    arguments += ["--keep-alive", "0.4", "--max-message", "1000"]
    with App(*arguments, concurrency=concurrency).ready() as app:
        with app.connect() as silent:
            assert silent.recv(1) == b""
        with app.connect() as dripping:
            dripping.sendall(b"echo ")
            assert dripping.recv(1) == b""
        with app.connect() as idle:
            assert ask(idle, "echo 1") == "1"
            assert idle.recv(1) == b""
        with app.connect() as greedy:
            try:
                greedy.sendall(b"x" * 100_000)
                assert greedy.recv(1) == b""
            except ConnectionError:
                pass
        assert app.ask("echo on") == "on"
        assert "ERROR" not in app.text()
        assert app.stop()[0] == 0
