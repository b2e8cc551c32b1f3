"""The command as its users call it: what it prints, what it writes, how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from load_kit import (
    LENIENT_OPTIONS,
    LIMIT,
    ROOT,
    echo_process,
    load_command,
    refused,
    run_load,
)

from pulsar_client.load.cli import main

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")

RUN = ("--protocol=echo", "--rate=200", "--duration=0.5")
#: Seconds, on a machine that may be busy, of what does not wait for something that takes longer
#: than a test may.
AT_ONCE = LIMIT / 2


# -- L15: exit codes -------------------------------------------------------------------------


def test_l15_0_passed_and_1_a_threshold_missed_and_3_invalid(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    with echo_process() as (url, _):
        passed = run_load(url, *RUN, "--threshold=errors<0.1%", "--threshold=rate>=0.01*target")
        missed = run_load(url, *RUN, "--threshold=p50<1ns", "--threshold=errors<1%")
        # INVALID says more than a threshold that was missed.
        invalid = run_load(
            *(url, *RUN, "--threshold=p50<1ns", "--max-cpu=0.000001", f"--json={file}"),
            lenient=False,
        )
    assert passed.returncode == 0
    assert "threshold  pass: errors<0.1% (0.000%)" in passed.stdout
    assert missed.returncode == 1
    assert re.search(r"threshold  FAIL: p50<1ns \(.+ [um]?s\)", missed.stdout)
    assert "threshold  pass: errors<1%" in missed.stdout
    assert invalid.returncode == 3
    assert "INVALID: the client used" in invalid.stdout
    data = json.loads(file.read_text())
    assert data["valid"] is False
    assert data["requests"]["ok"] == 100  # the numbers are shown all the same


DOOMED = """
from pulsar_client import load

@load.scenario()
async def get(ctx):
    raise LookupError("planted")
