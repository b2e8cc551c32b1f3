"""The UDP echo example: its command as a user runs it, and the client and server of it."""

import asyncio
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from datagram_kit import dead_address, peer, until

from examples.echo_udp import Echo, EchoUdpServerProtocol, server
from examples.echo_udp import __main__ as job
from pulsar_client import RequestTimeout

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.echo_udp", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_job_as_a_user_runs_it() -> None:
    done = run("--requests", "1000")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"requests: 1000 in \d+\.\d\d s", done.stdout)
    assert "endpoints opened: 10\n" in done.stdout
    assert "open: 0 in use, 10 available, 0 waiting" in done.stdout


def test_wrong_use_is_named() -> None:
    done = run("--size", "70000")
    assert done.returncode == 2
    assert "70000" in done.stderr


async def test_the_job_with_long_messages() -> None:
    result = await job.run(requests=20, tasks=5, pool_size=2, size=8192)
    assert len(result.response_times) == 20
    assert result.opened == 2


async def test_the_pool_of_the_client() -> None:
    async with server() as running, Echo(running.address, pool_size=2) as echo:
        assert (echo.pool.in_use, echo.pool.available, echo.sessions) == (0, 0, 0)
        assert await echo(b"ciao pulsar!") == b"ciao pulsar!"
        assert (echo.pool.available, echo.sessions, echo.requests_processed) == (1, 1, 1)
        answers = await asyncio.gather(*(echo(b"%d" % n) for n in range(10)))
        assert answers == [b"%d" % n for n in range(10)]
        assert (echo.pool.available, echo.sessions) == (2, 2)


async def test_full_response() -> None:
    async with server() as running, Echo(running.address, full_response=True) as echo:
        consumer = await echo(b"whole")
        assert consumer.request == b"whole"
        assert consumer.done()
        assert str(consumer.connection).startswith("127.0.0.1:")
        assert not consumer.connection.closed


async def test_a_datagram_without_its_end_is_dropped_and_counted() -> None:
    async with server() as running, Echo(running.address, timeout=20) as echo:
        with peer() as one:
            one.send(b"no end", running.address)
            one.send(b"", running.address)
            one.send(b"an end\n", running.address)
            assert (await one.receive())[0] == b"an end\n"
        await until(lambda: running.info()["datagrams"]["malformed"] == 2)
        assert await echo(b"goes on") == b"goes on"
    assert EchoUdpServerProtocol.__doc__


async def test_nobody_answers_and_nobody_is_there() -> None:
    with peer() as silent:
        async with Echo(silent.address) as echo:
            async with echo.pool.connect():
                pass  # its endpoint is open, however long that took
            echo.timeout = 0.05
            with pytest.raises(RequestTimeout):
                await echo(b"?")
    async with Echo(dead_address()) as echo:
        with pytest.raises(ConnectionRefusedError):
            await echo(b"?")


def test_without_a_running_loop() -> None:
    address: list[tuple[str, int]] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with server() as running:
            address.append(running.address)
            ready.set()
            await asyncio.to_thread(done.wait, 40)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        echo = Echo(address[0])
        assert [echo(b"one"), echo(b"two")] == [b"one", b"two"]
        echo.close()
    finally:
        done.set()
        thread.join()
