"""Send many metrics, add them up on the other side: ``python -m examples.statsd [NUMBER]``.

Exit codes: 0 all have arrived; 1 some are missing; 2 wrong use.
"""

import asyncio
import sys
from collections.abc import Sequence
from time import perf_counter

from examples.statsd.sender import Sender
from examples.statsd.server import Metrics, server


async def run(number: int) -> tuple[Metrics, int, float]:
    """Count up to ``number``; what arrived, what was dropped, and the seconds that it took."""
    metrics = Metrics()
    async with server(metrics) as running:
        began = perf_counter()
        async with Sender(running.address, prefix="demo", interval=0.01) as sender:
            for done in range(number):
                sender.count("requests")
                sender.timing("response", done % 100 / 1000)
                if done % 1000 == 0:
                    await asyncio.sleep(0)  # as any program does now and then
            sender.flush()
            seconds = perf_counter() - began
            await asyncio.sleep(0.05)
    return metrics, sender.dropped, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run, print; return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words in (["--help"], ["-h"]):
        print("usage: python -m examples.statsd [NUMBER]")
        return 0
    if len(words) > 1 or not all(word.isascii() and word.isdigit() for word in words):
        print("usage: python -m examples.statsd [NUMBER]", file=sys.stderr)
        return 2
    number = int(words[0]) if words else 20_000
    metrics, dropped, seconds = asyncio.run(run(number))
    counted = int(metrics.counters.get("demo.requests", 0))
    print(f"{2 * number} metrics in {seconds:.2f} s; {counted} of {number} counted")
    print(f"dropped by the sender: {dropped}")
    return 0 if counted == number else 1


if __name__ == "__main__":
    sys.exit(main())
