"""The benchmark of the Redis client runs; its figures are not judged here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHONASYNCIO")}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.redis", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_it_measures_and_writes_down(tmp_path: Path) -> None:
    pytest.importorskip("hiredis", reason="hiredis is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--rounds", "1", "--loop", "asyncio", "--only", "by hand"]
    done = run(*arguments, "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(file.read_text(encoding="utf-8"))
    found = {(result["name"], result["other"]) for result in report["results"]}
    assert {("GET, 50 tasks", "by hand"), ("GET, 1 task", "by hand")} <= found


def test_wrong_use() -> None:
    pytest.importorskip("hiredis", reason="hiredis is not installed")
    for arguments in (["--only", "nobody"], ["--rounds", "0"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: python -m benchmarks.redis ")
