"""The statsd example: a sender that never waits and a server that adds up."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from datagram_kit import dead_address, peer, until

from examples.statsd import Metrics, Sender, server
from examples.statsd.sender import DROPPED, PAYLOAD
from examples.statsd.server import MAX_NAMES

ROOT = Path(__file__).resolve().parents[2]


async def test_metrics_arrive_and_are_added_up() -> None:
    metrics = Metrics()
    async with server(metrics) as running:
        async with Sender(running.address, prefix="app", interval=0.0) as sender:
            for number in range(1000):
                sender.count("requests", 2)
                sender.gauge("depth", number)
                sender.timing("time", number / 1000)
        await until(lambda: metrics.counters.get("app.requests") == 2000)
        await until(lambda: metrics.gauges.get("app.depth") == 999)
        await until(lambda: metrics.timings["app.time"].number == 1000)
        timing = metrics.timings["app.time"]
        assert (timing.least, timing.most, timing.total) == (0.0, 999.0, 499500.0)
        assert metrics.refused == sender.dropped == 0
        # many a datagram, and none too long
        assert 1000 * 3 / 100 < running.requests_processed < 1000


async def test_the_queue_is_bounded_and_the_server_hears_of_drops_u6() -> None:
    """U6: a sender in a hurry loses metrics, not time or memory."""
    metrics = Metrics()
    async with server(metrics) as running:
        async with Sender(running.address, max_lines=100, interval=3600) as sender:
            for _ in range(1000):
                sender.count("hurry")
            assert sender.dropped == 900
        await until(lambda: metrics.counters == {"hurry": 100, DROPPED: 900})


async def test_nobody_there_is_no_error_u6() -> None:
    """U6: nor is a server that comes later."""
    address = dead_address()
    async with Sender(address, interval=0.0) as sender:
        for _ in range(3):
            sender.count("lost")
            await asyncio.sleep(0.01)
        with peer(address) as late:
            sender.count("found")
            assert (await late.receive())[0] == b"found:1|c"


async def test_no_datagram_is_longer_than_its_payload_u5() -> None:
    """U5: and each has whole lines."""
    with peer() as one:
        async with Sender(one.address, interval=0.0) as sender:
            for number in range(200):
                sender.count("n" * (number % 97 + 1), number)
        got: list[bytes] = []
        while len(got) < 200:
            data, _ = await one.receive()
            assert len(data) <= PAYLOAD
            got += data.split(b"\n")
        assert got == [b"%b:%d|c" % (b"n" * (n % 97 + 1), n) for n in range(200)]


@pytest.mark.parametrize("name", ["", "a:b", "a|b", "a\nb", "x" * 2000])
async def test_names_that_are_none(name: str) -> None:
    with peer() as one:
        async with Sender(one.address) as sender:
            with pytest.raises(ValueError, match="metric"):
                sender.count(name)


async def test_garbage_is_counted_and_memory_is_bounded() -> None:
    metrics = Metrics()
    async with server(metrics) as running:
        with peer() as one:
            for data in (b"\xff\xfe", b"a:b|c", b":1|c", b"a:nan|c", b"a:1|q", b"a:1|c|@9"):
                one.send(data, running.address)
            one.send(b"good:1|c\nbad\nsampled:1|c|@0.5", running.address)
        await until(lambda: metrics.counters == {"good": 1.0, "sampled": 2.0})
        assert metrics.refused == 7
        assert running.info()["datagrams"]["malformed"] == 6
    for number in range(MAX_NAMES):
        metrics.add(f"n{number}:1|g")
    with pytest.raises(ValueError, match="one too many"):
        metrics.add("one too many:1|g")


def test_the_command() -> None:
    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "examples.statsd", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m examples.statsd" in done.stdout
    done = run("2000")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "2000 of 2000 counted" in done.stdout
    assert run("x").returncode == 2
