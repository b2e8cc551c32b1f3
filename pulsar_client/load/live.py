"""What is shown while a run goes on: one screen, or a plain line a second."""

import contextlib
import sys
from collections import Counter
from typing import Any, Protocol, TextIO

from pulsar_client.load.histogram import Buckets, quantiles
from pulsar_client.load.plan import Plan
from pulsar_client.load.quantities import format_duration
from pulsar_client.load.recorder import Counts, Interval, Totals

__all__ = ["View", "make_view"]


class View(Protocol):
    """Shows a run."""

    def show(self, interval: Interval, totals: Totals) -> None:
        """Take an interval that has ended, and the totals with it."""

    def close(self) -> None:
        """The run is over."""


_FIGURES = ("due", "answered", "failed", "in flight", "p50", "p99", "max", "late p99")


class Window:
    """What happened since the last look.

    Args:
        every: seconds between two looks.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._counts = Counts()
        self._seen = 0.0
        self._response: Buckets = Counter()
        self._lateness: Buckets = Counter()

    def add(self, interval: Interval, totals: Totals) -> dict[str, str] | None:
        """Add an interval; give the figures once it is time for a look."""
        for name, counted in interval.durations.items():
            if name.endswith("/response"):
                self._response.update(counted)
            elif name == "lateness":
                self._lateness.update(counted)
        # The processes of a run end their intervals at about the same time.
        seconds = interval.end - self._seen
        if seconds < 0.9 * self._every:
            return None
        counts = totals.counts
        now = counts - self._counts
        p50, p99, worst = _shown(self._response, 0.5, 0.99, 1.0)
        (late,) = _shown(self._lateness, 0.99)
        self._counts, self._seen = counts, interval.end
        self._response.clear()
        self._lateness.clear()
        values = (
            f"{now.scheduled / seconds:.0f}/s",
            f"{now.ok / seconds:.0f}/s",
            str(now.error + now.timeout + now.dropped),
            str(counts.in_flight + counts.queued),
            p50,
            p99,
            worst,
            late,
        )
        return dict(zip(_FIGURES, values, strict=True))


def _shown(counted: Buckets, *wanted: float) -> list[str]:
    if not counted:
        return ["-"] * len(wanted)
    return [format_duration(seconds) for seconds in quantiles(counted, wanted)]


class Lines:
    """A plain line a second.

    Args:
        plan: of the run.
        out: where to write.
    """

    def __init__(self, plan: Plan, out: TextIO) -> None:
        self._out = out
        self._loop = plan.loop
        self._window = Window(1.0)

    def show(self, interval: Interval, totals: Totals) -> None:
        """Write a line when a second is over."""
        figures = self._window.add(interval, totals)
        if figures is not None:
            text = "  ".join(f"{name} {value}" for name, value in figures.items())
            with contextlib.suppress(BrokenPipeError):  # nobody looks any more: the run goes on
                self._out.write(f"{interval.end:6.1f} s  {self._loop}  {text}\n")
                self._out.flush()

    def close(self) -> None:
        """Nothing is left to do."""


class Screen:
    """One screen with a progress bar, redrawn in place.

    Args:
        plan: of the run.
        out: a terminal.
    """

    def __init__(self, plan: Plan, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._plan = plan
        self._total = plan.warmup + plan.measured
        # Drawing takes some milliseconds in which nothing is sent: it must stay below a hundredth
        # of the time.
        self._window = Window(1.0)
        self._figures = dict.fromkeys(_FIGURES, "-")
        # Drawn when there is something new, and by no thread: that would disturb the sending.
        self._live: Any = Live(console=Console(file=out), auto_refresh=False, transient=True)
        self._live.start()
        # The first drawing imports much: before the run, where nobody waits for it.
        self._live.update(self._drawn(0.0, Totals()), refresh=True)

    def show(self, interval: Interval, totals: Totals) -> None:
        """Draw the screen anew each second."""
        figures = self._window.add(interval, totals)
        if figures is not None:
            self._figures = figures
            self._live.update(self._drawn(interval.end, totals), refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def _drawn(self, now: float, totals: Totals) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        plan = self._plan
        grid = Table.grid(padding=(0, 3))
        for _ in self._figures:
            grid.add_column(justify="right")
        grid.add_row(*(Text(name, style="dim") for name in self._figures))
        grid.add_row(*(Text(value, style="bold") for value in self._figures.values()))
        phase = "warm-up" if now < plan.warmup else f"{plan.loop} loop"
        head = Text(f"{plan.target or plan.scenario_file}   {phase}   {now:.0f} of ")
        head.append(f"{self._total:.0f} s   {totals.connections} connections")
        causes = [f"{number} x {cause}" for cause, number in totals.causes.most_common(5)]
        # A bar ends no line; the row of a table does.
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=self._total, completed=min(now, self._total)))
        return Group(head, bar, grid, *(Text(text, style="red") for text in causes))


def make_view(plan: Plan, *, quiet: bool, out: TextIO | None = None) -> View:
    """Make the view that fits: a screen on a terminal, else lines, which --quiet wants as well.

    Args:
        plan: of the run.
        quiet: lines, also on a terminal.
        out: where to show it; standard error by default.
    """
    out = sys.stderr if out is None else out
    if not quiet and out.isatty():
        try:
            return Screen(plan, out)
        except ImportError:
            pass  # without rich lines must do
    return Lines(plan, out)
