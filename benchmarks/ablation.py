"""What each feature of the pool costs: the same work with it and without."""

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.bare import QueuePool
from benchmarks.leases import SIZE, Plain, contend, filled, lease_and_release
from benchmarks.pairing import Case, Side
from benchmarks.peers import missing
from pulsar_client import AbstractClient, Pool

__all__ = ["ablation"]

WITHOUT = "without"


async def nothing(connection: Any) -> None:
    """A check, a reset or an on_connect that has nothing to do."""


async def make() -> Plain:
    return Plain()


#: Options that are off by default, switched on so that they never strike.
OPTIONS: dict[str, dict[str, Any]] = {
    "min_size": {"min_size": SIZE},
    "max_waiting": {"max_waiting": 10**6},
    "max_idle": {"max_idle": 3600.0},
    "max_age": {"max_age": 36000.0},
    "max_uses": {"max_uses": 10**9},
    "lifo=False": {"lifo": False},
    "on_connect": {"on_connect": nothing},
    "check": {"check": nothing},
    "reset": {"reset": nothing},
    "leak_after": {"leak_after": 3600.0},
    "share=16": {"share": 16},
    "queue_target": {"queue_target": 60.0},
}
#: Those that concern the queue: measured with callers that wait, too.
OF_THE_QUEUE = ("max_waiting", "lifo=False", "check", "share=16", "queue_target")


def hooked(pool: Pool) -> None:
    def note(pool: Pool, exc: object = None, **kw: object) -> None: ...

    pool.bind_event("on_lease", note)
    pool.bind_event("on_release", note)


def expired(pool: Pool) -> None:
    pool.expire(lambda connection: False)


def with_opentelemetry(pool: Pool) -> None:
    sdk: Any = importlib.import_module("opentelemetry.sdk.metrics")
    export: Any = importlib.import_module("opentelemetry.sdk.metrics.export")
    ours: Any = importlib.import_module("pulsar_client.metrics.opentelemetry")
    provider = sdk.MeterProvider(
        metric_readers=[export.InMemoryMetricReader()], shutdown_on_exit=False
    )
    ours.PoolInstruments(meter_provider=provider).add(pool)


def with_prometheus(pool: Pool) -> None:
    ours: Any = importlib.import_module("pulsar_client.metrics.prometheus")
    ours.PoolCollector(pool)


#: What is done to a pool after it was made, and the module it needs.
DEEDS: dict[str, tuple[str, Callable[[Pool], None]]] = {
    "hooks on_lease, on_release": ("pulsar_client", hooked),
    "expire() once": ("pulsar_client", expired),
    "OpenTelemetry": ("opentelemetry.sdk.metrics", with_opentelemetry),
    "Prometheus": ("prometheus_client", with_prometheus),
}


def compare(name: str, work: str, loop: str, with_it: Side, without: Side) -> Case:
    return Case(
        "A",
        f"{name}, {work}",
        loop,
        "with",
        sides={"with": with_it, WITHOUT: without},
        goals={WITHOUT: None},
    )


class Asked(Plain):
    """A connection that answers requests by itself."""

    __slots__ = ()
    requests_processed = 0

    async def request(self, message: Any) -> Any:
        return message


def requests(ask: Callable[[Any], Any], operations: int) -> Side:
    """A request on a leased connection as an operation like any other."""

    class Asking:
        async def __aenter__(self) -> None:
            await ask(b"")

        async def __aexit__(self, *exc_info: object) -> None: ...

    return lease_and_release(Asking, operations)


async def retries(stack: AsyncExitStack, loop: str, operations: int) -> Case:
    """``client.request``, which can make a request again, against the same by hand."""

    async def connect() -> Asked:
        return Asked()

    pool = await stack.enter_async_context(filled(connect, SIZE))
    client = AbstractClient()
    client.pool = pool

    async def by_hand(message: Any) -> Any:
        async with pool.connect() as lease:
            return await lease.connection.request(message)

    return compare(
        "client.request",
        "alone",
        loop,
        requests(client.request, operations),
        requests(by_hand, operations),
    )


@asynccontextmanager
async def ablation(loop: str, operations: int) -> AsyncIterator[list[Case]]:
    """Each feature alone: on against off; and first all of them off against a bare queue."""
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(filled(make, SIZE))
        queue = QueuePool([Plain() for _ in range(SIZE)])
        alone = lease_and_release(plain.connect, operations)
        crowded = contend(plain.connect, 100, operations)
        cases = [
            Case(
                "A",
                f"everything off, {work}",
                loop,
                "with",
                sides={"with": ours, "bare queue": other},
                goals={"bare queue": None},
            )
            for work, ours, other in (
                ("alone", alone, lease_and_release(queue.lease, operations)),
                ("100 tasks", crowded, contend(queue.lease, 100, operations)),
            )
        ]
        for name, options in OPTIONS.items():
            pool = await stack.enter_async_context(filled(make, SIZE, **options))
            cases.append(
                compare(name, "alone", loop, lease_and_release(pool.connect, operations), alone)
            )
            if name in OF_THE_QUEUE:
                with_it = contend(pool.connect, 100, operations)
                cases.append(compare(name, "100 tasks", loop, with_it, crowded))
        for name, (module, deed) in DEEDS.items():
            why = missing(module)
            if why is not None:
                cases[0].notes.append(f"A without {name}: {why}")
                continue
            pool = await stack.enter_async_context(filled(make, SIZE))
            deed(pool)
            cases.append(
                compare(name, "alone", loop, lease_and_release(pool.connect, operations), alone)
            )
        cases.append(await retries(stack, loop, operations))
        yield cases
