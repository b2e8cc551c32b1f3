"""The proof, with real processes: a server that stands still for one second."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from load_kit import LIMIT, ROOT, echo_process, load_command

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")

pytestmark = pytest.mark.skipif(
    "PULSAR_CLIENT_LONG" not in os.environ, reason="needs 11 s of an idle machine"
)

RATE = 1000


def start(url: str, file: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    command = load_command(url, "--protocol=echo", "--duration=10", f"--json={file}", *arguments)
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def a_second_of(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the line that a run writes each second."""
    assert process.stderr is not None
    assert process.stderr.readline()


# On the virtual clock of test_accounting.py the same holds exactly, whatever the machine does.
def test_proof_the_stall_of_a_real_server_is_seen_by_an_open_loop_and_hidden_by_a_closed(
    tmp_path: Path,
) -> None:
    with echo_process() as (url, pid):
        running = [
            start(url, tmp_path / "open.json", f"--rate={RATE}", "--connections=10"),
            start(url, tmp_path / "closed.json", "--in-flight=2", "--think=10ms"),
        ]
        try:
            for process in running:
                a_second_of(process)
            a_second_of(running[0])
            os.kill(pid, signal.SIGSTOP)
            stopped = time.monotonic()
            a_second_of(running[0])
            os.kill(pid, signal.SIGCONT)
            stall = time.monotonic() - stopped
            for process in running:
                _, told = process.communicate(timeout=LIMIT)
                assert process.returncode == 0, told  # 3 if the machine was not idle
        finally:
            for process in running:
                process.kill()
                process.communicate()

    def figures(name: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
        assert data["loop"] == name
        assert data["requests"]["error"] == data["requests"]["timeout"] == 0
        times: dict[str, Any] = data["response_time"]
        return times

    seen = figures("open")
    assert seen["count"] == 10 * RATE
    assert seen["p50"] < 0.1 * stall
    # Of 10 s of requests those of `stall` seconds wait, evenly for between 0 and `stall`: the
    # n-th part of 10 s that waited longest did so for more than stall - 10 n.
    assert seen["p95"] == pytest.approx(stall - 0.5, rel=0.05)
    assert seen["p99"] == pytest.approx(stall - 0.1, rel=0.05)
    assert seen["max"] == pytest.approx(stall, rel=0.05)
    hidden = figures("closed")
    assert hidden["p99"] < 0.1 * stall
    assert hidden["max"] == pytest.approx(stall, rel=0.05)
