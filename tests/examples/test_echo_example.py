"""The echo example: its two commands as a user runs them, and the client they are made of."""

import asyncio
import importlib.util
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from examples.echo import Echo, EchoServerProtocol
from examples.echo import __main__ as job
from examples.echo.manage import server
from pulsar_client import Connection, TcpServer

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 30

needs_uvloop = pytest.mark.skipif(
    importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"
)


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", module, *arguments]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command("examples.echo", *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


# -- python -m examples.echo -----------------------------------------------------------------


def test_the_job_as_the_readme_runs_it() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"requests: 5000 in \d+\.\d\d s, \d+ per second\n"
        r"response time, the wait for a connection included: "
        r"p50 \d+\.\d\d ms, p90 \d+\.\d\d ms, p99 \d+\.\d\d ms, max \d+\.\d\d ms\n"
        r"connections opened: 10\n"
        r"<Pool 'echo' open: 0 in use, 10 available, 0 waiting>\n",
        done.stdout,
    )


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=needs_uvloop)])
def test_the_options_of_the_job(loop: str) -> None:
    done = run("--requests=20", "--tasks=4", "--pool-size=2", "--size=100000", f"--loop={loop}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("requests: 20 in ")
    assert "\nconnections opened: 2\n" in done.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--requests=0", "argument --requests: '0' is not a number from 1 to 10000000"),
        ("--tasks=many", "argument --tasks: 'many' is not a number from 1 to 10000000"),
        ("--pool-size=-1", "argument --pool-size: '-1' is not a number"),
        ("--size=16777217", "argument --size: '16777217' is not a number from 1 to 16777216"),
        ("--loop=trio", "argument --loop: invalid choice: 'trio'"),
        ("--no-such-option", "unrecognized arguments: --no-such-option"),
    ],
)
def test_wrong_use_of_the_job(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        job.main([argument])
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("usage: python -m examples.echo ")
    assert message in printed.err


def test_wrong_use_ends_the_process_with_2() -> None:
    done = run("--requests", "-5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")


def test_uvloop_is_needed_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # an import of it fails
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_info:
        job.main(["--loop=uvloop"])
    assert exit_info.value.code == 2
    assert "--loop uvloop: uvloop is not installed" in capsys.readouterr().err
    assert job.main(["--requests=1"]) == 0


class Liar(EchoServerProtocol):
    """Answers in capitals."""

    def write(self, data: Any) -> Any:
        return super().write(bytes(data).replace(b"7 ", b"X "))


def test_a_wrong_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lying() -> TcpServer:
        return TcpServer(partial(Connection, Liar), address=("127.0.0.1", 0))

    monkeypatch.setattr(job, "server", lying)
    assert job.main(["--requests=20", "--tasks=1", "--size=4"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "failed: wrong answer to request 7: b'X X ' instead of b'7 7 '\n"


def test_a_server_that_ends_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "server", partial(server, max_requests=5))
    assert job.main(["--requests=200"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.match(r"failed: .+\n$", printed.err)


def test_percentiles_are_the_nearest_ranks() -> None:
    times = [number / 1000 for number in range(100, 0, -1)]
    text = job.report(job.Result(seconds=2.0, response_times=times, opened=1, pool="<Pool>"))
    assert "100 in 2.00 s, 50 per second" in text
    assert "p50 50.00 ms, p90 90.00 ms, p99 99.00 ms, max 100.00 ms" in text
    one = job.report(job.Result(seconds=1.0, response_times=[0.001]))
    assert "p50 1.00 ms, p90 1.00 ms, p99 1.00 ms, max 1.00 ms" in one


@pytest.mark.parametrize(("number", "size"), [(0, 1), (12, 2), (123456, 3), (7, 1000)])
def test_messages_have_the_size_asked_for(number: int, size: int) -> None:
    assert len(job.message(number, size)) == size


# -- python -m examples.echo.manage ----------------------------------------------------------


@contextmanager
def serving(address: str) -> Iterator["tuple[subprocess.Popen[str], str]"]:
    """Run the server; give the process and the address of its first line."""
    with subprocess.Popen(
        command("examples.echo.manage", "--bind", address, "--workers", "2"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            found = re.search(r" listening on (\S+)\n", process.stderr.readline())
            assert found
            yield process, found[1]
        finally:
            process.kill()


def test_the_server_serves_until_ctrl_c() -> None:
    with serving("127.0.0.1:0") as (process, url):
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        echo = Echo((host, int(port)))
        assert echo(b"Hello!") == b"Hello!"
        process.send_signal(signal.SIGINT)  # with a connection open
        _, rest = process.communicate(timeout=LIMIT)
        assert process.returncode == 0
        texts = [line.partition(" INFO: ")[2] for line in rest.splitlines()]
        assert texts == ["stopping gracefully", "stopped by SIGINT, exit code 0"]
        echo.close()


def test_the_server_serves_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "echo"
    with serving(f"unix:{path}") as (process, url):
        assert url == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"one\r\n\r\nQUIT\r\n\r\n")
            assert sock.makefile("rb").read() == b"one\r\n\r\nQUIT\r\n\r\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
    assert not path.exists()


def manage(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command("examples.echo.manage", *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_wrong_use_of_the_server() -> None:
    done = manage("--bind", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("python -m examples.echo.manage: error: --bind is 'nowhere', ")
    assert "address 'nowhere' must be HOST:PORT" in done.stderr


def test_an_address_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = manage("--bind", f"127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (3, "")
    assert re.search(rf" could not start: .*127\.0\.0\.1:{port}.*\n$", done.stderr)


# -- the client ------------------------------------------------------------------------------


async def test_the_client_in_a_loop() -> None:
    async with server() as running, Echo(running.address, 2) as echo:
        answers = await asyncio.gather(*(echo(b"%d" % n) for n in range(20)))
        assert answers == [b"%d" % n for n in range(20)]
        assert echo.pool.stats().opened <= 2


async def test_a_full_response_is_the_consumer() -> None:
    async with server() as running, Echo(running.address, full_response=True) as echo:
        consumer = await echo(b"Hello!")
        assert consumer.request == b"Hello!"
        assert consumer.done()


async def test_a_message_with_the_separator_is_not_sent() -> None:
    async with server() as running, Echo(running.address) as echo:
        with pytest.raises(ValueError, match="has the separator"):
            await echo(b"two\r\n\r\nmessages")
        assert echo.pool.stats().opened == 0


async def test_quit_ends_the_connection_and_not_the_client() -> None:
    async with server() as running, Echo(running.address, 1) as echo:
        connection: Any = await echo.connect()
        assert await connection.request(b"QUIT") == b"QUIT"
        await connection.event("connection_lost")
        assert await echo(b"again") == b"again"
