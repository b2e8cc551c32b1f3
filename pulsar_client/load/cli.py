"""``python -m pulsar_client load``: the command line, and its exit codes.

0 passed, 1 a threshold was missed, 2 wrong use, 3 the run is INVALID, 4 the target can't be
reached at the start, 130 interrupted.
"""

import argparse
import asyncio
import contextlib
import gc
import importlib.util
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pulsar_client.exceptions import ConfigError
from pulsar_client.load import quantities
from pulsar_client.load.plan import Limits, Plan
from pulsar_client.load.result import Result
from pulsar_client.load.running import run
from pulsar_client.load.schedule import Stage
from pulsar_client.load.session import Stop, TargetUnreachable
from pulsar_client.load.text_report import text_report
from pulsar_client.load.thresholds import Threshold

__all__ = ["main"]

PASSED, MISSED, USAGE, INVALID, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

_T = TypeVar("_T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run, report; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = run_parser()
    options = parser.parse_args(arguments)
    try:
        plan = plan_of(options)
        thresholds = [Threshold.parse(text) for text in options.threshold]
    except ConfigError as exc:
        parser.error(str(exc))
    return carry_out(plan, thresholds, options)


def carry_out(plan: Plan, thresholds: list[Threshold], options: argparse.Namespace) -> int:
    """Run a plan, write the reports, and give the exit code."""
    stop = Stop()
    try:
        with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
            result = runner.run(_interruptible(plan, thresholds, stop))
        write_reports(result, options)
    except TargetUnreachable as exc:
        print(f"unreachable: {exc}", file=sys.stderr)
        return UNREACHABLE
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    return exit_code(result)


def exit_code(result: Result) -> int:
    """Give the exit code of a result: that it was interrupted or is invalid says more."""
    if result.interrupted:
        return INTERRUPTED
    if not result.valid:
        return INVALID
    return PASSED if result.passed else MISSED


async def _interruptible(plan: Plan, thresholds: list[Threshold], stop: Stop) -> Result:
    """Run a plan; SIGINT stops it and lets the report be written (L18)."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):
        loop.add_signal_handler(signal.SIGINT, stop.request)
        loop.add_signal_handler(signal.SIGTERM, stop.request)
    # What was made until now is never garbage: a collection in the run need not look at it.
    gc.collect()
    gc.freeze()
    return await run(plan, thresholds=thresholds, stop=stop)


def write_reports(result: Result, options: argparse.Namespace) -> None:
    """Print the text, and write the files that were asked for."""
    print(text_report(result), end="", flush=True)
    if options.json:
        _write(options.json, json.dumps(result.as_json(), indent=1, allow_nan=False) + "\n")


def _write(path: str, text: str) -> None:
    if path == "-":
        print(text, end="", flush=True)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path!r} can't be written: {exc.strerror}") from exc


# -- the command line ------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose help is as wide as a line of this file."""

    def __init__(self, **kw: Any) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kw)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the long usage, and exit with 2."""
        self.exit(USAGE, f"{self.prog}: error: {message}\n(--help shows the options)\n")


def value(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """Make a reader of quantities one of argparse."""

    def convert(text: str) -> _T:
        try:
            return read(text)
        except ConfigError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return convert


def stage(text: str) -> Stage:
    """Read a stage: ``30s:100`` or a ramp, ``30s:100..1000``.

    Raises:
        ConfigError: it is something else.
    """
    seconds, colon, rates = text.partition(":")
    first, dots, last = rates.partition("..")
    if not colon or not first or (dots and not last):
        raise ConfigError(f"{text!r} is no stage; expected 30s:1000 or a ramp, 30s:100..1000")
    to = quantities.rate(last) if dots else None
    return Stage(quantities.duration(seconds), quantities.rate(first), to)


def run_parser() -> argparse.ArgumentParser:
    """The options of a run."""
    parser = Parser(
        prog="python -m pulsar_client load",
        description="Put load on a target and report what it does to its response times.",
        epilog="Exit codes: 0 passed, 1 threshold missed, 2 wrong use, 3 INVALID, "
        "4 unreachable at the start, 130 interrupted.",
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="TARGET|SCENARIO.py",
        help="tcp://HOST:PORT, tls://…, udp://…, unix:///PATH, and/or a file with scenarios",
    )
    add_model(parser)
    add_connections(parser)
    add_output(parser)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options of what is sent, and when."""
    seconds, rate = value(quantities.duration), value(quantities.rate)
    group = parser.add_argument_group("requests")
    add = group.add_argument
    add("--protocol", help="echo, line, http, redis-ping or module:Consumer")
    add("--rate", type=rate, metavar="N", help="requests a second: an open loop")
    add("--duration", type=seconds, default=10.0, metavar="T", help="measured time")
    add("--warmup", type=seconds, default=0.0, metavar="T", help="before it, in no number")
    add("--stage", type=value(stage), action="append", metavar="T:N..N", help="of an open loop")
    add("--arrivals", choices=("constant", "poisson"), default="constant")
    add("--seed", type=int, default=1, help="of everything random")
    add("--in-flight", type=int, metavar="N", help="a closed loop; with --rate a cap")
    add("--on-full", choices=("queue", "drop"), default="queue", help="at the cap")
    add("--size", type=value(quantities.size), default=64, metavar="B", help="of a message")
    add("--think", type=seconds, default=0.0, metavar="T", help="pause of a closed loop's callers")
    add("--timeout", type=seconds, default=10.0, metavar="T", help="of one request")
    add("--i-own-this-target", action="store_true", help="needed beyond private networks")