"""


@pytest.mark.parametrize("more", [(), ("--threshold=p99<20s",), ("--in-flight=1", "--think=50ms")])
def test_l15_1_no_request_succeeded(more: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "scenario.py"
    file.write_text(DOOMED)
    model = () if more[:1] == ("--in-flight=1",) else ("--rate=50",)
    # A closed loop sends nothing when it is held up for the whole time.
    duration = "--duration=0.2" if model else "--duration=2"
    told = [
        run_load(str(file), *model, duration, f"--json={json_file}", *more)
        for json_file in (tmp_path / "run.json", "-")
    ]
    assert [done.returncode for done in told] == [1, 1]
    said = r"no request succeeded: (\d+) of \1 ended with 'LookupError', e.g. .*planted"
    assert re.search(f"^FAIL: {said}", told[0].stdout, re.MULTILINE)
    assert re.search(f"^{said}", told[1].stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required"),
        (["tcp://127.0.0.1:1"], "give a rate (open loop) or in_flight (closed loop)"),
        (["tcp://127.0.0.1:1", "--rate=5"], "give a protocol or scenarios"),
        (["tcp://127.0.0.1", "--rate=5"], "must be tcp://HOST:PORT"),
        (["http://127.0.0.1:1", "--rate=5"], "must be tcp://HOST:PORT, tls://HOST:PORT"),
        (["tcp://127.0.0.1:1", "--rate=-5"], "'-5' is no rate"),
        (["tcp://127.0.0.1:1", "--rate=5", "--protocol=nope"], "protocol 'nope' is unknown"),
        (["tcp://127.0.0.1:1", *RUN, "--duration=0"], "duration is 0.0"),
        (["tcp://127.0.0.1:1", *RUN, "--threshold=p99<soon"], "'soon' is no duration"),
        (
            ["tcp://127.0.0.1:1", *RUN, "--threshold=p99(response,ecco)<1s"],
            "no scenario has the label 'ecco', expected one of echo",
        ),
        (["tcp://127.0.0.1:1", *RUN, "--stage=10s:5"], "rate and stages exclude each other"),
        (
            ["tcp://127.0.0.1:1", "--protocol=echo", "--duration=10", "--stage=10s:5"],
            "duration and stages exclude each other",
        ),
        (["tcp://127.0.0.1:1", *RUN, "--think=1s"], "think is for closed loops"),
        (["tcp://127.0.0.1:1", *RUN, "--fault=fire@1s"], "fault 'fire@1s' must be like"),
        (["tcp://127.0.0.1:1", *RUN, "--fault=stall@1s+1s"], "would begin after the end: the run"),
        (["tcp://127.0.0.1:1", *RUN, "--ca-file=x.pem"], "are for targets over TLS: tls://HOST"),
        (["tcp://127.0.0.1:1", *RUN, "--insecure"], "are for targets over TLS: tls://HOST:PORT"),
        (["tcp://127.0.0.1:1", *RUN, "--json=/no/such/place/x"], "directory does not exist"),
        (["tcp://127.0.0.1:1", *RUN, "--html=/"], "'/' can't be written: it is a directory"),
        (["tcp://127.0.0.1:1", *RUN, "--workers=0"], "workers is 0"),
        (["tcp://127.0.0.1:1", *RUN, "--engine=ray://x"], "expected dask://HOST:PORT"),
        (["gone.py", "--rate=5"], "scenario file 'gone.py' does not exist"),
        (["a.py", "b.py", "--rate=5"], "at most one target and one scenario file"),
        (["tcp://127.0.0.1:1", "--no-such-option"], "unrecognized arguments"),
        (["http://127.0.0.1:1", "--rate=5"], "for HTTP, tcp://HOST:PORT and --protocol http"),
        (["https://127.0.0.1:1", "--rate=5"], "for HTTP, tls://HOST:PORT and --protocol http"),
        (["tcp://127.0.0.1:1"], "--rate 1000, say"),
        (["tcp://127.0.0.1:1", "--rate=5"], "--protocol echo, line, http, redis-ping or"),
        (["tcp://127.0.0.1:1", "--rate=5", "--protocol=json:JSONDecoder"], "expected a Protocol"),
        (["compare", "gone.json", "gone.json"], "'gone.json' can't be read"),
        (["compare", "README.md", "README.md"], "'README.md' is not the --json of a run"),
        (
            ["find-max", "tcp://127.0.0.1:1", "--protocol=echo", "--slo=p99<1s", "--limit=50"],
            "the first rate is 100, above the limit of 50",
        ),
        (["find-max", "tcp://127.0.0.1:1", "--protocol=echo"], "required: --slo"),
    ],
)
def test_l15_2_wrong_use(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as exc:
        code = exc.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 2


@pytest.mark.parametrize("command", ["", "find-max", "calibrate", "compare", "merge"])
def test_help_shows_no_default_that_says_nothing(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert not re.search(r"\(default:\s+(None|False|\[\])\)", shown)


def test_l18_a_foreign_target_needs_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tcp://8.8.8.8:53", *RUN]) == 2
    assert "8.8.8.8, which is neither this machine nor a private" in capsys.readouterr().err


def test_l15_4_unreachable_at_the_start() -> None:
    with refused() as url:
        for more in ((), ("--workers=2",)):
            done = run_load(url, *RUN, *more)
            assert (done.returncode, done.stdout) == (4, "")
            assert done.stderr.startswith(f"unreachable: {url} can't be reached")


def test_l15_a_target_that_dies_on_the_way_is_errors_and_no_exit_code_of_its_own() -> None:
    with echo_process() as (url, pid):
        process = subprocess.Popen(
            load_command(
                url, "--protocol=echo", "--rate=100", "--duration=6", "--max-lateness=9s"
            ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            process.stderr.readline()
            os.kill(pid, signal.SIGKILL)
            output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode in (0, 3)
    assert re.search(r"error +\d+ x can't connect: ConnectionRefusedError", output)


@pytest.mark.parametrize("more", [(), ("--workers=2",), ("--in-flight=4",)])
def test_l18_ctrl_c_writes_the_report_at_once_and_exits_130(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    """The second that it waits for answers is counted on a virtual clock, in test_accounting."""
    file = tmp_path / "run.json"
    with echo_process() as (url, pid):
        process = subprocess.Popen(
            load_command(
                *(url, "--protocol=echo", "--rate=300", "--duration=60", f"--json={file}", *more),
                f"--timeout={2 * LIMIT}",
            ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            process.stderr.readline()
            os.kill(pid, signal.SIGSTOP)  # what is in flight is never answered
            while int(re.findall(r"in flight +(\d+)", process.stderr.readline())[0]) < 50:
                pass
            process.send_signal(signal.SIGINT)
            asked = time.monotonic()
            output, _ = process.communicate(timeout=LIMIT)
            took = time.monotonic() - asked
    assert process.returncode == 130
    assert took < AT_ONCE
    assert "interrupted after" in output
    requests = json.loads(file.read_text())["requests"]
    assert requests["scheduled"] == requests["sent"] + requests["dropped"] + requests["queued"]
    assert requests["sent"] == (
        requests["ok"] + requests["error"] + requests["timeout"] + requests["in_flight"]
    )
    assert requests["in_flight"] > 0


def test_l18_ctrl_c_again_and_again_does_not_cost_the_report(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    with echo_process() as (url, _):
        process = subprocess.Popen(
            load_command(
                *(url, "--protocol=echo", "--rate=300", "--duration=60", f"--html={file}")
            ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            process.stderr.readline()
            while process.poll() is None and not file.exists():
                process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted after" in output
    assert file.read_text().endswith("</html>\n")


@contextlib.contextmanager
def deaf_target() -> Iterator[str]:
    """Give the URL of somebody who leaves those alone who want to connect."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as deaf,
        contextlib.ExitStack() as stack,
    ):
        host, port = deaf.getsockname()
        for _ in range(4):  # its queue is full
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield f"tcp://{host}:{port}"


