"""``python -m pulsar_client load``: the command line, and its exit codes.

0 passed, 1 a threshold was missed or no request succeeded, 2 wrong use, 3 the run is INVALID,
4 the target can't be reached at the start, 130 interrupted.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.calibration import calibrate
from pulsar_client.load.comparison import compare
from pulsar_client.load.event_loops import LOOPS, loop_factory
from pulsar_client.load.html_report import html_report
from pulsar_client.load.live import make_view
from pulsar_client.load.maximum import find_maximum
from pulsar_client.load.merging import merge
from pulsar_client.load.options import Parser, add_common, add_run, plan_of, value
from pulsar_client.load.plan import Plan
from pulsar_client.load.prometheus import metrics_server
from pulsar_client.load.quantities import duration, rate
from pulsar_client.load.recorder import Totals
from pulsar_client.load.result import Result
from pulsar_client.load.running import run
from pulsar_client.load.session import Stop, TargetUnreachable
from pulsar_client.load.text_report import csv_report, text_report
from pulsar_client.load.thresholds import Threshold

__all__ = ["main"]

PASSED, MISSED, USAGE, INVALID, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

_PROGRAM = "python -m pulsar_client load"
_EPILOG = (
    "Exit codes: 0 passed, 1 threshold missed or no request succeeded, 2 wrong use, 3 INVALID, "
    "4 unreachable at the start, 130 interrupted.  Other commands: load calibrate, "
    "load find-max, load compare, load merge; each has its --help."
)
_T = TypeVar("_T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, do what it says, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = COMMANDS.get(arguments[0]) if arguments else None
    try:
        if command is not None:
            return command(arguments[1:])
        return command_run(arguments)
    except TargetUnreachable as exc:
        print(f"unreachable: {exc}", file=sys.stderr)
        return UNREACHABLE
    except ConfigError as exc:
        print(f"{_PROGRAM}: error: {exc}\n(--help shows the options)", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def exit_code(result: Result) -> int:
    """Give the exit code of a result: that it was interrupted or is invalid says more."""
    if result.interrupted:
        return INTERRUPTED
    if not result.valid:
        return INVALID
    return PASSED if result.passed else MISSED


# -- run -------------------------------------------------------------------------------------


def command_run(arguments: Sequence[str]) -> int:
    """``load TARGET …``: one run."""
    parser = Parser(
        prog=_PROGRAM,
        description="Put load on a target and report what it does to its response times.",
        epilog=_EPILOG,
    )
    add_common(parser)
    add_run(parser)
    options = parser.parse_args(arguments)
    plan = plan_of(options)
    for path in (options.json, options.csv, options.html):
        check_writable(path)

    async def whole(stop: Stop) -> Result:
        result = await _watched(plan, options.threshold, options, stop)
        write_reports(result, options)  # in the loop, where one more Ctrl-C does not end it
        return result

    result = in_loop(options.loop, whole)
    if result.failure and options.json == "-":  # without the text there is nobody to tell
        print(result.failure, file=sys.stderr)
    return exit_code(result)


async def _watched(
    plan: Plan, thresholds: list[Threshold], options: argparse.Namespace, stop: Stop
) -> Result:
    """Run a plan and show how it goes."""
    totals = Totals()
    async with contextlib.AsyncExitStack() as stack:
        if options.prometheus is not None:
            try:
                server = metrics_server(options.prometheus, totals)
                await stack.enter_async_context(server)
            except (ValueError, OSError) as exc:
                raise ConfigError(f"--prometheus {options.prometheus}: {exc}") from exc
        view = make_view(plan, quiet=options.quiet)
        stack.callback(view.close)
        return await run(plan, thresholds=thresholds, stop=stop, watch=view.show, totals=totals)


def in_loop(name: str, work: Callable[[Stop], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine in a loop of its own; SIGINT asks it to stop and to report (L18)."""
    stop = Stop()

    async def interruptible() -> _T:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(signal.SIGINT, stop.request)
            loop.add_signal_handler(signal.SIGTERM, stop.request)
        # What was made until now is never garbage: a collection in the run need not look at it.
        gc.collect()
        gc.freeze()
        try:
            return await work(stop)
        finally:
            if stop.requested and hasattr(signal, "pthread_sigmask"):
                # The process ends as it was asked to: one more Ctrl-C shall not change how.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        return runner.run(interruptible())


def write_reports(result: Result, options: argparse.Namespace) -> None:
    """Write the files that were asked for, and print the text; each, if another can't be."""
    with contextlib.ExitStack() as last_to_first:
        last_to_first.callback(tell, options.json, text_report(result), result.as_json)
        if options.html is not None:
            last_to_first.callback(write, options.html, html_report(result))
        if options.csv is not None:
            last_to_first.callback(write, options.csv, csv_report(result))


def tell(path: str | None, text: str, data: Callable[[], dict[str, Any]]) -> None:
    """Print a text and write the JSON that goes with it; only the JSON if that is printed."""
    try:
        if path is not None:
            write(path, json.dumps(data(), allow_nan=False) + "\n")
    finally:
        if path != "-":
            write("-", text)


