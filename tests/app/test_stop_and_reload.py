"""Graceful ends, and new workers before old ones retire."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest
from app_kit import App, ask, read_line, until
from fifty_clients import under_load

MODES = pytest.mark.parametrize("concurrency", ["process", "thread"])
LONG = os.environ.get("PULSAR_CLIENT_LONG") == "1"
ECHO = ("-m", "examples.echo.manage")


@MODES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_p13_what_is_in_flight_is_finished(concurrency: str, number: int) -> None:
    """P13, P34."""
    with App("--workers", "2", concurrency=concurrency).ready() as app, app.connect() as sock:
        assert ask(sock, "echo before") == "before"
        sock.sendall(b"sleep 0.5\n")
        until(lambda: requests_of(app) >= 2, what="the request has arrived")
        app.kill(number)
        assert read_line(sock) == "0.5"
        assert sock.recv(1) == b""
        assert app.wait() == 0


def requests_of(app: App) -> int:
    from pulsar_client.app.status_command import read_status

    info = read_status(f"/tmp/pulsar-client-{os.getuid()}/{app.pid}.sock")
    return int(info["clients"]["requests"])


# How long after its deadline a process may still be there is held to the instant in
# test_end_of_processes.py.  Here a handler hangs for twice as long as anybody waits for the end.


@MODES
def test_p13_a_handler_that_waits_is_cut_at_the_deadline(concurrency: str) -> None:
    """P13, P34: by its own process, and the exit code is 0."""
    arguments = ("--graceful-timeout", "0.5", "-w", "2")
    env = {"TOY_CONSTANTS": "arbiter._KILL_AFTER=60 single_process._END_AFTER=60"}
    with App(*arguments, concurrency=concurrency, env=env).ready() as app, app.connect() as sock:
        sock.sendall(b"echo on\nsleep 60\n")
        assert read_line(sock) == "on"
        assert app.stop()[0] == 0
        app.wait_line("WARNING: .* 1 connections are cut after 0.5 s")
        assert app.last_line().endswith("INFO: stopped by SIGTERM, exit code 0")


@MODES
def test_p13_a_handler_that_is_stuck_is_killed_after_the_deadline(concurrency: str) -> None:
    """P13, P34: and the exit code is 0."""
    arguments = ("--graceful-timeout", "0.5", "-w", "2")
    env = {"TOY_CONSTANTS": "single_process._WORDS_TIME=20"}
    with App(*arguments, concurrency=concurrency, env=env).ready() as app, app.connect() as sock:
        sock.sendall(b"echo on\nblock 60\n")
        assert read_line(sock) == "on"
        assert app.stop()[0] == 0
        if concurrency == "process":
            app.wait_line("WARNING: <worker . pid .*> did not end in time")
            app.wait_line("was killed by SIGKILL .* and 1 connections in flight")
            assert app.last_line().endswith("INFO: stopped by SIGTERM, exit code 0")
        else:
            assert app.last_line().endswith(
                "WARNING: stopped by SIGTERM at the deadline, exit code 0: "
                "its loop has not come to an end, with 1 connections open"
            )


def test_p13_a_stuck_thread_is_left_at_the_deadline() -> None:
    """P13: the loop has ended, and waits for the threads that it has started."""
    # The loop needs a moment for its end, the thread would need a minute.
    env = {"TOY_CONSTANTS": "single_process._END_AFTER=5 single_process._WORDS_TIME=20"}
    arguments = ("--graceful-timeout", "0.1")
    with App(*arguments, concurrency="thread", env=env).ready() as app, app.connect() as sock:
        sock.sendall(b"echo on\nthread 60\n")
        assert read_line(sock) == "on"
        assert app.stop()[0] == 0
        assert app.last_line().endswith(
            "WARNING: stopped by SIGTERM at the deadline, exit code 0: "
            "threads of the application are still running"
        )


def test_p13_a_stuck_log_does_not_put_off_the_deadline() -> None:
    """P13: as standard error that nobody reads, with the loop waiting to write there."""
    arguments = ("--graceful-timeout", "0.5")
    with App(*arguments, concurrency="thread").ready() as app, app.connect() as sock:
        assert ask(sock, "mute") == ""
        sock.sendall(b"echo on\nblock 60\n")
        assert read_line(sock) == "on"
        assert app.stop()[0] == 0


def test_p13_a_loop_stuck_where_no_signal_reaches_it_is_cut_at_the_deadline() -> None:
    """P13: with nobody to watch it; a signal may also come just before the loop gets stuck."""
    arguments = ("--graceful-timeout", "0.5")
    with App(*arguments, concurrency="thread").ready() as app, app.connect() as sock:
        assert ask(sock, "deaf") == ""
        sock.sendall(b"echo on\nblock 60\n")
        assert read_line(sock) == "on"
        assert app.stop()[0] == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_p13_signals_of_the_application_leave_those_of_the_server_alone(loop: str) -> None:
    """P13: a handler that is added to the loop; each kind is heard, in any order."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    with App("--loop", loop, concurrency="thread").ready() as app, app.connect() as sock:
        assert ask(sock, "usr2") == ""
        app.kill(signal.SIGUSR2)
        assert read_line(sock) == "usr2"
        for count in (1, 2):
            app.kill(signal.SIGTTIN)
            app.wait_line("SIGTTIN is ignored", count=count)
            app.kill(signal.SIGUSR2)
            assert read_line(sock) == "usr2"
        assert app.text().count("SIGTTIN") == 2
        assert app.stop()[0] == 0
        assert app.text().count("stopping") == 1
        assert app.last_line().endswith("INFO: stopped by SIGTERM, exit code 0")