@pytest.mark.parametrize("more", [(), ("--workers=2",)])
def test_l15_4_a_target_that_does_not_answer_at_the_start(more: tuple[str, ...]) -> None:
    with deaf_target() as url:
        done = run_load(url, *RUN, "--timeout=0.5", *more)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"unreachable: {url} can't be reached: no answer within 0.5 s\n"


def dialled(url: str) -> set[str]:
    """Tell the ports from which a connection to a URL was begun, and not answered yet."""
    suffix = f":{int(url.rpartition(':')[2]):04X}"
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if remote.endswith(suffix) and state == "02":
            found.add(local)
    return found


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="nothing tells that it dials")
@pytest.mark.parametrize("workers", [1, 2])
def test_l18_ctrl_c_while_the_target_does_not_answer(workers: int) -> None:
    with deaf_target() as url:
        others = dialled(url)
        process = subprocess.Popen(
            load_command(url, *RUN, f"--workers={workers}", f"--timeout={2 * LIMIT}"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            while len(dialled(url) - others) < workers:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            asked = time.monotonic()
            output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors
    assert time.monotonic() - asked < AT_ONCE
    assert re.search(r"interrupted after 0\.0 s", output)


def test_a_package_that_is_missing_is_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    began = time.monotonic()
    assert main(["tcp://127.0.0.1:1", "--protocol=echo", "--rate=1", "--duration=100"]) == 2
    assert "pip install 'PATH/TO/CHECKOUT[load]'" in capsys.readouterr().err
    assert time.monotonic() - began < 30


def test_a_reader_that_went_away_does_not_cost_the_files(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    reading, writing = os.pipe()
    os.close(reading)
    with echo_process() as (url, _):
        done = subprocess.run(
            load_command(url, *RUN, "--duration=1.2", f"--json={file}", *LENIENT_OPTIONS),
            cwd=ROOT,
            stdout=writing,
            stderr=writing,
            timeout=LIMIT,
            check=False,
        )
    os.close(writing)
    assert done.returncode == 0
    assert json.loads(file.read_text())["requests"]["ok"] == 240


def test_a_file_that_is_not_ours_to_write_is_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert main(["tcp://127.0.0.1:1", *RUN, "--csv=run.csv"]) == 2
    assert "'run.csv' can't be written: permission denied" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_costs_only_the_files_on_it(tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    with echo_process() as (url, _):
        done = run_load(url, *RUN, "--csv=/dev/full", f"--html={file}", "--json=/dev/full")
    assert done.returncode == 2
    assert "sent 100 = ok 100" in done.stdout
    assert file.read_text().endswith("</html>\n")
    assert "'/dev/full' can't be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_told() -> None:
    with echo_process() as (url, _), open("/dev/full", "w") as full:
        done = subprocess.run(
            load_command(url, *RUN, "--max-lateness=9s"),
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 2
    assert "'-' can't be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_l5_a_pool_that_could_not_be_opened_whole_for_want_of_descriptors() -> None:
    with echo_process() as (url, _):
        command = load_command(url, *RUN, "--connections=100", "--max-lateness=9s", "--quiet")
        done = subprocess.run(
            ["/bin/sh", "-c", 'ulimit -n 40 && exec "$@"', "sh", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 3, done.stderr
    assert "INVALID: 40 of 40 file descriptors were open: raise ulimit -n" in done.stdout
    assert re.search(
        r"mark +0\.00 s: \d\d of 100 connections were there at the start: OSError: .*many open",
        done.stdout,
    )


# -- outputs ---------------------------------------------------------------------------------


def test_csv_and_json_on_standard_output(tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    with echo_process() as (url, _):
        done = run_load(url, *RUN, "--json=-", f"--csv={file}")
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert data["requests"]["ok"] == 100
    head, *rows = file.read_text().splitlines()
    assert head == (
        "start,end,scheduled,sent,dropped,queued,ok,error,timeout,in_flight,p50,p99,max"
    )
    assert sum(int(row.split(",")[6]) for row in rows) == 100


def test_prometheus_text_on_request(free_port: int) -> None:
    with echo_process() as (url, _):
        process = subprocess.Popen(
            load_command(
                *(url, "--protocol=echo", "--rate=100", "--duration=30", "--max-lateness=9s"),
                f"--prometheus=127.0.0.1:{free_port}",
            ),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            process.stderr.readline()
            text, numbers = "", dict[str, str]()
            while int(numbers.get("load_requests_ok_total", 0)) <= 50:
                with urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=LIMIT) as reply:
                    text = reply.read().decode()
                lines = (line for line in text.splitlines() if not line.startswith("#"))
                numbers = dict(line.split() for line in lines)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=LIMIT)
    assert 0 < float(numbers['load_response_seconds{quantile="0.99"}']) < 10
    assert "# TYPE load_requests_in_flight gauge" in text


def test_l1_stages_and_a_seed() -> None:
    with echo_process() as (url, _):
        done = run_load(
            *(url, "--protocol=echo", "--stage=0.4s:50..150", "--stage=200ms:500"),
            *("--arrivals=poisson", "--seed=4", "--json=-", "--warmup=0.2s"),
        )
    data = json.loads(done.stdout)
    assert data["plan"]["stages"] == [[0.4, 50.0, 150.0], [0.2, 500.0, None]]
    assert 80 < data["requests"]["scheduled"] < 210
    assert data["loop"] == "open"


SCENARIOS = """
import asyncio
from pulsar_client import load

FAULTS = ["latency=1ms@0s+10s"]

@load.setup
async def client(target):
    yield {"opened for": target.url}

@load.scenario(weight=9, label="get")
async def get(ctx):
    assert ctx.client == {"opened for": ctx.target.url}
    async with ctx.connect() as connection:
        assert await connection.request(b"get") == b"get"

@load.scenario(label="put")
async def put(ctx):
    if ctx.number == 50:
        ctx.mark("the fiftieth")
    async with ctx.connect() as connection:
        await connection.request(b"put %d" % ctx.number)
    raise LookupError("planted")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_of_scenarios(workers: int, tmp_path: Path) -> None:
    file = tmp_path / "scenario.py"
    file.write_text(SCENARIOS)
    with echo_process() as (url, _):
        done = run_load(
            *(str(file), url, "--protocol=echo", "--rate=400", "--duration=1", "--json=-"),
            f"--workers={workers}",
        )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    requests = data["requests"]
    assert requests["ok"] + requests["error"] == 400
    assert 10 < requests["error"] < 90
    assert data["errors"] == {"LookupError": requests["error"]}
    assert data["labels"]["get"]["response_time"]["count"] == requests["ok"]
    # A millisecond each way.
    assert data["labels"]["get"]["service_time"]["p50"] > 0.0018
    assert "latency=1ms" in [mark["text"] for mark in data["marks"]]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_label_of_a_threshold_is_looked_for_before_the_run(
    workers: int, tmp_path: Path
) -> None:
    """Not at the end of the half hour that it took."""
    file = tmp_path / "scenario.py"
    file.write_text(SCENARIOS)
    done = run_load(
        *(str(file), "tcp://127.0.0.1:1", "--protocol=echo", "--rate=400", "--duration=1800"),
        *(f"--workers={workers}", "--threshold=p99(service,set)<1s"),
    )
    assert done.returncode == 2
    assert "no scenario has the label 'set', expected one of get, put" in done.stderr


SETUP = """
import asyncio
from pulsar_client import load

@load.setup
async def client(target):
    {before}
    yield
    {behind}

@load.scenario()
async def get(ctx):
    await asyncio.sleep(0)
"""
WAITS = 'print("waiting", flush=True); await asyncio.Event().wait()'


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("before", "code", "message"),
    [
        (
            'raise LookupError("no token")',
            2,
            r"setup failed: scenario\.py:7: LookupError: no token",
        ),
        ('raise OSError("no server")', 4, r"setup failed: scenario\.py:7: OSError: no server"),
    ],
)
def test_a_setup_that_fails(
    before: str, code: int, message: str, workers: int, tmp_path: Path
) -> None:
    file = tmp_path / "scenario.py"
    file.write_text(SETUP.format(before=before, behind="pass"))
    done = run_load(str(file), "--rate=100", "--duration=0.2", f"--workers={workers}")
    assert (done.returncode, done.stdout) == (code, "")
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_of_a_setup_that_fails_does_not_cost_the_result(
    workers: int, tmp_path: Path
) -> None:
    file = tmp_path / "scenario.py"
    file.write_text(SETUP.format(before="pass", behind='raise LookupError("lost")'))
    done = run_load(str(file), "--rate=100", "--duration=0.2", f"--workers={workers}")
    assert done.returncode == 0, done.stderr
    assert "sent 20 = ok 20" in done.stdout
    assert re.search(
        r"mark .* s: the end of the setup failed: scenario.py:9: LookupError: lost", done.stdout
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_l18_ctrl_c_while_the_setup_or_its_end_waits(
    place: str, workers: int, tmp_path: Path
) -> None:
    file = tmp_path / "scenario.py"
    file.write_text(SETUP.format(**{"before": "pass", "behind": "pass", place: WAITS}))
    process = subprocess.Popen(
        load_command(str(file), "--rate=100", "--duration=0.2", f"--workers={workers}"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        # What is printed goes to standard error in a worker.
        told = process.stderr if workers > 1 else process.stdout
        assert told is not None
        heard = ""
        while heard.count("waiting") < workers:  # both may be in one line
            heard += told.readline()
            assert process.poll() is None, heard
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors
    assert time.monotonic() - asked < AT_ONCE
    assert "Traceback" not in errors
    assert ("sent 20 = ok 20" in output) is (place == "behind")


def test_a_port_that_is_taken_for_prometheus() -> None:
    with echo_process() as (url, _), socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_load(url, *RUN, f"--prometheus=127.0.0.1:{port}")
    assert done.returncode == 2
    assert f"--prometheus 127.0.0.1:{port}: " in done.stderr
