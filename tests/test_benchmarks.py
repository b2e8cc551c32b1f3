"""The benchmarks run and write down what they measured; their figures are not judged here."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_kit import run_benchmark

pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_benchmark("benchmarks", *arguments)


@pytest.mark.parametrize(
    ("goal", "works"),
    [
        ("F1", {"lease and release", "the same with Connection"}),
        ("F2", {"100 tasks on 10 connections"}),
        ("F4", {"echo, one after the other", "echo, 50 tasks, pool of 10"}),
        (
            "F5",
            {
                "1 connection, 1 in flight",
                "10 connections, 1 in flight",
                "10 connections, 16 in flight",
            },
        ),
        ("F7", {"idle connection, not used yet", "idle after a request"}),
        ("F9", {"new connection, one request"}),
        ("F8", {"UDP echo, window 64"}),
    ],
)
def test_a_goal_is_measured_and_written_down(goal: str, works: set[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--only", goal, "--rounds", "1", "--loop", "asyncio"]
    done = run(*arguments, "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["loops"] == ["asyncio"]
    assert report["rounds"] == 1
    assert {"date", "machine", "python", "versions", "malloc", "notes"} <= report.keys()
    assert {result["name"] for result in report["results"]} == works
    for result in report["results"]:
        assert result["goal"] == goal
        assert result["loop"] == "asyncio"
        assert len(result["rounds"]) == 1
        for key in ("ratio", "ratio_min", "ratio_max", "ours_us", "other_us"):
            assert math.isfinite(result[key])
            assert result[key] > 0
        assert (result["met"] is None) == (result["wanted"] is None)
        assert result["name"] in done.stdout
    assert any(result["met"] is not None for result in report["results"])


def test_pipelining_is_measured() -> None:
    done = run_benchmark("benchmarks.pipelining", "--quick")
    assert done.returncode == 0, done.stderr
    for name in ("codec, 1 task", "codec, time-outs, 50 tasks", "consumers, 50 tasks"):
        assert name in done.stdout


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
def test_workers_of_datagrams_are_measured() -> None:
    done = run_benchmark(
        "benchmarks.datagrams_workers", "--loop", "asyncio", "--rounds", "1", "--operations", "500"
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["client sockets"] for line in lines] == [1, 1, 1, 64, 64, 64]
    assert all(line["rate"] > 0 and line["server us"] > 0 for line in lines)
    assert [len(line["shares"]) for line in lines] == [1, 2, 2] * 2


def test_the_load_harness_is_measured() -> None:
    pytest.importorskip("hdrh", reason="hdrhistogram is not installed")
    done = run_benchmark("benchmarks.harness", "f10", "--rounds", "1", "--seconds", "0.1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    measured = [line for line in lines if "ratio" in line]
    assert [line["in flight on each"] for line in measured[:3]] == [1, 1, 16]
    assert all(line["ratio"] > 0 and line["client_ratio"] > 0 for line in measured)
    assert all(line["recording"] > 0 for line in lines if line not in measured)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_the_memory_of_tls_connections_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run_benchmark("benchmarks.tls_memory", "--quick", "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert {"asyncio, hand-written", "asyncio, TcpServer"} <= results.keys()
    for name, rounds in results.items():
        assert name in done.stdout
        for plain, small, large in rounds:
            assert plain < min(small, large)


def test_an_unknown_goal_is_refused() -> None:
    done = run("--only", "F1,F99")
    assert done.returncode == 2
    assert "F99" in done.stderr


def test_the_cost_of_each_feature_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--rounds", "1", "--loop", "asyncio", "--json", str(file)]
    done = run("ablation", *arguments)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    names = {result["name"].partition(",")[0] for result in results}
    assert {"everything off", "max_age", "check", "queue_target", "client.request"} <= names
    assert all(result["ratio"] > 0 and result["goal"] == "A" for result in results)


def test_goodput_under_overload(tmp_path: Path) -> None:
    """On a virtual clock the figures are the same everywhere: they can be judged."""
    file = tmp_path / "figures.json"
    done = run("overload", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    goodput = {(result["policy"], result["load"]): result["goodput"] for result in results}
    for load in (2.0, 4.0):
        assert goodput["time-out", load] < 0.1
        assert goodput["CoDel", load] > 0.9
    assert goodput["CoDel", 0.8] >= goodput["no limit", 0.8] - 0.001
