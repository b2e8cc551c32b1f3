"""The server as a command: ``python -m examples.redis_server --port 6379``.

Exit codes: 0 ended with Ctrl-C; 2 wrong use; 3 the address can't be served.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.redis_server.server import RedisServer
from pulsar_client.addresses import format_address


async def serve(address: Any, password: str | None) -> None:
    """Serve until cancelled; then let the commands in flight end."""
    async with RedisServer(address, password=password) as running:
        for bound in running.addresses:
            print(f"listening on tcp://{format_address(bound)}", file=sys.stderr, flush=True)
        await asyncio.Event().wait()


def _port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number")
    return port


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and serve until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.redis_server", description="Serve Redis clients until Ctrl-C."
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=_port, default=6379, help="0 for any (%(default)s)")
    parser.add_argument("--password-file", type=Path, help="a file whose first line is a password")
    options = parser.parse_args(arguments)
    password = None
    if options.password_file is not None:
        try:
            password = options.password_file.read_text(encoding="utf-8").partition("\n")[0]
        except OSError as exc:
            parser.error(str(exc))
    try:
        asyncio.run(serve((options.host, options.port), password))
    except KeyboardInterrupt:
        return 0
    except OSError as exc:
        print(f"can't serve: {exc}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
