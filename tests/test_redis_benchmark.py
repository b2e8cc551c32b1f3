"""The benchmark of the Redis client runs; its figures are not judged here."""

import json
import shutil
from pathlib import Path

import pytest
from benchmark_kit import run_benchmark

pytestmark = pytest.mark.slow


def test_it_measures_and_writes_down(tmp_path: Path) -> None:
    pytest.importorskip("hiredis", reason="hiredis is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--rounds", "1", "--loop", "asyncio", "--only", "by hand"]
    done = run_benchmark("benchmarks.redis", *arguments, "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(file.read_text(encoding="utf-8"))
    found = {(result["name"], result["other"]) for result in report["results"]}
    assert {("GET, 50 tasks", "by hand"), ("GET, 1 task", "by hand")} <= found


def test_wrong_use() -> None:
    pytest.importorskip("hiredis", reason="hiredis is not installed")
    for arguments in (["--only", "nobody"], ["--rounds", "0"]):
        done = run_benchmark("benchmarks.redis", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: python -m benchmarks.redis ")
