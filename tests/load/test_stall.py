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

STALL = 1.0


def start(url: str, file: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    limits = ["--max-lateness=30s", "--max-loop-lag=30s", "--max-cpu=1000"]
    command = load_command(url, "--protocol=echo", "--duration=10", f"--json={file}", *arguments)
    return subprocess.Popen(
        [*command, *limits], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


# What waited in the stall has to be answered one by one behind it, which takes longer the more of
# it there is: on a busy machine too long for 5 %.
@pytest.mark.parametrize(
    "rate",
    [
        250,
        pytest.param(
            1000,
            marks=pytest.mark.skipif(
                "PULSAR_CLIENT_LONG" not in os.environ, reason="needs an idle machine"
            ),
        ),
    ],
)
def test_proof_the_stall_of_a_real_server_is_seen_by_an_open_loop_and_hidden_by_a_closed(
    rate: int,
    tmp_path: Path,
) -> None:
    with echo_process() as (url, pid):
        running = [
            start(url, tmp_path / "open.json", f"--rate={rate}", "--connections=10"),
            start(url, tmp_path / "closed.json", "--in-flight=2", "--think=10ms"),
        ]
        try:
            for process in running:  # the first line of each: a second is over
                assert process.stderr is not None
                process.stderr.readline()
            time.sleep(2.0)
            os.kill(pid, signal.SIGSTOP)
            stopped = time.monotonic()
            time.sleep(STALL)
            os.kill(pid, signal.SIGCONT)
            stall = time.monotonic() - stopped
            for process in running:
                process.communicate(timeout=LIMIT)
                assert process.returncode == 0
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
    assert seen["count"] == 10 * rate
    assert seen["p50"] < 0.1 * stall
    # Of 10 s of requests those of `stall` seconds wait, evenly for between 0 and `stall`: the
    # n-th part of 10 s that waited longest did so for more than stall - 10 n.
    assert seen["p95"] == pytest.approx(stall - 0.5, rel=0.05)
    assert seen["p99"] == pytest.approx(stall - 0.1, rel=0.05)
    assert seen["max"] == pytest.approx(stall, rel=0.05)
    hidden = figures("closed")
    assert hidden["p99"] < 0.1 * stall
    assert hidden["max"] == pytest.approx(stall, rel=0.05)
