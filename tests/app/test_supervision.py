"""Workers that die, hang, crash at once or never start; the arbiter that watches them."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
from app_kit import (
    LONGER_THAN_HELD_UP,
    ROOT,
    App,
    ask,
    children,
    is_alive,
    read_line,
    until,
)

from pulsar_client.app import worker_handle
from pulsar_client.app.scoreboard import BEAT, Scoreboard
from pulsar_client.app.settings import Settings
from pulsar_client.app.worker_handle import WorkerHandle
from pulsar_client.app.worker_process import WorkerOrder

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks at processes in /proc"
)


def test_p1_p6_a_killed_worker_is_replaced_and_nobody_else_notices() -> None:
    """P1, P6, P11."""
    with App("--workers", "2").ready() as app:
        before = app.workers()
        assert len(before) == 2
        with app.connect() as kept, app.connect() as other:
            victim = int(ask(kept, "pid"))
            survivors_client = None
            if int(ask(other, "pid")) != victim:
                survivors_client = other
            os.kill(victim, signal.SIGKILL)
            until(lambda: len(app.workers() - {victim}) == 2, what="a replacement")
            # No new connection fails, whatever the state of the replacement.
            pids = {app.ask("pid") for _ in range(50)}
            assert str(victim) not in pids
            assert kept.recv(1) == b""
            if survivors_client is not None:
                assert ask(survivors_client, "echo on") == "on"
        line = app.wait_line(r"worker \d \(pid (\d+)\) was killed by SIGKILL after ([\d.]+) s")
        assert int(line[1]) == victim
        assert re.search(r"with \d+ requests served and [12] connections in flight", line.string)
        assert app.stop()[0] == 0


def test_a_worker_that_is_told_to_end_by_a_signal_is_no_error() -> None:
    """TERM to a worker is somebody's wish: it finishes, is replaced, and a warning says so."""
    with App("--workers", "1").ready() as app:
        (old,) = app.workers()
        os.kill(old, signal.SIGTERM)
        line = app.wait_line(rf"worker 0 \(pid {old}\) ended with exit code 0 after")
        assert " WARNING: " in line.string
        assert app.ask("pid") != str(old)
        assert " ERROR: " not in app.text()
        assert app.stop()[0] == 0


@pytest.mark.parametrize("how", ["exit", "SIGKILL"])
def test_a_worker_that_ends_by_itself_or_is_killed_is_an_error(how: str) -> None:
    """Exit code 0 alone does not make it somebody's wish."""
    with App("--workers", "1").ready() as app:
        (old,) = app.workers()
        if how == "exit":
            assert app.ask("die 0") == ""
        else:
            os.kill(old, signal.SIGKILL)
        line = app.wait_line(
            rf"worker 0 \(pid {old}\) (ended with exit code 0|was killed by {how})"
        )
        assert " ERROR: " in line.string
        assert app.ask("pid") != str(old)
        assert app.stop()[0] == 0


def test_p6_the_first_death_is_replaced_at_once() -> None:
    """P6: the next process is there within 250 ms; what it imports is not the arbiter's.

    Each of the five is the first to die at its place.  The machine may hold up the one or the
    other replacement, but not most of them.
    """
    with App("--workers", "5", "--log-level", "debug").ready() as app:
        took = []
        for count, victim in enumerate(sorted(app.workers()), start=6):
            killed = time.time()
            os.kill(victim, signal.SIGKILL)
            line = app.wait_line(r"worker \d has pid (\d+)", count=count)
            took.append(seconds_of(line.string) - killed)
        assert median(took) < 0.25, took
        assert "next try in" not in app.text()
        assert app.stop()[0] == 0


def test_p9_a_crash_loop_slows_down(tmp_path: Path) -> None:
    """P9: two workers that die half a second after each start boot at most 12 times in 10 s."""
    # Only from now on, or one of them might be dead before the other is ready.
    after = tmp_path / "after"
    after.write_text("")
    arguments = ("--workers", "2", "--log-level", "debug")
    with App(*arguments, env={"TOY_DIE_AFTER": str(after)}).ready() as app:
        after.write_text("0.5")
        for victim in app.workers():
            os.kill(victim, signal.SIGKILL)
        first = app.wait_line(r"worker \d has pid (\d+)", count=3)
        until(lambda: time_between(first.string, last_stamp(app)) > 8.0, what="8 s of log")
        boots = [line for line in app.text().splitlines() if " has pid " in line][2:]
        within = [b for b in boots if time_between(boots[0], b) <= 10.0]
        assert 4 <= len(within) <= 12
        app.wait_line("next try in ")
        assert app.stop()[0] == 0


