"""Reports: the HTML page in a real browser, the live views, thresholds, comparisons, merging."""

import asyncio
import html.parser
import io
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from load_kit import ROOT, echo_target, plan

from pulsar_client import ConfigError, load
from pulsar_client.load.comparison import compare
from pulsar_client.load.faults import Fault, play
from pulsar_client.load.histogram import buckets
from pulsar_client.load.html_report import html_report
from pulsar_client.load.live import Lines, Screen, make_view
from pulsar_client.load.merging import merge
from pulsar_client.load.recorder import Counts, Interval, Totals
from pulsar_client.load.text_report import text_report
from pulsar_client.load.thresholds import Threshold
from pulsar_client.load.timeline import Timeline
from pulsar_client.testing import FaultProxy, VirtualClockLoop

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)


async def faulty_run(**kw: Any) -> load.Result:
    async with echo_target() as url:
        return await load.run(
            plan(
                url,
                rate=200,
                duration=1.5,
                warmup=0.2,
                faults=[Fault.parse("stall@0.4s+0.3s"), Fault.parse("reset@1s")],
                **kw,
            ),
            thresholds=["p99(response)<1us", "errors<50%"],
        )


# -- faults on the time line -----------------------------------------------------------------


async def test_faults_happen_in_their_time_and_leave_marks() -> None:
    result = await faulty_run()
    marks = [(round(mark.at, 1), mark.text) for mark in result.marks]
    assert [text for _, text in marks] == ["stall", "end of stall", "reset"]
    for (at, _), wanted in zip(marks, (0.6, 0.9, 1.2), strict=True):
        assert wanted <= at  # never early; how late says how busy the machine is
    assert result.response.max > 0.25
    assert result.counts.balanced
    # Slow requests ended when the stall did.
    late = [point for point in result.points if point.end >= 0.9]
    assert max(point.quantiles(1.0)[0] for point in late) > 0.25


def test_faults_are_late_by_nothing_of_their_own() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        marks: list[tuple[float, str]] = []
        await play(
            [Fault.parse("reset@1s"), Fault.parse("stall@0.4s+0.3s")],
            FaultProxy(("127.0.0.1", 1)),  # nobody connects
            zero=loop.time() + 0.2,
            clock=loop.time,
            mark=lambda text: marks.append((round(loop.time(), 6), text)),
        )
        assert marks == [(0.6, "stall"), (0.9, "end of stall"), (1.2, "reset")]

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


async def test_latency_and_bandwidth() -> None:
    async with echo_target() as url:
        faults = [Fault.parse("latency=30ms@0s+60s")]
        result = await load.run(plan(url, rate=50, faults=faults))
        assert result.service.quantile(0.2) > 0.055
        faults = [Fault.parse("bandwidth=50kB@0s+60s")]
        result = await load.run(plan(url, rate=4, size=5000, connections=1, faults=faults))
        assert result.service.quantile(0.9) > 0.08


async def test_the_fault_proxy_is_the_scenarios_to_drive() -> None:
    async def behaviour(ctx: load.Context) -> None:
        async with ctx.connect() as connection:
            if ctx.number == 10:
                ctx.proxy.latency = 0.05
                ctx.mark("slow from here")
            await connection.request(b"x")

    async with echo_target() as url:
        result = await load.run(
            plan(
                url,
                rate=50,
                scenarios=[load.Scenario(behaviour, "x")],
                faults=[Fault.parse("latency=0@0s+60s")],
            )
        )
    assert [mark.text for mark in result.marks][-1] == "slow from here"
    assert result.service.max > 0.09


@pytest.mark.parametrize(
    "text",
    ["", "stall", "stall@1s", "stall=3@1s+1s", "reset@1s+1s", "latency@1s+1s", "burn@1s+1s",
     "latency=x@1s+1s", "bandwidth=0@1s+1s", "stall@x+1s"],
)  # fmt: skip
def test_faults_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"fault {text!r}")):
        Fault.parse(text)


# -- the HTML page ---------------------------------------------------------------------------


class References(html.parser.HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "data")]


