"""Who accepts, how many, and what slow and greedy clients meet: as settings of an application."""

import socket
import threading
import time
from collections import Counter
from heapq import heappop, heappush
from pathlib import Path
from types import SimpleNamespace

import pytest
from app_kit import LIMIT, App, ask, read_line, until

from pulsar_client.app import fair_share
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


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_p3_paced_connections_are_spread_evenly(loop: str, tmp_path: Path) -> None:
    """P3: 500 connections, 1 ms apart, over 4 idle workers differ by at most 5 %."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    path = tmp_path / "status"
    arguments = ["-w", "4", "--loop", loop, "--status-socket", str(path)]
    with App(*arguments).ready() as app:
        # Workers that get no time from a busy machine can't accept, and are made up for later.
        spreads = [spread_of(app, path)]
        while spreads[-1] > 0.05 * 125 and len(spreads) < 20:
            spreads.append(spread_of(app, path))
        assert spreads[-1] <= 0.05 * 125, spreads
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


class Contest:
    """Workers on a virtual clock, of which the first is always the quickest to wake up."""

    PACE = 0.01

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
        self.now = 100.0
        clock = SimpleNamespace(
            monotonic=lambda: self.now, monotonic_ns=lambda: int(self.now * 1e9)
        )
        monkeypatch.setattr(fair_share, "time", clock)
        self.board = Scoreboard()
        self.rows = [worker(self.board, 0) for _ in range(workers)]
        self.shares = [FairShare(self.board, row) for row in self.rows]

    def connect(self, frozen: frozenset[int] = frozenset()) -> None:
        """Let one connection come, and one of those that aren't frozen accept it."""
        looks = [(self.now, index) for index in range(len(self.rows)) if index not in frozen]
        late = {index for _, index in looks}
        while True:
            self.now, index = heappop(looks)
            late.discard(index)
            pause = self.shares[index]()
            if not pause:
                break
            heappush(looks, (self.now + pause, index))
        self.rows[index][CONNECTIONS] += 1
        self.rows[index][RANK] += 1
        for other in late:
            self.shares[other]()  # it was woken up as well, and finds the connection gone
        self.now += self.PACE

    def close_all(self) -> None:
        for row in self.rows:
            row[CONNECTIONS] = 0

    def spread(self) -> int:
        counts = [row[CONNECTIONS] for row in self.rows]
        return max(counts) - min(counts)


@pytest.mark.parametrize("frozen", [{0}, {3}, {0, 1}, {1, 2, 3}])
def test_p3_an_uneven_past_makes_no_uneven_future(
    frozen: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: 500 over 4 differ by at most 5 %, whoever could accept nothing for a while before."""
    contest = Contest(monkeypatch, 4)
    for _ in range(200):
        contest.connect(frozenset(frozen))
    contest.close_all()
    for _ in range(500):
        contest.connect()
    assert contest.spread() <= 0.05 * 125
    contest.board.close()


def test_p3_who_could_not_accept_makes_up_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: while connections stay open, the next ones go to who has the least."""
    contest = Contest(monkeypatch, 4)
    for _ in range(100):
        contest.connect(frozenset({1}))
    assert contest.spread() > 30
    for _ in range(40):
        contest.connect()
    assert contest.spread() <= 0.05 * 35
    contest.board.close()


@pytest.mark.parametrize("stuck", [{0}, {0, 1}, {1, 2, 3}])
def test_a_stuck_worker_is_waited_for_once(
    stuck: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by each connection, until it has shown no life for so long that nobody waits for it."""
    contest = Contest(monkeypatch, 4)
    for _ in range(40):
        contest.connect()
    began = contest.now
    for _ in range(100):
        contest.connect(frozenset(stuck))
    lost = contest.now - began - 100 * contest.PACE
    # A pause now and then is for those that do accept.
    assert lost < 100 * 2 * fair_share.PAUSE
    for _ in range(400):
        contest.connect()  # and it takes its part again, at once
    assert contest.spread() <= 0.05 * 135
    contest.board.close()


def test_workers_that_wake_up_late_do_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though one that is stuck, which has less, was seen a moment ago."""
    contest = Contest(monkeypatch, 2)
    contest.rows[1][CONNECTIONS] = 50
    looks = 0
    while contest.shares[1]():
        contest.rows[0][BEAT] = int(contest.now * 1e9)
        contest.now += 0.02
        looks += 1
        assert looks <= 13
    contest.board.close()


@pytest.mark.slow
def test_p3_short_connections_are_spread_as_well() -> None:
    """P3: where no connection stays open, the numbers of accepted ones decide."""
    with App("-w", "4").ready() as app:
        # Two hundred are over in a moment: a worker that gets no time in it can't accept.
        seen: list[Counter[str]] = []
        while len(seen) < 20:
            seen.append(Counter(app.ask("pid") for _ in range(200)))
            if len(seen[-1]) == 4 and min(seen[-1].values()) >= 20:
                break
        assert len(seen[-1]) == 4
        assert min(seen[-1].values()) >= 20, seen
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
    assert [share() > 0 for _ in range(15)] == [True] * 14 + [False]
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
    # Who is to be answered has more time than this process is held up.
    arguments = ["-w", "1", "--first-byte-timeout", "5", "--message-timeout", "0.3"]
    arguments += ["--keep-alive", "5", "--max-message", "1000"]
    with App(*arguments, concurrency=concurrency).ready() as app:
        with app.connect() as silent, app.connect() as idle:
            assert ask(idle, "echo 1") == "1"
            with app.connect() as dripping:
                dripping.sendall(b"echo ")
                assert dripping.recv(1) == b""
            with app.connect() as greedy:
                try:
                    greedy.sendall(b"x" * 100_000)
                    assert greedy.recv(1) == b""
                except ConnectionError:
                    pass
            assert silent.recv(1) == b""
            assert idle.recv(1) == b""
        assert app.ask("echo on") == "on"
        assert "ERROR" not in app.text()
        assert app.stop()[0] == 0