def check_writable(path: str | None) -> None:
    """Refuse a file that can't be written, before the run instead of after it.

    Raises:
        ConfigError: its directory does not exist, it is one itself, or it is not ours to write.
    """
    if path is None or path == "-":
        return
    file = Path(path).resolve()
    if not file.parent.is_dir():
        raise ConfigError(f"{path!r} can't be written: its directory does not exist")
    if file.is_dir():
        raise ConfigError(f"{path!r} can't be written: it is a directory")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"{path!r} can't be written: permission denied")


def write(path: str, text: str) -> None:
    """Write a file, or to standard output for ``-``.

    Raises:
        ConfigError: it can't be written.
    """
    try:
        if path == "-":
            print(text, end="", flush=True)
        else:
            Path(path).write_text(text, encoding="utf-8")
    except OSError as exc:
        if path == "-":  # what is left of the text must not fail once more at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(exc, BrokenPipeError):  # else nobody reads on, as behind `| head`
            raise ConfigError(f"{path!r} can't be written: {exc.strerror}") from exc


def read(path: str) -> Result:
    """Read the JSON of a run.

    Raises:
        ConfigError: it can't be read, or is none.
    """
    try:
        return Result.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as exc:
        raise ConfigError(f"{path!r} can't be read: {exc.strerror}") from exc
    except ConfigError as exc:
        raise ConfigError(f"{path!r}: {exc}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path!r} is not the --json of a run: {exc}") from exc


# -- the other commands ----------------------------------------------------------------------


def command_calibrate(arguments: Sequence[str]) -> int:
    """``load calibrate``: what this machine can do (L6)."""
    parser = Parser(
        prog=f"{_PROGRAM} calibrate",
        description="Show the ceiling of this machine, against a server that does nothing.",
    )
    parser.add_argument("--duration", type=value(duration), default=2.0, metavar="T")
    parser.add_argument("--loop", choices=LOOPS, default="auto")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    check_writable(options.json)
    found = in_loop(options.loop, lambda stop: calibrate(options.duration, stop))
    tell(options.json, found.text(), found.as_json)
    return INTERRUPTED if found.interrupted else PASSED


def command_find_max(arguments: Sequence[str]) -> int:
    """``load find-max``: the highest rate that keeps an objective."""
    parser = Parser(
        prog=f"{_PROGRAM} find-max",
        description="Search the highest rate at which every objective holds.",
    )
    add_common(parser)
    add = parser.add_argument
    add("--slo", type=value(Threshold.parse), action="append", required=True, metavar="COND")
    add("--start", type=value(rate), default=100.0, metavar="N", help="the first rate")
    add("--limit", type=value(rate), default=200_000.0, metavar="N", help="the highest rate")
    add("--trial", type=value(duration), default=5.0, metavar="T", help="of each run")
    add("--precision", type=float, default=0.05, metavar="SHARE", help="of the answer")
    add("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    check_writable(options.json)
    plan = plan_of(options, rate=options.start, duration=options.trial)
    found = in_loop(
        options.loop,
        lambda stop: find_maximum(
            plan,
            options.slo,
            limit=options.limit,
            precision=options.precision,
            stop=stop,
            tell=lambda line: write("-", f"{line}\n") if options.json != "-" else None,
        ),
    )
    tell(options.json, found.text(), found.as_json)
    if found.interrupted:
        return INTERRUPTED
    return MISSED if found.rate is None else PASSED


def command_compare(arguments: Sequence[str]) -> int:
    """``load compare a.json b.json``: is the second run worse?"""
    parser = Parser(
        prog=f"{_PROGRAM} compare",
        description="Compare two runs; what repeated runs differ by among themselves is noise.",
        epilog="Exit codes: 0 not worse, 1 worse, 2 wrong use, 3 a run is INVALID.",
    )
    parser.add_argument("base", help="JSON of the run to compare with")
    parser.add_argument("new", help="JSON of the run to judge")
    parser.add_argument(
        "--noise", nargs="+", default=[], metavar="JSON", help="more runs like the base"
    )
    parser.add_argument("--at-least", type=float, default=0.05, metavar="SHARE", help="to matter")
    options = parser.parse_args(arguments)
    base, new = read(options.base), read(options.new)
    found = compare(base, new, [read(path) for path in options.noise], options.at_least)
    write("-", found.text())
    if not (base.valid and new.valid):
        return INVALID
    return MISSED if found.worse else PASSED


def command_merge(arguments: Sequence[str]) -> int:
    """``load merge a.json b.json …``: parts of a run that were made at the same time (L9)."""
    parser = Parser(
        prog=f"{_PROGRAM} merge",
        description="Add runs that were made at the same time, bucket by bucket.",
    )
    parser.add_argument("part", nargs="+", help="JSON of a run")
    parser.add_argument("--json", metavar="FILE", help="- for standard output, instead of text")
    parser.add_argument("--csv", metavar="FILE")
    parser.add_argument("--html", metavar="FILE")
    options = parser.parse_args(arguments)
    result = merge([read(path) for path in options.part])
    write_reports(result, options)
    if not result.valid:
        return INVALID
    return PASSED if result.passed else MISSED


COMMANDS = {
    "calibrate": command_calibrate,
    "find-max": command_find_max,
    "compare": command_compare,
    "merge": command_merge,
}