async def test_the_html_page_is_self_contained() -> None:
    result = await faulty_run()
    result.samples["<script>"] = "<b>bold</b>"
    result.causes["<script>"] = 1
    page = html_report(result)
    reader = References()
    reader.feed(page)
    assert reader.found == []
    assert reader.tags["svg"] == 3
    assert not reader.tags["script"] + reader.tags["link"] + reader.tags["img"] + reader.tags["b"]
    assert "url(" not in page
    assert "@import" not in page
    for text in ("Percentiles", "Rate", "stall", "end of warm-up", "open loop", "p99.9"):
        assert text in page


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.asyncio(loop_factories=["asyncio"])  # the page is the same on either
async def test_the_html_page_in_a_real_browser(tmp_path: Path) -> None:
    page, picture = tmp_path / "run.html", tmp_path / "run.png"
    page.write_text(html_report(await faulty_run()), encoding="utf-8")
    assert CHROMIUM is not None
    done = await asyncio.to_thread(
        subprocess.run,
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path}/profile", "--hide-scrollbars",
            "--window-size=1000,1600", f"--screenshot={picture}", page.as_uri(),
        ],
        capture_output=True,
        timeout=50,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (1000, 1600)
    assert len(data) > 40_000  # an empty page has a tenth of it
    if directory := os.environ.get("PULSAR_CLIENT_SCREENSHOTS"):
        shutil.copy(picture, directory)


def empty_result(**kw: Any) -> load.Result:
    values: dict[str, Any] = {
        "plan": load.Plan(target="tcp://127.0.0.1:1", protocol="echo", rate=1.0).as_json(),
        "counts": Counts(),
        "causes": {},
        "samples": {},
        "histograms": {},
        "elapsed": 1.0,
        "points": [],
        "marks": [],
        "invalid": [],
        "warnings": [],
        "healths": [],
        **kw,
    }
    return load.Result(**values)


def test_a_run_without_a_single_request_can_be_reported() -> None:
    result = empty_result(interrupted=True)
    assert "interrupted" in html_report(result)
    assert "interrupted after" in text_report(result)
    assert load.Result.from_json(result.as_json()).as_json() == result.as_json()


def test_how_long_a_run_took_of_which_no_process_came_to_its_end() -> None:
    the_plan = load.Plan(target=None, scenario_file="x.py", rate=5, duration=30, warmup=0.25)
    nothing = load.Result.of(the_plan, Totals(), Timeline(1.0), [])
    assert 0 < nothing.elapsed < 0.01
    totals = Totals()
    totals.add(interval(worker=0, end=1.0))
    totals.add(interval(worker=1, end=0.75))
    assert load.Result.of(the_plan, totals, Timeline(1.0), []).elapsed == 0.75


def test_a_run_without_a_single_success_did_not_pass() -> None:
    counts = Counts(scheduled=9, sent=9, error=5, timeout=2, in_flight=2)
    causes, samples = {"timeout": 2, "OSError": 5}, {"OSError": "OSError: <planted>"}
    failed = empty_result(counts=counts, causes=causes, samples=samples)
    assert not failed.passed
    assert failed.valid
    assert failed.failure == (
        "no request succeeded: 5 of 9 ended with 'OSError', e.g. OSError: <planted>"
    )
    assert "no request succeeded: 5 of 9" in html_report(failed)
    assert "<planted>" not in html_report(failed)
    silent = empty_result(counts=Counts(scheduled=1, sent=1, in_flight=1))
    assert silent.failure == "no request succeeded: none of 1 was answered"
    assert empty_result().passed
    assert empty_result(counts=Counts(scheduled=9, sent=9, ok=1, error=8)).passed


# -- what is shown while it runs -------------------------------------------------------------


def interval(worker: int = 0, end: float = 1.0) -> Interval:
    return Interval(
        worker=worker,
        seq=int(end) - 1,
        start=end - 1,
        end=end,
        counts=Counts(scheduled=int(100 * end), sent=int(100 * end), ok=int(100 * end)),
        causes=Counter({"OSError": 2}),
        durations={
            "x/response": Counter(buckets([1e-3] * 100)),
            "lateness": Counter(buckets([2e-5] * 100)),
        },
    )


@pytest.mark.parametrize(
    "seconds", [10.0**power * digit for power in range(-6, 3) for digit in (1, 2.7, 9)]
)
def test_a_point_of_the_time_line_has_its_times_to_two_digits(seconds: float) -> None:
    timeline = Timeline(1.0)
    timeline.add(
        Interval(
            worker=0,
            seq=0,
            start=0.0,
            end=1.0,
            counts=Counts(),
            causes=Counter(),
            durations={"x/response": Counter(buckets([seconds, 1.02 * seconds]))},
        )
    )
    (point,) = timeline.points
    assert 0.99 * seconds <= point.quantiles(0.5)[0] <= seconds
    assert len(point.response) == 2
    assert point.quantiles(1.0)[0] > seconds


