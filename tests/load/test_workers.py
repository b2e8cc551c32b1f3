"""Many processes: a common start, sums that are those of the plan, and losses that are seen."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from load_kit import LENIENT, LIMIT, ROOT, echo_process, load_command, plan, refused, until

from pulsar_client import ConfigError, load
from pulsar_client.load.coordinator import SILENCE, Coordinator
from pulsar_client.load.processes import process_links
from pulsar_client.load.recorder import Counts, Interval, Totals
from pulsar_client.load.result import Result
from pulsar_client.load.timeline import Timeline
from pulsar_client.testing import VirtualClockLoop

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")


@pytest.mark.asyncio(loop_factories=["asyncio"])  # the processes choose their own
async def test_l1_l9_workers_send_the_plan_together() -> None:
    with echo_process() as (url, _):
        result = await load.run(plan(url, rate=600, duration=1.2, warmup=0.3, workers=3))
    assert result.counts == Counts(scheduled=720, sent=720, ok=720)
    assert result.response.count == 720
    assert [health.worker for health in sorted(result.healths, key=lambda h: h.worker)] == [
        0,
        1,
        2,
    ]
    assert result.valid
    assert sum(point.counts.ok for point in result.points) == 720


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_closed_loop_is_split_as_well() -> None:
    stop = load.Stop()

    def watch(interval: Interval, totals: Totals) -> None:
        if totals.counts.ok >= 15 and len(totals.workers) == 2:
            stop.request()

    with echo_process() as (url, _):
        split = plan(url, in_flight=3, think=0.1, duration=50, workers=2, interval=0.1)
        result = await load.run(split, stop=stop, watch=watch)
    assert result.counts.balanced
    assert 15 <= result.counts.ok <= 3 * (result.elapsed / 0.1 + 1)


class Scripted:
    """A worker that says what it is told at its moments, after the start; then nothing more.

    Its lines wait in a buffer for who reads them, as those of a pipe do.
    """

    def __init__(self, *moments: float) -> None:
        self.moments = moments
        self.lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.killed_at: float | None = None

    async def send(self, message: dict[str, Any]) -> None:
        if "plan" in message:
            self.lines.put_nowait({"type": "ready"})
        elif message["type"] == "ping":
            self.lines.put_nowait({"type": "pong", "clock": message["sent"]})
        elif message["type"] == "start":
            for number, moment in enumerate(self.moments):
                interval = Interval(
                    0, number, float(number), number + 1.0, Counts(), Counter(), {}
                )
                line = {"type": "interval", "interval": interval.as_json()}
                asyncio.get_running_loop().call_later(moment, self.lines.put_nowait, line)

    async def receive(self) -> dict[str, Any] | None:
        return await self.lines.get()

    def kill(self) -> None:
        self.killed_at = asyncio.get_running_loop().time()


def test_a_worker_is_lost_when_it_was_silent_for_3_s() -> None:
    """On a virtual clock: not before, and not later."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        link = Scripted(1.0, 3.9, 6.8)
        seen: list[float] = []
        coordinator = Coordinator(
            plan("tcp://127.0.0.1:1", rate=1),
            [link],
            lambda _: seen.append(loop.time()),
            load.Stop(),
        )
        await coordinator.run()
        assert [round(moment - began, 3) for moment in seen] == [1.0, 3.9, 6.8]
        assert link.killed_at == pytest.approx(began + 9.8, abs=0.2)
        assert coordinator.lost[0].startswith("worker 0 of 1 was silent for 3 s")

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


async def test_a_worker_is_not_lost_because_its_leader_was_held_up() -> None:
    """What it said meanwhile is there, in the turn in which the 3 s are found to be over."""
    link = Scripted(0.05, 0.2)
    seen: list[Interval] = []
    coordinator = Coordinator(plan("tcp://127.0.0.1:1", rate=1), [link], seen.append, load.Stop())
    running = asyncio.create_task(coordinator.run())
    await until(lambda: seen)
    time.sleep(SILENCE + 0.5)  # noqa: ASYNC251 - the machine had other things to do
    await until(lambda: len(seen) == 2 or coordinator.lost)
    assert coordinator.lost == []
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def lose(pid_of_worker: int, sign: int, url: str, seconds: float) -> Result:
    """Run a plan with two workers and do something to one of them."""
    the_plan = plan(url, rate=200, duration=seconds, workers=2, interval=0.2)
    totals, timeline = Totals(), Timeline(the_plan.point)

    def emit(interval: Interval) -> None:
        totals.add(interval)
        timeline.add(interval)

    async with process_links(2, "auto") as links:
        coordinator = Coordinator(the_plan, links, emit, load.Stop())
        running = asyncio.create_task(coordinator.run())
        await until(lambda: len(totals.workers) == 2)
        os.kill(links[pid_of_worker].pid, sign)
        await until(lambda: coordinator.lost)
        await running
    return Result.of(the_plan, totals, timeline, coordinator.ends, lost=coordinator.lost)


