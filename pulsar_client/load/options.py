"""The options of the command line, and the plan that they make."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from pulsar_client.exceptions import ConfigError
from pulsar_client.load import quantities
from pulsar_client.load.event_loops import LOOPS
from pulsar_client.load.faults import Fault
from pulsar_client.load.plan import Limits, Plan
from pulsar_client.load.schedule import Stage
from pulsar_client.load.thresholds import Threshold

__all__ = ["Parser", "add_common", "add_run", "plan_of", "value"]

_T = TypeVar("_T")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong without the long usage."""

    def __init__(self, **kw: Any) -> None:
        super().__init__(formatter_class=_Formatter, **kw)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n(--help shows the options)\n")


def value(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """Make a reader that raises ConfigError one of argparse."""

    def convert(text: str) -> _T:
        try:
            return read(text)
        except ConfigError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return convert


_seconds = value(quantities.duration)
_rate = value(quantities.rate)
_size = value(quantities.size)
_threshold = value(Threshold.parse)


def stage(text: str) -> Stage:
    """Read a stage: ``30s:1000`` or a ramp, ``30s:100..1000``.

    Raises:
        ConfigError: it is something else.
    """
    seconds, colon, rates = text.partition(":")
    first, dots, last = rates.partition("..")
    if not colon or not first or (dots and not last):
        raise ConfigError(f"{text!r} is no stage; expected 30s:1000 or a ramp, 30s:100..1000")
    to = quantities.rate(last) if dots else None
    return Stage(quantities.duration(seconds), quantities.rate(first), to)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of one run: how many requests, when, and what is to come out."""
    group = parser.add_argument_group("how much")
    add = group.add_argument
    add("--rate", type=_rate, metavar="N", help="requests a second: an open loop")
    add("--duration", type=_seconds, metavar="T", help="time measured (default: 10s)")
    add(
        "--stage",
        type=value(stage),
        action="append",
        metavar="T:N[..N]",
        help="instead of --rate and --duration, and repeated: 30s:1000, or a ramp 30s:100..1000",
    )
    add("--in-flight", type=int, metavar="N", help="a closed loop; with a rate the cap")
    add("--on-full", choices=("queue", "drop"), default="queue", help="at the cap")
    add(
        "--think", type=_seconds, default=0.0, metavar="T", help="pause of a closed loop's callers"
    )
    output = parser.add_argument_group("output")
    add = output.add_argument
    add(
        "--threshold",
        type=_threshold,
        action="append",
        default=[],
        metavar="COND",
        help="p99(response)<20ms, errors<0.1%%, rate>=0.99*target; may be repeated",
    )
    add("--json", metavar="FILE", help="the result; - for standard output, instead of text")
    add("--csv", metavar="FILE", help="the course of the run")
    add("--html", metavar="FILE", help="one page with charts")
    add("--prometheus", metavar="HOST:PORT", help="serve the numbers there while it runs")
    add("--quiet", action="store_true", help="plain lines, also on a terminal")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command with a target has."""
    parser.add_argument(
        "what",
        nargs="+",
        metavar="TARGET|SCENARIO.py",
        help="tcp://HOST:PORT, tls://…, udp://…, unix:///PATH, and/or a file with scenarios",
    )
    group = parser.add_argument_group("requests")
    add = group.add_argument
    add("--protocol", help="echo, line, http, redis-ping or module:Consumer")
    add("--warmup", type=_seconds, default=0.0, metavar="T", help="before, and in no number")
    add("--arrivals", choices=("constant", "poisson"), default="constant")
    add("--seed", type=int, default=1, help="of everything random")
    add("--size", type=_size, default=64, metavar="B", help="bytes of a message")
    add("--timeout", type=_seconds, default=10.0, metavar="T", help="of one request")
    add("--i-own-this-target", action="store_true", help="needed beyond private networks")
    group = parser.add_argument_group("connections")
    add = group.add_argument
    add("--connections", type=int, default=10, metavar="N", help="size of the pool")
    add("--pipeline", type=int, default=1, metavar="N", help="in flight on one connection")
    add("--requests-per-connection", type=int, metavar="N", help="then it is closed")
    add("--connection-age", type=_seconds, metavar="T", help="then it is closed")
    add("--ca-file", metavar="PEM", help="authorities for tls://")
    add("--insecure", action="store_true", help="do not verify the certificate")
    add(
        "--fault",
        type=value(Fault.parse),
        action="append",
        default=[],
        metavar="FAULT",
        help="stall@4s+1s, reset@6s, latency=20ms@8s+2s, bandwidth=64KiB@10s+2s",
    )
    group = parser.add_argument_group("processes")
    add = group.add_argument
    add("--workers", type=int, default=1, metavar="N", help="processes that share the load")
    add("--engine", metavar="dask://HOST:PORT", help="run the workers on a Dask cluster")
    add("--loop", choices=LOOPS, default="auto", help="event loop")
    limits = parser.add_argument_group("the run is INVALID beyond")
    default = Limits()
    add = limits.add_argument
    add("--max-lateness", type=_seconds, default=default.lateness, metavar="T", help="p99")
    add("--max-loop-lag", type=_seconds, default=default.loop_lag, metavar="T", help="p99")
    add("--max-cpu", type=float, default=default.cpu, metavar="SHARE", help="of one core")


def plan_of(options: argparse.Namespace, **changed: Any) -> Plan:
    """Make the plan of a command line.

    Args:
        options: what was parsed.
        changed: fields of the plan that come from elsewhere.

    Raises:
        ConfigError: it makes no sense.
    """
    files = [word for word in options.what if word.endswith(".py")]
    targets = [word for word in options.what if word not in files]
    if len(files) > 1 or len(targets) > 1:
        raise ConfigError(f"{' '.join(options.what)!r}: at most one target and one scenario file")
    values: dict[str, Any] = {
        "target": targets[0] if targets else None,
        "scenario_file": files[0] if files else None,
        "faults": tuple(options.fault),
        "loop_name": options.loop,
        "limits": Limits(
            lateness=options.max_lateness, loop_lag=options.max_loop_lag, cpu=options.max_cpu
        ),
        "own_target": options.i_own_this_target,
    }
    same = (
        *("protocol", "warmup", "arrivals", "seed", "size", "timeout", "connections", "pipeline"),
        *("requests_per_connection", "connection_age", "ca_file", "insecure", "workers", "engine"),
    )
    values |= {name: getattr(options, name) for name in same}
    for name in ("rate", "duration", "in_flight", "on_full", "think"):
        if hasattr(options, name):
            values[name] = getattr(options, name)
    if getattr(options, "stage", None):
        values["stages"] = tuple(options.stage)
    return Plan(**{**values, **changed})
