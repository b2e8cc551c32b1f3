"""The line client talks to the line server: ``python -m examples.line``."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from examples.line import LineClient, LineError, LineServer


async def demonstrate() -> None:
    """Show what the client does, errors included."""
    async with (
        LineServer(max_keys=1) as server,
        LineClient(server.address, pool_size=2) as client,
    ):
        await client.set("greeting", "Hello, world!")
        print("get greeting:", await client.get("greeting"))
        print("get nothing:", await client.get("nothing"))
        try:
            await client.set("another", "value")
        except LineError as exc:
            print("the server refuses:", exc)
        try:
            await client.set("greeting", "two\nlines")
        except ValueError as exc:
            print("the client refuses:", exc)
        print("the connection goes on:", client.pool)
        await client.quit()
        print("after quit:", client.pool)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; wrong use ends with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.line", description="A key-value client and server, end to end."
    )
    parser.parse_args(arguments)
    asyncio.run(demonstrate())
    return 0


if __name__ == "__main__":
    sys.exit(main())
