"""The echo server: ``python -m examples.echo.manage [HOST:PORT | unix:PATH]``.

Exit codes: 0 ended with Ctrl-C; 2 wrong use; 3 the address can't be served.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from examples.echo.client import Echo
from examples.echo.protocol import EchoProtocol, EchoServerProtocol
from pulsar_client import Connection, TcpServer
from pulsar_client.addresses import format_address, parse_address

__all__ = ["Echo", "EchoProtocol", "EchoServerProtocol", "server"]


def server(address: Any = ("127.0.0.1", 0), **kw: Any) -> TcpServer:
    """An echo server: ``async with server(("127.0.0.1", 8060)) as running: …``.

    Args:
        address: where to listen; a free loopback port by default.
        **kw: see :class:`TcpServer`.
    """
    return TcpServer(partial(Connection, EchoServerProtocol), address=address, **kw)


async def serve(address: Any) -> None:
    """Serve until cancelled; then let the requests in flight end."""
    async with server(address) as running:
        for bound in running.addresses:
            text = format_address(bound)
            text = text if text.startswith("unix:") else f"tcp://{text}"
            print(f"listening on {text}", file=sys.stderr, flush=True)
        await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and serve until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.echo.manage", description="Serve echoes until Ctrl-C."
    )
    parser.add_argument(
        "address", nargs="?", default="127.0.0.1:8060", help="HOST:PORT or unix:PATH (%(default)s)"
    )
    try:
        address = parse_address(parser.parse_args(arguments).address)
    except ValueError as exc:
        parser.error(str(exc))
    try:
        asyncio.run(serve(address))
    except KeyboardInterrupt:
        return 0
    except OSError as exc:
        print(f"can't serve: {exc}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