@pytest.mark.parametrize(("sign", "how"), [(signal.SIGKILL, "ended"), (signal.SIGSTOP, "silent")])
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_lost_worker_is_seen_and_makes_the_run_invalid(sign: int, how: str) -> None:
    """By the end of its messages, or by their absence."""
    with echo_process() as (url, _):
        result = await lose(1, sign, url, 2.5)
    assert not result.valid
    assert "worker 1 of 2" in result.invalid[0]
    assert how in result.invalid[0]
    assert result.counts.balanced  # also without its last words
    assert 250 < result.counts.scheduled < 500
    assert len(result.healths) == 1


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_worker_that_cannot_prepare_ends_the_run(tmp_path: Path) -> None:
    with (
        refused() as url,
        pytest.raises(load.TargetUnreachable, match=f"^{url} can't be reached"),
    ):
        await load.run(plan(url, rate=10, workers=2))
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"broken.py can't be imported: ZeroDivisionError"):
        await load.run(
            load.Plan(scenario_file=str(file), rate=10.0, workers=2, limits=LENIENT, duration=1)
        )


async def test_nothing_happens_to_who_sends_to_a_worker_that_is_gone() -> None:
    async with process_links(1, "asyncio") as (link,):
        link.kill()
        assert await link.receive() is None
        stdin = link._process.stdin
        assert stdin is not None
        await until(stdin.is_closing)
        await link.send({"type": "ping", "sent": 0.0})


async def test_functions_cannot_be_sent_to_other_processes() -> None:
    async def behaviour(ctx: load.Context) -> None: ...

    with pytest.raises(ConfigError, match="need a scenario file instead of functions"):
        load.Plan(scenarios=[load.Scenario(behaviour, "x")], rate=1, workers=2)


def test_workers_end_when_whoever_started_them_is_gone() -> None:
    with echo_process() as (url, _):
        process = subprocess.Popen(
            load_command(
                *(url, "--protocol=echo", "--rate=100", "--duration=60", "--workers=2"),
                "--max-lateness=9s",
            ),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            process.stderr.readline()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == 2
            process.kill()
            process.communicate(timeout=LIMIT)
        deadline = time.monotonic() + LIMIT
        while any(alive(child) for child in children) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(alive(child) for child in children)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# -- over Dask -------------------------------------------------------------------------------

# A process of its own: Dask leaves threads and sockets behind that a test could not answer for.
ON_DASK = """
import json, os, signal, subprocess, sys, time

from distributed import LocalCluster

if __name__ == "__main__":
    url, kill = sys.argv[1], sys.argv[2] == "kill"
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp",
        silence_logs=50,
    ) as cluster:
        run = subprocess.Popen(
            [
                sys.executable, "-m", "pulsar_client", "load", url, "--protocol=echo",
                "--rate=300", "--duration=5", "--workers=2", "--json=-", "--max-lateness=30s",
                "--max-loop-lag=30s", "--engine", cluster.scheduler_address.replace("tcp", "dask"),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        run.stderr.readline()
        hit = time.monotonic()
        if kill:
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
        output, errors = run.communicate(timeout=60)
        data = json.loads(output)
        for name in ("timeline", "histograms"):
            del data[name]
        print(json.dumps({"code": run.returncode, "data": data, "errors": errors}))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="distributed is not installed"
)
@pytest.mark.slow
@pytest.mark.parametrize("fate", ["live", "kill"])
def test_workers_on_a_dask_cluster(fate: str, tmp_path: Path) -> None:
    script = tmp_path / "on_dask.py"
    script.write_text(ON_DASK)
    with echo_process() as (url, _):
        done = subprocess.run(
            [sys.executable, str(script), url, fate],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    data = said["data"]
    requests = data["requests"]
    assert requests["scheduled"] == requests["sent"] + requests["dropped"] + requests["queued"]
    assert requests["sent"] == (
        requests["ok"] + requests["error"] + requests["timeout"] + requests["in_flight"]
    )
    if fate == "live":
        assert said["code"] == 0, said
        assert requests["scheduled"] == requests["ok"] == 1500
        assert len(data["self_check"]) == 2
    else:
        assert said["code"] == 3, said
        assert requests["scheduled"] < 1500
        assert len(data["self_check"]) == 1
        assert any("of 2 was silent for 3 s" in reason or "of 2 ended" in reason
                   for reason in data["invalid"])  # fmt: skip


def test_dask_that_is_missing_or_away(
    monkeypatch: pytest.MonkeyPatch, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from pulsar_client.load.cli import main

    monkeypatch.setitem(sys.modules, "distributed", None)
    arguments = ["tcp://127.0.0.1:1", "--protocol=echo", "--rate=1"]
    assert main([*arguments, f"--engine=dask://127.0.0.1:{free_port}"]) == 2
    assert "pip install 'PATH/TO/CHECKOUT[dask]'" in capsys.readouterr().err
