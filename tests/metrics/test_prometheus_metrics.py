"""Pools in Prometheus: what its own client library prints, and reads back."""

import asyncio
import threading
import urllib.request
from typing import Any, ClassVar

import pytest
from metrics_kit import connect, live, make_pool

pytest.importorskip("prometheus_client", reason="needs prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from pulsar_client import Pool, PoolStats
from pulsar_client.metrics.prometheus import PoolCollector

PREFIX = "pulsar_client_pool_"


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Every sample but those of buckets: its name, the pool, and a state or cause."""
    return {
        (
            sample.name.removeprefix(PREFIX),
            *(sample.labels[key] for key in ("pool", "state", "cause") if key in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def scraped(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    return samples(generate_latest(registry).decode())


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


async def test_what_a_pool_does_is_reported(registry: CollectorRegistry) -> None:
    async with make_pool() as pool:
        registry.register(PoolCollector(pool))
        lease = await live(pool)
        found = scraped(registry)
        for name, value in {
            ("connections", "books", "idle"): 1,
            ("connections", "books", "used"): 1,
            ("connections", "books", "dialling"): 0,
            ("connections", "books", "closing"): 0,
            ("max_connections", "books"): 3,
            ("min_connections", "books"): 0,
            ("waiting", "books"): 0,
            ("leases_total", "books"): 4,
            ("timeouts_total", "books"): 1,
            ("overloads_total", "books"): 0,
            ("failed_dials_total", "books"): 0,
            ("leaked_leases_total", "books"): 0,
            ("opened_total", "books", "demand"): 3,
            ("closed_total", "books", "discarded"): 1,
            ("wait_seconds_count", "books"): 4,
            ("dial_seconds_count", "books"): 3,
        }.items():
            assert found[name] == value, name
        assert found["wait_seconds_sum", "books"] >= 0
        lease.close()


async def test_histograms_are_cumulative_and_keep_their_buckets(
    registry: CollectorRegistry,
) -> None:
    async with make_pool() as pool:
        registry.register(PoolCollector(pool))

        def buckets() -> dict[str, float]:
            return {
                sample.labels["le"]: sample.value
                for family in text_string_to_metric_families(generate_latest(registry).decode())
                for sample in family.samples
                if sample.name == f"{PREFIX}use_seconds_bucket"
            }

        empty = buckets()
        assert set(empty.values()) == {0}
        for _ in range(100):
            (await live(pool)).close()
        full = buckets()
        assert full.keys() == empty.keys()
        counts = list(full.values())
        assert counts == sorted(counts)
        # Of leases that nobody observes some are measured.
        assert 1 <= full["+Inf"] == counts[-1] <= 400


async def test_many_pools(registry: CollectorRegistry) -> None:
    async with make_pool("one") as one, make_pool("two") as two:
        collector = PoolCollector(one)
        registry.register(collector)
        collector.add(two, 'two "of them"')
        with pytest.raises(ValueError, match="is reported already, as 'one'"):
            collector.add(one)
        found = scraped(registry)
        assert ("waiting", "one") in found
        assert ("waiting", 'two "of them"') in found
        collector.remove(one)
        collector.remove(one)  # twice is once
        assert ("waiting", "one") not in scraped(registry)


async def test_a_closed_pool_is_forgotten(registry: CollectorRegistry) -> None:
    async with make_pool() as pool:
        registry.register(PoolCollector(pool))
        assert scraped(registry)
    assert not scraped(registry)


async def test_prefixes(registry: CollectorRegistry) -> None:
    """Two collectors in one registry need two; the registry says so."""
    registry.register(PoolCollector())
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(PoolCollector())
    registry.register(PoolCollector(prefix="other"))


async def test_scraped_over_http(registry: CollectorRegistry) -> None:
    """The library's own server asks from a thread of its own, while the loop works."""
    async with make_pool() as pool:
        registry.register(PoolCollector(pool))
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            lease = await live(pool)
            url = f"http://127.0.0.1:{server.server_port}/metrics"

            def fetch() -> str:
                with urllib.request.urlopen(url, timeout=20) as response:
                    text: str = response.read().decode()
                    return text

            found = samples(await asyncio.to_thread(fetch))
            assert found["leases_total", "books"] == 4
            lease.close()
        finally:
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            thread.join()


class Noting(Pool):
    """Notes which threads read its numbers."""

    readers: ClassVar[set[int]] = set()

    def stats(self) -> PoolStats:
        Noting.readers.add(threading.get_ident())
        return super().stats()


async def test_scraped_from_threads_in_a_storm(registry: CollectorRegistry) -> None:
    """Numbers are read in the loop's own thread, whatever happens at the same time."""
    Noting.readers.clear()
    async with Noting(connect, 3, name="books") as pool:
        registry.register(PoolCollector(pool))
        stop = threading.Event()
        failures: list[BaseException] = []
        scrapes = 0

        def scrape() -> None:
            nonlocal scrapes
            try:
                while not stop.is_set():
                    assert scraped(registry)
                    scrapes += 1
            except BaseException as exc:
                failures.append(exc)

        async def churn() -> None:
            while scrapes < 20 and not failures:
                async with pool.connect():
                    await asyncio.sleep(0)

        threads = [threading.Thread(target=scrape) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            async with asyncio.timeout(40.0):
                await asyncio.gather(*(churn() for _ in range(6)))
        finally:
            stop.set()
            for thread in threads:
                await asyncio.to_thread(thread.join)
        assert not failures
        assert Noting.readers == {threading.get_ident()}


def test_numbers_after_the_loop(registry: CollectorRegistry) -> None:
    """Between two runs of the loop, and when it is closed, they are read as they are."""
    loop = asyncio.new_event_loop()
    pool: Any = None

    async def work() -> None:
        nonlocal pool
        pool = make_pool()
        registry.register(PoolCollector(pool))
        async with pool.connect():
            pass

    try:
        loop.run_until_complete(work())
        assert scraped(registry)["leases_total", "books"] == 1
        loop.run_until_complete(pool.close())
    finally:
        loop.close()
    assert not scraped(registry)