def last_stamp(app: App) -> str:
    return next(line for line in reversed(app.text().splitlines()) if re.match(r"\d{4}-", line))


def time_between(first: str, second: str) -> float:
    return seconds_of(second) - seconds_of(first)


def seconds_of(line: str) -> float:
    """When a line was logged, as `time.time` tells it."""
    form = "%Y-%m-%d %H:%M:%S"
    return time.mktime(time.strptime(line[:19], form)) + int(line[20:23]) / 1000


def test_p7_p8_a_stuck_loop_is_found_its_stacks_logged_and_replaced() -> None:
    """P7, P8."""
    with App("--workers", "1", "--timeout", LONGER_THAN_HELD_UP).ready() as app:
        (old,) = app.workers()
        with app.connect() as sock:
            sock.sendall(b"block 60\n")
            app.wait_line(rf"\(pid {old}\): its loop has been stuck for [\d.]+ s")
            app.wait_line(rf"\(pid {old}\) was killed by SIGABRT .*; its stacks:")
            app.wait_line(r'File ".*toy_server.py", line \d+ in answer')
            assert app.ask("pid") != str(old)
        assert app.stop()[0] == 0


@pytest.mark.parametrize(
    ("settings", "beat"),
    [
        (Settings(timeout=30.0), 0.1),
        (Settings(timeout=0.2), 0.05),
        (Settings(timeout=0.0), 0.1),
    ],
    ids=["usual", "short", "none"],
)
async def test_p7_silence_begins_when_the_next_beat_is_due(
    settings: Settings, beat: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7: a handler that blocks just before a beat has all of ``timeout``."""
    now = 1000.0
    process = SimpleNamespace(pid=0)
    monkeypatch.setattr(worker_handle, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(worker_handle, "_start", lambda order, file: process)
    unused: dict[str, Any] = dict.fromkeys(("control", "lifeline", "board", "row", "stacks"), -1)
    order = WorkerOrder(
        application=b"",
        main=None,
        arguments=[],
        settings=settings,
        certificates=None,
        identity=None,
        sockets=[],
        idx=0,
        **unused,
    )
    board = Scoreboard()
    handle = WorkerHandle(order, board, -1, lambda worker, message: None)
    try:
        now += 60.0
        assert handle.silence == 0.0  # a slow import
        handle.became_ready()
        now += 100.0
        handle.row[BEAT] = int(now * 1e9)
        blocked = now + beat  # the latest moment at which this can have been the last beat
        for after in (0.0, beat / 2, beat):
            now = blocked - beat + after
            assert handle.silence == pytest.approx(0.0, abs=1e-6)
        now = blocked + 0.25
        assert handle.silence == pytest.approx(0.25)
        now = blocked + settings.timeout
        assert handle.silence == pytest.approx(settings.timeout)
    finally:
        handle.ended()
        board.close()


def test_p7_a_stopped_worker_that_ignores_abort_is_killed() -> None:
    """P7."""
    with App("--workers", "1", "--timeout", LONGER_THAN_HELD_UP).ready() as app:
        (old,) = app.workers()
        os.kill(old, signal.SIGSTOP)
        app.wait_line(rf"\(pid {old}\) was killed by SIGKILL")
        assert app.ask("echo again") == "again"
        assert app.stop()[0] == 0


def test_p7_a_slow_import_is_no_stuck_loop() -> None:
    """P7."""
    # Once it serves it has 0.4 s like any other, which the machine may not leave it.
    with App("--workers", "1", "--timeout", "0.4", env={"TOY_IMPORT": "1.5"}).ready() as app:
        until_ready = app.text().partition("listening on ")[0]
        assert "stuck" not in until_ready
        assert "killed" not in until_ready
        assert app.stop()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "env", "reason"),
    [
        ([], {"TOY_IMPORT": "fail"}, "the toy is broken"),
        ([], {"TOY_FAIL_START": "1"}, "the toy does not start"),
        (["--cert-file", "/nowhere", "--key-file", "/nowhere"], {}, "cert_file '/nowhere'"),
        (["--cert-file", "/nowhere"], {}, "key_file none"),
        (["--user", "no-such-user"], {}, "user is 'no-such-user', and there is no such user"),
    ],
    ids=["import", "start", "TLS", "half of TLS", "user"],
)
def test_p10_a_failure_before_the_first_ready(
    arguments: list[str], env: dict[str, str], reason: str
) -> None:
    """P10, A13: exit code 3, the reason on the last line, and nothing is left."""
    started = time.monotonic()
    with App("--workers", "2", *arguments, env=env) as app:
        assert app.wait(20) == 3
        assert time.monotonic() - started < 15
        until(lambda: not members(app.pid), 5, "the end of its workers")
        app.wait_line("could not start")
        last = app.text().splitlines()[-1]
        assert "could not start" in last
        assert reason in last


@pytest.mark.parametrize("concurrency", ["process", "thread"])
def test_p10_code_of_the_application_that_fails_before_there_are_workers(concurrency: str) -> None:
    """P10: whatever it raises."""
    with App(env={"TOY_FAIL_MONITOR": "1"}, concurrency=concurrency) as app:
        assert app.wait() == 3
        assert app.last_line().endswith("could not start: RuntimeError: the toy has no monitor")


def test_p10_a_worker_that_dies_before_it_is_ready() -> None:
    """P10: also without a word."""
    with App("--workers", "2", env={"TOY_IMPORT": "60"}) as app:
        until(lambda: len(app.workers()) == 2)
        os.kill(min(app.workers()), signal.SIGKILL)
        assert app.wait() == 3
        assert not members(app.pid)
        assert app.last_line().endswith(
            "could not start: a worker was killed by SIGKILL before it was ready"
        )


def members(group: int) -> list[int]:
    """The processes of a process group that are alive."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and is_alive(int(path.name)):
            try:
                if os.getpgid(int(path.name)) == group:
                    found.append(int(path.name))
            except ProcessLookupError:
                pass
    return found


@pytest.mark.parametrize("state", ["idle", "blocked", "importing"])
def test_p12_workers_end_with_their_arbiter(state: str) -> None:
    """P12: whatever they do; that they have 2 s for it is held to in test_end_of_processes.py."""
    env = {"TOY_IMPORT": "60"} if state == "importing" else {}
    with App("--workers", "2", env=env) as app:
        if state != "importing":
            app.ready()
        until(lambda: len(app.workers()) == 2)
        workers = app.workers()
        if state == "importing":
            # Far enough to have a thread that watches.
            until(lambda: all(len(os.listdir(f"/proc/{pid}/task")) > 1 for pid in workers))
        with contextlib.ExitStack() as stack:
            if state == "blocked":
                sock = stack.enter_context(app.connect())
                sock.sendall(b"echo on\nblock 60\n")
                assert read_line(sock) == "on"
            app.kill(signal.SIGKILL)
            app.wait()
            until(lambda: not any(is_alive(pid) for pid in workers))


def test_p12_as_process_1_it_reaps_orphans(tmp_path: Path) -> None:
    """P12: unknown children are reaped and ignored."""
    probe = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run([*probe, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare is not allowed here")
    # The shell leaves three children to the server, which takes its place as process 1; one of
    # them is dead before the server can be told.
    script = 'true & sleep 0.3 & (sleep 0.4 &) ; exec "$0" "$@"'
    with App("--workers", "1", prefix=(*probe, "sh", "-c", script)).ready() as app:
        (server,) = children(app.pid)
        until(lambda: len(children(server)) == 1, what="only its worker is left")
        assert app.ask("echo on") == "on"
        assert "ERROR" not in app.text()
        os.kill(server, signal.SIGTERM)
        assert app.wait() == 0


def test_a14_a_blocked_handler_does_not_stop_supervision() -> None:
    """A14: the arbiter accepts no clients, so TERM and HUP work while all workers are stuck."""
    with App("--workers", "1", "--graceful-timeout", "0.5").ready() as app, app.connect() as sock:
        sock.sendall(b"echo on\nblock 60\n")
        assert read_line(sock) == "on"
        app.kill(signal.SIGHUP)
        app.wait_line("reloaded: 1 new workers serve")
        assert app.ask("echo new") == "new"
        assert app.stop()[0] == 0


def test_workers_do_not_hold_what_belongs_to_others() -> None:
    """A worker has no descriptor of the channels and files of other workers."""
    with App("--workers", "3").ready() as app:
        sockets = [
            {
                os.readlink(path)
                for path in Path(f"/proc/{pid}/fd").iterdir()
                if "socket:" in os.readlink(path)
            }
            for pid in app.workers()
        ]
        shared = [a & b for a, b in itertools.combinations(sockets, 2)]
        assert all(len(common) == 1 for common in shared)  # the listening socket
        assert app.stop()[0] == 0


def test_a_worker_starts_without_what_only_the_arbiter_needs() -> None:
    """P6: what it imports is most of the time until a replacement accepts."""
    code = "import sys, pulsar_client.app.worker_process; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    modules = set(done.stdout.split())
    assert "pulsar_client.app.socket_server" in modules
    assert not {f"pulsar_client.app.{name}" for name in ("arbiter", "single_process")} & modules