@MODES
def test_p13_a_second_signal_is_quick(concurrency: str) -> None:
    """P13, P34."""
    with App("--workers", "2", concurrency=concurrency).ready() as app, app.connect() as sock:
        sock.sendall(b"echo on\nsleep 60\n")
        assert read_line(sock) == "on"
        app.kill(signal.SIGTERM)
        app.wait_line("stopping gracefully")
        assert app.stop(signal.SIGTERM)[0] == 0


@MODES
def test_quit_is_quick(concurrency: str) -> None:
    env = {"TOY_CONSTANTS": "arbiter._KILL_AFTER=60 single_process._END_AFTER=60"}
    arguments = ("--workers", "2")
    with App(*arguments, concurrency=concurrency, env=env).ready() as app, app.connect() as sock:
        sock.sendall(b"echo on\nsleep 60\n")
        assert read_line(sock) == "on"
        assert app.stop(signal.SIGQUIT)[0] == 0
        assert app.last_line().endswith("INFO: stopped by SIGQUIT, exit code 0")


@MODES
@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix"])
def test_p14_what_waits_in_the_kernel_is_served(
    concurrency: str, bind: str, tmp_path: Path
) -> None:
    """P14, P34: connections that nobody has accepted yet when TERM comes."""
    address = bind if bind != "unix" else f"unix:{tmp_path}/socket"
    with App("--workers", "1", bind=address, concurrency=concurrency).ready() as app:
        with app.connect() as busy:
            # The loop is stuck: whoever connects now waits in the queue of the socket.
            busy.sendall(b"echo on\nblock 0.7\n")
            assert read_line(busy) == "on"
            waiting = [app.connect() for _ in range(20)]
            for number, sock in enumerate(waiting):
                sock.sendall(b"echo %d\n" % number)
            app.kill(signal.SIGTERM)
            assert [read_line(sock) for sock in waiting] == [str(n) for n in range(20)]
            for sock in waiting:
                assert sock.recv(1) == b""
                sock.close()
            assert read_line(busy) == "0.7"
        assert app.wait() == 0


@MODES
def test_p15_idle_connections_are_closed_at_once(concurrency: str) -> None:
    """P15, P34: one that has had an answer; a new one has a moment for its first request."""
    # A second usually: this process may be held up for longer than that.
    env = {"TOY_FIRST_BYTE_GRACE": "60"}
    with App("--workers", "1", concurrency=concurrency, env=env).ready() as app:
        with app.connect() as idle, app.connect() as fresh:
            assert ask(idle, "echo one") == "one"
            assert app.ask("echo accepted too") == "accepted too"
            app.kill(signal.SIGTERM)
            assert idle.recv(1) == b""
            assert ask(fresh, "echo first") == "first"
            assert fresh.recv(1) == b""
        assert app.wait() == 0


