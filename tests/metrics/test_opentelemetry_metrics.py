"""Pools in OpenTelemetry: what an SDK's reader gets, and that it fits the conventions."""

import asyncio
import importlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from metrics_kit import live, make_pool

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from pulsar_client.metrics.opentelemetry import PoolInstruments

PREFIX = "db.client.connection."
NAME = f"{PREFIX}pool.name"
STATE = f"{PREFIX}state"


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider(metric_readers=[reader])
    yield provider
    provider.shutdown()


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    """The metrics of one collection, by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def values(metric: Any, *keys: str) -> dict[Any, float]:
    """The points of a metric by the values of some attributes."""
    return {
        tuple(point.attributes[key] for key in keys): point.value
        for point in metric.data.data_points
    }


async def test_what_a_pool_does_is_reported(
    reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    async with make_pool(min_size=0) as pool:
        instruments = PoolInstruments(meter_provider=provider)
        instruments.add(pool, attributes={"server.address": "db.example", "server.port": 5432})
        lease = await live(pool)
        metrics = collected(reader)
        assert values(metrics[f"{PREFIX}count"], NAME, STATE) == {
            ("books", "idle"): 1,
            ("books", "used"): 1,
        }
        for name, value in {
            "idle.max": 3,
            "idle.min": 0,
            "max": 3,
            "pending_requests": 0,
            "timeouts": 1,
        }.items():
            assert values(metrics[PREFIX + name], NAME) == {("books",): value}, name
        for name, count in {"create_time": 3, "wait_time": 4, "use_time": 3}.items():
            (point,) = metrics[PREFIX + name].data.data_points
            assert point.count == count, name
            assert 0 <= point.sum < 60
            assert point.attributes == {
                NAME: "books",
                "server.address": "db.example",
                "server.port": 5432,
            }
            assert point.explicit_bounds[0] < 0.001  # seconds, not milliseconds
        waiting = [asyncio.ensure_future(pool.connect()) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert values(collected(reader)[f"{PREFIX}pending_requests"], NAME) == {("books",): 2}
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        for one in waiting:
            if not one.cancelled():
                one.result().close()
        lease.close()


async def test_names_types_and_units_are_those_of_the_conventions(
    reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    module = pytest.importorskip("opentelemetry.semconv._incubating.metrics.db_metrics")
    attributes: Any = importlib.import_module(
        "opentelemetry.semconv._incubating.attributes.db_attributes"
    )
    assert attributes.DB_CLIENT_CONNECTION_POOL_NAME == NAME
    assert attributes.DB_CLIENT_CONNECTION_STATE == STATE
    async with make_pool() as pool:
        PoolInstruments(meter_provider=provider).add(pool)
        (await live(pool)).close()
        metrics = collected(reader)
        theirs = {
            value: constant
            for constant, value in vars(module).items()
            if constant.startswith("DB_CLIENT_CONNECTION_")
        }
        assert metrics.keys() == theirs.keys()
        other_reader = InMemoryMetricReader()
        others = MeterProvider(metric_readers=[other_reader])
        meter = others.get_meter("conventions")
        for constant in theirs.values():
            made = getattr(module, f"create_{constant.lower()}")(meter)
            note = made.record if hasattr(made, "record") else made.add
            note(1)
        for name, metric in collected(other_reader).items():
            assert metrics[name].unit == metric.unit
            assert metrics[name].description == metric.description
            assert type(metrics[name].data) is type(metric.data)
            assert getattr(metrics[name].data, "is_monotonic", None) == getattr(
                metric.data, "is_monotonic", None
            )
        others.shutdown()


async def test_without_durations_nothing_happens_at_a_lease(
    reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    async with make_pool() as pool:
        PoolInstruments(meter_provider=provider, durations=False).add(pool)
        (await live(pool)).close()
        metrics = collected(reader)
        assert f"{PREFIX}count" in metrics
        assert not [name for name in metrics if name.endswith("_time")]


async def test_many_pools(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    instruments = PoolInstruments(meter_provider=provider)
    async with make_pool("one") as one, make_pool("two") as two, make_pool("one") as three:
        instruments.add(one)
        instruments.add(two)
        with pytest.raises(ValueError, match="name is 'one', and <Pool 'one' open"):
            instruments.add(three)
        instruments.add(three, "three")
        with pytest.raises(ValueError, match="is reported already, as 'three'"):
            instruments.add(three, "four")
        leases = [await live(pool) for pool in (one, three)]
        assert values(collected(reader)[f"{PREFIX}count"], NAME, STATE) == {
            ("one", "idle"): 1,
            ("one", "used"): 1,
            ("two", "idle"): 0,
            ("two", "used"): 0,
            ("three", "idle"): 1,
            ("three", "used"): 1,
        }
        instruments.remove(two)
        instruments.remove(two)  # twice is once
        assert ("two",) not in values(collected(reader)[f"{PREFIX}max"], NAME)
        for lease in leases:
            lease.close()


async def test_a_pool_that_is_removed_records_no_more(
    reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    async with make_pool() as pool:
        instruments = PoolInstruments(meter_provider=provider)
        instruments.add(pool)
        (await live(pool)).close()
        before = collected(reader)[f"{PREFIX}wait_time"].data.data_points[0].count
        instruments.remove(pool)
        async with pool.connect():
            pass
        assert collected(reader)[f"{PREFIX}wait_time"].data.data_points[0].count == before


async def test_a_closed_pool_is_forgotten(
    reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    instruments = PoolInstruments(meter_provider=provider)
    async with make_pool() as pool:
        instruments.add(pool)
        (await live(pool)).close()
    assert f"{PREFIX}max" not in collected(reader)
    async with make_pool() as successor:
        instruments.add(successor)  # under the same name
        assert values(collected(reader)[f"{PREFIX}max"], NAME) == {("books",): 3}


async def test_a_reader_of_another_thread(
    reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    """As the periodic readers of the SDK do; the loop goes on meanwhile."""
    async with make_pool() as pool:
        PoolInstruments(meter_provider=provider).add(pool)
        lease = await live(pool)
        result: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: result.append(collected(reader)))
        thread.start()
        async with asyncio.timeout(20.0):
            while not result:
                async with pool.connect():
                    await asyncio.sleep(0)
        thread.join()
        assert values(result[0][f"{PREFIX}max"], NAME) == {("books",): 3}
        lease.close()


async def test_a_loop_that_is_stuck(
    reader: InMemoryMetricReader, provider: MeterProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last known numbers are reported, after a bounded wait for all instruments together."""
    monkeypatch.setattr("pulsar_client.metrics.watched_pools._PATIENCE", 0.2)
    async with make_pool() as pool:
        PoolInstruments(meter_provider=provider).add(pool)
        lease = await live(pool)
        result: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: result.append(collected(reader)))
        thread.start()
        thread.join(20.0)  # the loop stands still
        assert not thread.is_alive()
        # From before the leases, when it was added.
        assert values(result[0][f"{PREFIX}count"], NAME, STATE)[("books", "used")] in (0, 1)
        lease.close()


async def test_what_is_not_a_pool(provider: MeterProvider) -> None:
    with pytest.raises(TypeError, match="pool is 'books', expected a"):
        PoolInstruments(meter_provider=provider).add("books")  # type: ignore[arg-type]


def test_no_running_loop(provider: MeterProvider) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        PoolInstruments(meter_provider=provider).add(make_pool())


async def test_the_api_without_an_sdk() -> None:
    """The global provider does nothing until an application sets one; neither do we."""
    async with make_pool() as pool:
        PoolInstruments().add(pool)
        (await live(pool)).close()