def test_l3_live_lines_name_the_loop() -> None:
    for model, name in (({"rate": 5.0}, "open"), ({"in_flight": 2}, "closed")):
        out, totals = io.StringIO(), Totals()
        view = Lines(plan("tcp://127.0.0.1:1", **model), out)
        for end in (1.0, 2.0):
            totals.add(interval(end=end))
            view.show(interval(end=end), totals)
        view.close()
        lines = out.getvalue().splitlines()
        assert len(lines) == 2
        assert lines[1].split()[:3] == ["2.0", "s", name]
        assert "answered 100/s" in lines[1]
        assert "p99 1 ms" in lines[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_l3_the_live_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.setenv("TERM", "xterm")
    out, totals = Terminal(), Totals()
    the_plan = plan("tcp://127.0.0.1:1", rate=5.0, duration=10)
    view = make_view(the_plan, quiet=False, out=out)
    assert isinstance(view, Screen)
    for end in (1.0, 2.0):
        totals.add(interval(end=end))
        view.show(interval(end=end), totals)
    view.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "tcp://127.0.0.1:1   open loop   2 of 10 s" in shown
    assert re.search(r"answered +failed +in flight +p50 +p99 +max +late p99", shown)
    assert "100/s" in shown
    assert "4 x OSError" in shown
    assert isinstance(make_view(the_plan, quiet=True, out=Terminal()), Lines)
    assert isinstance(make_view(the_plan, quiet=False, out=io.StringIO()), Lines)


# -- thresholds ------------------------------------------------------------------------------


def result_with(times: dict[str, list[float]], **kw: Any) -> load.Result:
    histograms = {}
    for name, durations in times.items():
        histograms[name] = load.Histogram()
        for duration in durations:
            histograms[name].record(duration)
    return empty_result(histograms=histograms, **kw)


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("p50(response)<20ms", True),
        ("p50<20ms", True),
        ("p50(response, put)<20ms", False),
        ("p99<=0.1s", False),
        ("p99.9(service) < 2s", True),
        ("max(response)<1m", True),
        ("mean>1us", True),
        ("errors<5%", False),
        ("errors<=10", True),
        ("timeouts<3%", True),
        ("timeouts<1", False),
        ("dropped<1", True),
        ("rate>85", True),
        ("rate>=0.95*target", False),
        ("rate>=0.89*target", True),
        ("p50(connect)<1s", False),  # nothing was measured, so nothing is proven
    ],
)
def test_l15_thresholds(text: str, ok: bool) -> None:
    result = result_with(
        {"get/response": [0.01] * 90, "put/response": [0.5] * 10, "get/service": [0.01] * 50},
        counts=Counts(scheduled=100, sent=100, ok=90, error=8, timeout=2),
        plan=load.Plan(
            target="tcp://127.0.0.1:1", protocol="echo", rate=100.0, duration=1
        ).as_json(),
    )
    outcome = Threshold.parse(text).judge(result)
    assert outcome.ok is ok, outcome


@pytest.mark.parametrize(
    "text",
    ["", "p99", "p101<1s", "p99(latency)<1s", "errors(x)<1", "errors<many", "rate>fast",
     "speed<1s", "p99<1parsec", "p99==1s", "p99(connect,get)<1s"],
)  # fmt: skip
def test_l15_thresholds_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"threshold {text!r}")):
        Threshold.parse(text)


# -- compare and merge -----------------------------------------------------------------------


def run_of(scale: float, **kw: Any) -> load.Result:
    return result_with(
        {"x/response": [scale * (0.001 + 0.00001 * k) for k in range(2000)]},
        counts=Counts(scheduled=2000, sent=2000, ok=2000),
        **kw,
    )


def test_l16_a_change_beyond_the_noise_is_found() -> None:
    base = run_of(1.0)
    assert not compare(base, run_of(1.02)).worse
    assert compare(base, run_of(1.2)).worse
    # Runs like the base differ by as much: it says nothing.
    noisy = compare(base, run_of(1.2), [run_of(1.25), run_of(0.9)])
    assert not noisy.worse
    assert "worse" not in noisy.text()
    better = compare(base, run_of(0.5))
    assert not better.worse
    assert "better" in better.text()
    # 2 of 2000 values are beyond p99.9: luck.
    assert "too few values (worse)" in compare(base, run_of(1.2)).text()


