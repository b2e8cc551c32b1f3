"""Many datagrams from many tasks, every answer checked: ``python -m examples.echo_udp``.

Exit codes: 0 all answers are right; 1 a wrong answer, or none; 2 wrong use.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from time import perf_counter

from examples.echo.__main__ import (
    Result,
    WrongAnswerError,
    first,
    loop_factory,
    message,
    number_up_to,
    report,
)
from examples.echo_udp.client import Echo
from examples.echo_udp.protocol import MAX_DATAGRAM
from examples.echo_udp.server import server
from pulsar_client import PulsarClientError


async def run(requests: int, tasks: int, pool_size: int, size: int) -> Result:
    """Start a server, send it ``requests`` messages of ``size`` bytes, check the answers.

    Raises:
        WrongAnswerError: an answer is not what was sent.
        PulsarClientError: a datagram was lost.
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

    async with server() as running, Echo(running.address, pool_size, timeout=30.0) as echo:
        started = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(work(echo))
        result.seconds = perf_counter() - started
        result.opened = echo.pool.stats().opened
        result.pool = repr(echo.pool)
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    many = number_up_to(10_000_000)
    parser = argparse.ArgumentParser(
        prog="python -m examples.echo_udp",
        description="Start a UDP echo server, send it datagrams from a pool, check the answers.",
    )
    parser.add_argument("--requests", type=many, default=5000, help="how many (%(default)s)")
    parser.add_argument("--tasks", type=many, default=50, help="that send them (%(default)s)")
    parser.add_argument(
        "--pool-size", type=many, default=10, help="endpoints at most (%(default)s)"
    )
    parser.add_argument(
        "--size",
        type=number_up_to(MAX_DATAGRAM - 1),
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
        print(report(result).replace("connections opened", "endpoints opened"))
        return_code = 0
    return return_code


if __name__ == "__main__":
    sys.exit(main())
