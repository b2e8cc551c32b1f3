"""Workers on the machines of a Dask cluster.

Dask places them, carries their messages and sees them die; the load itself is made in a clean
child process of each slot, whose event loop shares no interpreter with Dask's own threads.
"""

import asyncio
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.plan import Plan

__all__ = ["dask_links"]

#: Seconds that a scheduler may take to answer.
_CONNECT_WITHIN = 10.0
#: Behind the last message to a slot.
_END = ""


def slot(run: str, index: int, loop: str) -> str:
    """Run one child process in a slot of the cluster, and carry its messages; called by Dask.

    Args:
        run: the name of the run, which its topics and queues begin with.
        index: of the share.
        loop: which event loop the child uses.

    Returns:
        How it ended.
    """
    from distributed import Queue, get_client, get_worker

    worker, client = get_worker(), get_client()
    inbox = Queue(f"{run}-{index}", client=client)
    child = subprocess.Popen(
        [sys.executable, "-m", "pulsar_client.load.worker_process", loop],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    carrier = threading.Thread(target=_carry_in, args=(inbox, child.stdin), daemon=True)
    carrier.start()
    try:
        for line in child.stdout:
            worker.log_event(run, [index, line.decode()])
        worker.log_event(run, [index, None])
        return f"exit code {child.wait()}"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        inbox.put(_END)
        carrier.join()
        child.stdin.close()


def _carry_in(inbox: Any, pipe: Any) -> None:
    """Carry messages to the child, until there is an end of them."""
    # Without a time-out: the scheduler takes each that passes for an error worth a traceback.
    while line := inbox.get():
        try:
            pipe.write(line.encode())
            pipe.flush()
        except OSError:
            continue  # the child is gone; the end of the messages is to come


class SlotLink:
    """A line to the child process of one slot.

    Args:
        inbox: the queue that the slot reads.
        future: the slot's task.
    """

    def __init__(self, inbox: Any, future: Any) -> None:
        self._inbox = inbox
        self._future = future
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def heard(self, line: str | None) -> None:
        """Take a line that the child wrote; None when it has ended."""
        self._messages.put_nowait(None if line is None else json.loads(line))

    async def send(self, message: dict[str, Any]) -> None:
        """Put a line into the slot's queue."""
        await self._inbox.put(json.dumps(message) + "\n")

    async def receive(self) -> dict[str, Any] | None:
        """Wait for the child's next line; None when it, or its slot, is gone."""
        message = asyncio.ensure_future(self._messages.get())
        gone = asyncio.ensure_future(self._future.result())
        try:
            await asyncio.wait((message, gone), return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                return message.result()
            # The slot's last words may still be under way.
            await asyncio.wait([message], timeout=1.0)
            return message.result() if message.done() else None
        finally:
            for waiting in (message, gone):
                waiting.cancel()
            await asyncio.gather(message, gone, return_exceptions=True)

    def kill(self) -> None:
        """Give the slot's task up; the child ends with its queue."""
        self._messages.put_nowait(None)


@asynccontextmanager
async def dask_links(plan: Plan) -> AsyncIterator[list[SlotLink]]:
    """Start a child process in as many slots of a cluster as the plan has workers.

    Raises:
        ConfigError: ``distributed`` is not installed, the scheduler does not answer, or it has
            fewer workers than slots are wanted.
    """
    try:
        from distributed import Client, Queue
    except ImportError as exc:
        raise ConfigError(
            "--engine dask:// needs distributed, of the extra dask: "
            "pip install 'PATH/TO/CHECKOUT[dask]'"
        ) from exc
    assert plan.engine is not None
    address = "tcp://" + plan.engine.removeprefix("dask://")
    run = f"load-{uuid.uuid4().hex}"
    try:
        client = await Client(
            address, asynchronous=True, timeout=_CONNECT_WITHIN, set_as_default=False
        )
    except (OSError, TimeoutError) as exc:
        raise ConfigError(f"engine {plan.engine}: the scheduler does not answer: {exc}") from exc
    links: list[SlotLink] = []
    try:
        try:
            await client.wait_for_workers(1, timeout=_CONNECT_WITHIN)
        except TimeoutError:
            raise ConfigError(f"engine {plan.engine}: the scheduler has no workers") from None
        places = sorted(await client.ncores())
        client.subscribe_topic(run, lambda event: _deliver(links, event))
        futures = []
        for index in range(plan.workers):
            inbox = await Queue(f"{run}-{index}", client=client)
            future = client.submit(
                slot,
                *(run, index, plan.loop_name),
                workers=[places[index % len(places)]],
                allow_other_workers=False,
                retries=0,
                pure=False,
                key=f"{run}-{index}",
            )
            futures.append(future)
            links.append(SlotLink(inbox, future))
        yield links
        for link in links:
            await link.send({"type": "stop"})
        await client.cancel(futures)
    finally:
        await client.close()


def _deliver(links: list[SlotLink], event: tuple[float, Any]) -> None:
    _, (index, line) = event
    if index < len(links):
        links[index].heard(line)
