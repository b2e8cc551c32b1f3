"""The comparison of servers runs; its figures are not judged here."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from benchmark_kit import run_benchmark

pytestmark = pytest.mark.skipif(
    not hasattr(os, "killpg") or not Path("/proc").exists(), reason="servers of POSIX systems"
)


def measured(tmp_path: Path, only: str, faults: str) -> dict[str, Any]:
    """The outcomes of one round by fault, each complete."""
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--rounds", "1", "--only", only, "--faults", faults]
    done = run_benchmark("benchmarks.servers", *arguments, "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["versions"][only] in done.stdout
    return {fault: outcomes[only][0] for fault, outcomes in report["results"].items()}


@pytest.mark.slow
def test_our_server(tmp_path: Path) -> None:
    found = measured(tmp_path, "ours", "kill,reload,spread")
    assert set(found) == {"kill", "reload", "spread"}
    assert found["kill"]["value"] > 0
    assert found["kill"]["tried"][0] > 0
    assert len(found["reload"]["tried"]) == 2
    assert sum(map(int, found["spread"]["said"].split("/"))) == 50


@pytest.mark.slow
def test_another_server(tmp_path: Path) -> None:
    if find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    found = measured(tmp_path, "gunicorn", "spread")
    assert sum(map(int, found["spread"]["said"].split("/"))) == 50


def test_wrong_use() -> None:
    for arguments in (["--only", "nobody"], ["--faults", "none"], ["--rounds", "0"]):
        done = run_benchmark("benchmarks.servers", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: python -m benchmarks.servers ")