@pytest.mark.time_limit(900 if LONG else 300)
async def test_p16_reloads_under_load() -> None:
    """P16: ten reloads, fifty clients, not one failure; a pool sees no error."""
    with App("--workers", "2", program=ECHO).ready() as app:
        async with under_load(app.address) as load:
            for number in range(1, 11):
                before = load.connections
                app.kill(signal.SIGHUP)
                await asyncio.to_thread(app.wait_line, "reloaded: 2 new", count=number)
                while load.connections < before + (10_000 if LONG else 50):
                    await asyncio.sleep(0.01)
        assert not load.failures
        assert load.requests > 500
        until(lambda: len(app.workers()) == 2, what="old workers are gone")
        assert app.stop()[0] == 0
        assert "ERROR" not in app.text()


@pytest.mark.slow
async def test_p6_kills_under_load() -> None:
    """P6: only connections of the killed worker break."""
    with App("--workers", "2", program=ECHO).ready() as app:
        async with under_load(app.address) as load:
            for number in range(1, 4):
                before = load.connections
                victim = min(app.workers())
                os.kill(victim, signal.SIGKILL)
                await asyncio.to_thread(app.wait_line, "killed by SIGKILL", count=number)
                while load.connections < before + 50:
                    await asyncio.sleep(0.01)
        assert not load.refused
        # At most what one worker had open at that moment.
        assert len(load.broken) + len(load.pool_errors) <= 3 * 50
        assert app.stop()[0] == 0


@pytest.mark.slow
async def test_p14_p16_a_stop_under_load() -> None:
    """P14, P16: whatever was made is answered; connections that come later are refused."""
    with App("--workers", "2", program=ECHO).ready() as app:
        async with under_load(app.address) as load:
            while load.connections < 100:
                await asyncio.sleep(0.01)
            app.kill(signal.SIGTERM)
            load.stopping = True  # each client finishes what it does
        assert not load.failures
        assert await asyncio.to_thread(app.wait) == 0


def test_p17_a_bad_reload_changes_nothing(tmp_path: Path) -> None:
    """P17: bad settings, a failing import; then a good one."""
    config = tmp_path / "toy.toml"
    config.write_text("workers = 1\n")
    what = tmp_path / "import"
    what.write_text("0")
    env = {"TOY_IMPORT": str(what)}
    with App("--config", str(config), env=env).ready() as app, app.connect() as kept:
        pid = ask(kept, "pid")
        config.write_text("workers = 'many'\n")
        app.kill(signal.SIGHUP)
        app.wait_line(r"reload failed, nothing is changed: .*workers is 'many', expected an int")
        config.write_text("workers = 1\nworkerz = 2\n")
        app.kill(signal.SIGHUP)
        app.wait_line(r"unknown setting 'workerz'; did you mean workers\?")
        config.write_text("workers = 2\n")
        what.write_text("fail")
        app.kill(signal.SIGHUP)
        app.wait_line(r"reload failed, nothing is changed: ImportError: the toy is broken")
        assert ask(kept, "pid") == pid
        what.write_text("0")
        app.kill(signal.SIGHUP)
        app.wait_line("reloaded: 2 new workers serve")
        assert kept.recv(1) == b""
        assert app.ask("pid") != pid
        assert app.stop()[0] == 0


