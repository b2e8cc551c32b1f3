"""What is there in the process now, and waiting, bounded, until something is so.

The tasks of the running loop and the open sockets are counted here for the tools that prove that
nothing is left behind.  This module does not know who left it.
"""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterable

__all__ = ["describe_sockets", "describe_tasks", "open_sockets", "other_tasks", "until"]

#: Turns of the loop before any time is allowed to pass.
TURNS = 10
#: Seconds between two looks at what nothing tells us of: the first, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05

_DESCRIPTORS = "/dev/fd"


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds.

    It is looked at after each of some turns of the loop, then whenever a task ends, and now and
    then: sockets close and peers leave without a word.

    Args:
        condition: the condition, called without arguments.
        seconds: how long to wait at most, on the loop's clock.

    Returns:
        Whether it holds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    for _ in range(TURNS):
        if condition():
            return True
        await asyncio.sleep(0)
    pause = FIRST_PAUSE
    while not condition():
        left = deadline - loop.time()
        if left <= 0:
            return False
        tasks = other_tasks()
        if tasks:
            await asyncio.wait(
                tasks, timeout=min(pause, left), return_when=asyncio.FIRST_COMPLETED
            )
        else:
            await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)
    return True


def other_tasks() -> set[asyncio.Task[object]]:
    """Return the pending tasks of the running loop without the one that asks."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def open_sockets() -> dict[tuple[int, int], int]:
    """Map the identity of each open socket of the process to a descriptor of it.

    It is empty where the system does not list descriptors.
    """
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
                status = os.fstat(int(name))
                if stat.S_ISSOCK(status.st_mode):
                    found[status.st_dev, status.st_ino] = int(name)
    return found


def describe_sockets(descriptors: Iterable[int]) -> list[str]:
    """Describe sockets for people to read: their kind, their descriptor, their two ends."""
    found = []
    for descriptor in descriptors:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
            try:
                peer = f" to {sock.getpeername()}"
            except OSError:
                peer = ""
            ends = f"{sock.getsockname()}{peer}"
            found.append(f"socket {descriptor} ({sock.family.name} {sock.type.name}) {ends}")
    return sorted(found)


def describe_tasks(tasks: Iterable[asyncio.Task[object]]) -> list[str]:
    """Describe tasks for people to read."""
    return sorted(repr(task) for task in tasks)
