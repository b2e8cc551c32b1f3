"""What the compared servers serve: an ASGI application whose answer is the worker's process id.

``/`` answers at once, ``/slow`` after a second, ``/hang`` never, the loop going on, ``/block``
never, the loop being stuck.  A worker that starts, and a request that does not end at once, is a
line in the file that ``SERVERS_RECORD`` names.  With ``SERVERS_DIE_AFTER`` (seconds) every worker
dies so long after its start.
"""

import asyncio
import os
import threading
import time
from typing import Any

__all__ = ["app", "block", "hang", "record", "slow", "started"]

#: Longer than any measurement, so that nothing is left if one is cut.
FOR_EVER = 600.0


def record(what: str) -> None:
    """Add a line to the record: what happens, and in which process."""
    path = os.environ.get("SERVERS_RECORD")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{what} {os.getpid()}\n")


def started() -> None:
    """A worker has started."""
    record("boot")
    delay = os.environ.get("SERVERS_DIE_AFTER")
    if delay:
        timer = threading.Timer(float(delay), os._exit, (7,))
        timer.daemon = True
        timer.start()


async def slow() -> None:
    """A handler that takes a second."""
    record("slow")
    await asyncio.sleep(1.0)


async def hang() -> None:
    """A handler that does not end."""
    record("hang")
    await asyncio.sleep(FOR_EVER)


def block() -> None:
    """A handler that does not give the loop back."""
    record("block")
    time.sleep(FOR_EVER)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The application."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                started()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/slow":
        await slow()
    elif scope["path"] == "/hang":
        await hang()
    elif scope["path"] == "/block":
        block()
    body = b"%d" % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