def test_l16_errors_are_a_change() -> None:
    bad = run_of(1.0)
    bad.counts = Counts(scheduled=2000, sent=2000, ok=1800, error=200)
    found = compare(run_of(1.0), bad)
    assert [line.name for line in found.lines if line.verdict == "worse"] == ["answered", "failed"]


def test_l3_open_and_closed_loops_are_never_compared_or_merged() -> None:
    closed = run_of(1.0, plan={**run_of(1.0).plan, "rate": None, "in_flight": 3})
    with pytest.raises(ConfigError, match="can't be compared"):
        compare(run_of(1.0), closed)
    with pytest.raises(ConfigError, match="can't be merged"):
        merge([run_of(1.0), closed])


async def test_l9_merged_results() -> None:
    async with echo_target() as url:
        parts = [await load.run(plan(url, rate=rate)) for rate in (100, 200)]
    merged = merge(parts)
    assert merged.counts == Counts(scheduled=150, sent=150, ok=150)
    assert merged.response.count == 150
    assert merged.response.max == max(part.response.max for part in parts)
    # At the same time, in the time of the one that took longer: 0.5 s, or more when held up.
    assert merged.rate == pytest.approx(150 / max(part.elapsed for part in parts))
    assert merged.elapsed >= 0.5
    assert sum(point.counts.ok for point in merged.points) == 150
    assert sum(sum(point.response.values()) for point in merged.points) == 150
    assert parts[0].counts.ok == 50  # the parts are as they were
    assert load.Result.from_json(merged.as_json()).as_json() == merged.as_json()


def test_l9_a_run_that_is_there_twice_is_not_merged() -> None:
    one, other = run_of(1.0), run_of(1.1)
    assert merge([one, other]).counts.ok == 4000
    with pytest.raises(ConfigError, match="is there twice"):
        merge([one, other, run_of(1.0)])


@pytest.mark.parametrize(("starts", "apart"), [((0, 3), False), ((0, 30), True), ((9, 0), True)])
def test_l9_parts_of_different_times_are_told(starts: tuple[int, int], apart: bool) -> None:
    parts = [run_of(1.0, started=f"2026-01-01T00:00:{second:02}+00:00") for second in starts]
    warned = [text for text in merge(parts).warnings if "not made at the same time" in text]
    assert len(warned) == apart
    assert not merge([run_of(1.0), run_of(1.1)]).warnings  # nothing is known of their times


def test_l16_runs_under_different_conditions_are_compared_with_a_note() -> None:
    plain = run_of(1.0)
    other = run_of(1.0, plan={**plain.plan, "rate": 2.0, "connections": 50, "seed": 9})
    text = compare(plain, other).text()
    assert "note: the runs differ in rate: 1.0 and 2.0\n" in text
    assert "note: the runs differ in connections: 10 and 50\n" in text
    assert text.count("the runs differ in") == 2
    assert "differ in" not in compare(plain, run_of(2.0)).text()


def test_files_of_another_form_are_refused() -> None:
    strangers: list[Any] = [{}, [], {"schema": "pulsar_client.load/0"}, 3]
    for data in strangers:
        with pytest.raises(ConfigError, match=r"'pulsar_client\.load/1' is expected"):
            load.Result.from_json(data)
    broken = run_of(1.0).as_json()
    broken["histograms"] = {"x/response": "!"}
    with pytest.raises(ConfigError, match="the result can't be read"):
        load.Result.from_json(broken)


# -- the fixture -----------------------------------------------------------------------------

SUITE = """
import pytest
from examples.echo.manage import server

pytest_plugins = ["pulsar_client.load.pytest_plugin"]

async def test_it_keeps_up(load_test):
    async with server() as running:
        host, port = running.address
        result = await load_test(
            f"tcp://{host}:{port}", protocol="echo", rate=200, duration=0.5,
            thresholds=["errors<1%"],
        )
    assert result.passed
    assert result.p(50) < 1.0
    assert result.counts.ok == 99, "planted"
"""


def test_a_suite_can_assert_on_a_load_run(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    done = subprocess.run(
        [sys.executable, *command, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "AssertionError: planted" in done.stdout
    assert "assert 100 == 99" in done.stdout
    # The report stands where the test failed.
    assert "open loop, constant arrivals, 200/s for 0.5 s" in done.stdout
