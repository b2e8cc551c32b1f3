"""Ask a server for names: ``python -m examples.dns_client --server 127.0.0.1:53 NAME …``.

Exit codes: 0 every name has an answer; 1 one has none; 2 wrong use.
"""

import argparse
import asyncio
import math
import sys
from collections.abc import Sequence
from typing import Any

import dns.rdatatype
from dns.exception import DNSException

from examples.dns_client.resolver import Resolver
from pulsar_client import PulsarClientError
from pulsar_client.addresses import parse_address

#: Queries in flight: a time-out is for the server, not for the names that are asked for before.
AT_ONCE = 200


async def ask(server: Any, names: Sequence[str], rdtype: str, timeout: float) -> bool:
    """Ask for many names at once and print what comes; False if one has no answer."""
    room = asyncio.Semaphore(AT_ONCE)

    async def resolve(name: str) -> list[str]:
        async with room:
            return await resolver.resolve(name, rdtype)

    async with Resolver(server, timeout=timeout) as resolver:
        answers = await asyncio.gather(*map(resolve, names), return_exceptions=True)
    good = True
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, PulsarClientError | OSError | DNSException):
            print(f"{name}: {answer}", file=sys.stderr)
            good = False
        elif isinstance(answer, BaseException):
            raise answer
        elif not answer:
            print(f"{name}: no {rdtype} records", file=sys.stderr)
            good = False
        else:
            for record in answer:
                print(f"{name} {rdtype} {record}")
    return good


def seconds(text: str) -> float:
    """The value of ``--timeout``."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and ask; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.dns_client", description="Ask a DNS server."
    )
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--server", default="127.0.0.1:53", help="HOST:PORT (%(default)s)")
    parser.add_argument("--type", default="A", help="A, AAAA, TXT, … (%(default)s)")
    parser.add_argument("--timeout", type=seconds, default=5.0, help="seconds (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        server = parse_address(options.server)
    except ValueError as exc:
        parser.error(str(exc))
    if isinstance(server, str):
        parser.error(f"--server {options.server}: expected HOST:PORT")
    try:
        dns.rdatatype.from_text(options.type)
    except (DNSException, ValueError):
        parser.error(f"--type {options.type}: no such type of record")
    good = asyncio.run(ask(server, options.names, options.type.upper(), options.timeout))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
