"""Many requests from many tasks through one pool, every answer checked: ``-m examples.echo``.

Exit codes: 0 all answers are right; 1 a wrong answer, or none; 2 wrong use.
"""

import argparse
import asyncio
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from examples.echo.manage import Echo, server
from examples.echo.protocol import MAX_MESSAGE
from pulsar_client import PulsarClientError

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class WrongAnswerError(Exception):
    """The server answered something else than what it was sent."""


@dataclass
class Result:
    """What a run found out."""

    seconds: float = 0.0
    #: Of each request, from asking the pool for a connection to the end of the answer.
    response_times: list[float] = field(default_factory=list)
    opened: int = 0
    pool: str = ""


def message(number: int, size: int) -> bytes:
    """A message of ``size`` bytes that tells the requests apart as far as they have room."""
    text = b"%d " % number
    return (text * (size // len(text) + 1))[:size]


async def run(requests: int, tasks: int, pool_size: int, size: int) -> Result:
    """Start a server, send it ``requests`` messages of ``size`` bytes, check the answers.

    Raises:
        WrongAnswerError: an answer is not what was sent.
        PulsarClientError: a connection was lost, or could not be opened.
    """
    result = Result()
    numbers = iter(range(requests))  # shared: each task takes the next as soon as it can

    async def work(echo: Echo) -> None:
        for number in numbers:
            sent = message(number, size)
            started = perf_counter()
            answer = await echo(sent)
            result.response_times.append(perf_counter() - started)
            if answer != sent:
                raise WrongAnswerError(
                    f"wrong answer to request {number}: {answer[:40]!r} instead of {sent[:40]!r}"
                )

    async with server() as running, Echo(running.address, pool_size) as echo:
        started = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(work(echo))
        result.seconds = perf_counter() - started
        result.opened = echo.pool.stats().opened
        result.pool = repr(echo.pool)
    return result


def report(result: Result) -> str:
    """Write a result for people."""
    times = sorted(result.response_times)

    def milliseconds(percent: int) -> str:
        # Nearest rank: the least time that so many percent of the requests did not exceed.
        return f"{times[max(0, -(-percent * len(times) // 100) - 1)] * 1000:.2f} ms"

    percentiles = ", ".join(f"p{percent} {milliseconds(percent)}" for percent in (50, 90, 99))
    rate = len(times) / result.seconds
    return (
        f"requests: {len(times)} in {result.seconds:.2f} s, {rate:.0f} per second\n"
        f"response time, the wait for a connection included: {percentiles}, "
        f"max {milliseconds(100)}\n"
        f"connections opened: {result.opened}\n"
        f"{result.pool}"
    )


def loop_factory(name: str) -> LoopFactory | None:
    """What makes the event loop called ``name``; None for asyncio's own.

    Raises:
        ValueError: uvloop is wanted and not installed.
    """
    if name == "asyncio" or (name == "auto" and importlib.util.find_spec("uvloop") is None):
        return None
    try:
        import uvloop
    except ImportError as exc:
        raise ValueError("uvloop is not installed") from exc
    factory: LoopFactory = uvloop.new_event_loop
    return factory


def number_up_to(most: int) -> Callable[[str], int]:
    """A reader of command line values from 1 to ``most``."""

    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return value

    return read


def parser() -> argparse.ArgumentParser:
    """The command line."""
    many = number_up_to(10_000_000)
    parser = argparse.ArgumentParser(
        prog="python -m examples.echo",
        description="Start an echo server, send it requests through a pool, check the answers.",
    )
    parser.add_argument("--requests", type=many, default=5000, help="how many (%(default)s)")
    parser.add_argument("--tasks", type=many, default=50, help="that send them (%(default)s)")
    parser.add_argument(
        "--pool-size", type=many, default=10, help="connections at most (%(default)s)"
    )
    parser.add_argument(
        "--size",
        type=number_up_to(MAX_MESSAGE),
        default=64,
        help="of a message, in bytes (%(default)s)",
    )
    parser.add_argument(
        "--loop",
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
        help="auto is uvloop where it is installed (%(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run, print; return the exit code."""
    command = parser()
    options = command.parse_args(arguments)
    try:
        factory = loop_factory(options.loop)
    except ValueError as exc:
        command.error(f"--loop {options.loop}: {exc}")
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(
                run(options.requests, options.tasks, options.pool_size, options.size)
            )
    except* (WrongAnswerError, PulsarClientError, OSError) as group:
        print(f"failed: {first(group)}", file=sys.stderr)
        return_code = 1
    else:
        print(report(result))
        return_code = 0
    return return_code


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of the exceptions: when one task fails, the others often do so as well."""
    found = group.exceptions[0]
    return first(found) if isinstance(found, BaseExceptionGroup) else found


if __name__ == "__main__":
    sys.exit(main())