def add_connections(parser: argparse.ArgumentParser) -> None:
    """Options of the connections and the process."""
    seconds = value(quantities.duration)
    group = parser.add_argument_group("connections")
    add = group.add_argument
    add("--connections", type=int, default=10, metavar="N", help="size of the pool")
    add("--ca-file", metavar="PEM", help="authorities for tls://")
    add("--insecure", action="store_true", help="do not verify the certificate")
    add("--loop", choices=("auto", "asyncio", "uvloop"), default="auto")
    limits = parser.add_argument_group("the run is INVALID beyond")
    default = Limits()
    limits.add_argument("--max-lateness", type=seconds, default=default.lateness, metavar="T")
    limits.add_argument("--max-loop-lag", type=seconds, default=default.loop_lag, metavar="T")
    limits.add_argument("--max-cpu", type=float, default=default.cpu, metavar="0..1")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Options of the reports."""
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--json", metavar="FILE", help="write the result there; - for standard output")
    add("--threshold", action="append", default=[], metavar="COND", help="p99(response)<20ms, …")


def plan_of(options: argparse.Namespace) -> Plan:
    """Make the plan of a command line.

    Raises:
        ConfigError: it makes no sense.
    """
    files = [word for word in options.what if word.endswith(".py")]
    targets = [word for word in options.what if word not in files]
    if len(files) > 1 or len(targets) > 1:
        raise ConfigError(f"{' '.join(options.what)!r}: at most one target and one scenario file")
    return Plan(
        target=targets[0] if targets else None,
        scenario_file=files[0] if files else None,
        protocol=options.protocol,
        rate=options.rate,
        stages=tuple(options.stage or ()),
        arrivals=options.arrivals,
        seed=options.seed,
        in_flight=options.in_flight,
        on_full=options.on_full,
        duration=options.duration,
        warmup=options.warmup,
        connections=options.connections,
        timeout=options.timeout,
        size=options.size,
        think=options.think,
        ca_file=options.ca_file,
        insecure=options.insecure,
        limits=Limits(
            lateness=options.max_lateness, loop_lag=options.max_loop_lag, cpu=options.max_cpu
        ),
        own_target=options.i_own_this_target,
    )


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Find what makes the event loop called `name`; None for asyncio's own.

    Raises:
        ConfigError: uvloop is wanted and not installed.
    """
    present = importlib.util.find_spec("uvloop") is not None
    if name == "asyncio" or (name == "auto" and not present):
        return None
    if not present:
        raise ConfigError("--loop uvloop: uvloop is not installed")
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