def test_a_reload_takes_new_code_addresses_and_settings(tmp_path: Path) -> None:
    """New workers import the code anew; new addresses are bound, old ones closed."""
    version = tmp_path / "version"
    version.write_text("one")
    config = tmp_path / "config.py"
    config.write_text("workers = 1\nbind = ['127.0.0.1:0']\n")
    # However late the old worker hears of it, it is over only when that one accepts no more.
    env = {"TOY_VERSION_FILE": str(version), "TOY_CONSTANTS": "handover._PATIENCE=60"}
    with App("--config", str(config), env=env, bind=None).ready() as app:
        assert app.ask("version") == "one"
        old_port = app.address[1]
        version.write_text("two")
        path = tmp_path / "socket"
        config.write_text(f"workers = 1\nbind = ['127.0.0.1:0', 'unix:{path}']\n")
        app.kill(signal.SIGHUP)
        app.wait_line(f"listening on unix:{path}")
        app.wait_line("reloaded")
        assert app.address[1] == old_port
        assert app.ask("version") == "two"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            assert ask(sock, "version") == "two"
        config.write_text("workers = 1\nbind = ['127.0.0.1:0']\n")
        app.kill(signal.SIGHUP)
        app.wait_line("reloaded", count=2)
        assert not path.exists()
        assert app.ask("version") == "two"
        assert app.stop()[0] == 0


@pytest.mark.time_limit(900 if LONG else 300)
async def test_p19_workers_are_replaced_after_max_requests() -> None:
    """P19: the successor is ready first; nobody notices."""
    with App("--workers", "2", "--max-requests", "300", program=ECHO).ready() as app:
        first = app.workers()
        async with under_load(app.address, 20) as load:
            while load.requests + load.connections < (100_000 if LONG else 4000):
                await asyncio.sleep(0.01)
        assert not load.failures
        until(lambda: not first & app.workers(), what="the first workers are gone")
        assert "ERROR" not in app.text()
        assert app.stop()[0] == 0


def test_p20_workers_are_added_and_removed() -> None:
    """P20: TTIN and TTOU."""
    with App("--workers", "1").ready() as app:
        app.kill(signal.SIGTTIN)
        app.wait_line("one worker more: 2")
        until(lambda: len(app.workers()) == 2)
        app.kill(signal.SIGTTOU)
        app.wait_line("one worker less: 1")
        until(lambda: len(app.workers()) == 1)
        app.kill(signal.SIGTTOU)
        app.wait_line("the last worker stays")
        assert app.ask("echo on") == "on"
        assert app.stop()[0] == 0


@MODES
def test_p20_the_log_is_opened_anew(concurrency: str, tmp_path: Path) -> None:
    """P20, P34: USR1, in the workers as well."""
    log = tmp_path / "log"
    with App("-w", "1", "--log-file", str(log), concurrency=concurrency).ready() as app:
        app.ask("boom")
        until(lambda: "RuntimeError: boom" in log.read_text())
        log.rename(tmp_path / "old")
        app.kill(signal.SIGUSR1)
        until(log.exists)
        # The worker hears of it after the arbiter.
        until(lambda: app.ask("boom") == "" and "RuntimeError: boom" in log.read_text())
        assert app.stop()[0] == 0
        assert "stopping gracefully" in log.read_text()
        assert app.text().count("listening on") == 1


def test_a_hundred_hups_at_once_are_few_reloads() -> None:
    # An old worker may take the connection, and this process be late with what it says there.
    with App("--workers", "1", env={"TOY_FIRST_BYTE_GRACE": "60"}).ready() as app:
        for _ in range(100):
            app.kill(signal.SIGHUP)
        app.wait_line("reloaded")
        until(lambda: len(app.workers()) == 1)
        assert app.ask("echo on") == "on"
        assert app.stop()[0] == 0
        assert app.text().count("reloaded") <= 10


def test_signals_while_it_starts_are_not_lost() -> None:
    """TERM before it is ready ends it, with 0; HUP is done later."""
    with App("--workers", "1", env={"TOY_IMPORT": "60"}) as app:
        until(app.workers)
        assert app.stop(signal.SIGINT)[0] == 0
        assert app.last_line().endswith("INFO: stopped by SIGINT, exit code 0")


def test_the_whole_group_is_signalled() -> None:
    """As Ctrl-C in a terminal, or a service manager, does it: no traceback, exit code 0."""
    with App("--workers", "2").ready() as app, app.connect() as sock:
        sock.sendall(b"echo on\nsleep 0.3\n")
        assert read_line(sock) == "on"
        os.killpg(app.pid, signal.SIGINT)
        assert read_line(sock) == "0.3"
        assert app.wait() == 0
        assert "Traceback" not in app.text()
