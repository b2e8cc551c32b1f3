"""Requests of which only the future of the reply is wanted."""

import asyncio
import gc
from functools import partial
from typing import Any

import pytest
from line_codec import LineCodec
from protocol_kit import Answers, Client, EchoLine, Line, Silent, connected, lost, served, turns

from pulsar_client import Connection, DelimitedDecoder, Pool, Producer, RequestTimeout
from pulsar_client.testing import memory_pair


async def test_the_future_has_the_reply_and_the_connection_is_free() -> None:
    near, far = await connected()
    waiter = near.begin_request(b"x", None)
    assert waiter is not None
    assert await waiter == b"x"
    assert near.is_reusable
    assert near.requests_processed == 1
    near.abort()
    await lost(near, far)


async def test_who_stops_to_wait_gives_the_request_up() -> None:
    near, far = await connected(server=Silent)
    waiter = near.begin_request(b"x", None)
    assert waiter is not None
    near.end_request(waiter, waiter)
    assert waiter.cancelled()
    assert not near.is_reusable  # its reply may come
    near.abort()
    await lost(near, far)


async def test_who_stops_to_wait_before_it_was_sent_leaves_a_good_connection() -> None:
    over = asyncio.Event()

    async def callback(consumer: Any, **kw: Any) -> None:
        await over.wait()

    producer = Producer()
    producer.bind_event("pre_request", callback)
    near, far = await connected(client_kw={"producer": producer})
    waiter = near.begin_request(b"x", None)
    assert waiter is not None
    await turns()
    near.end_request(waiter, waiter)
    assert waiter.cancelled()
    over.set()
    await turns()
    assert near.is_reusable
    near.abort()
    await lost(near, far)


async def test_the_end_of_one_that_is_over_does_nothing_to_the_next() -> None:
    near, far = await connected()
    first = near.begin_request(b"x", None)
    assert first is not None
    await asyncio.wait([first])
    second = near.begin_request(b"y", None)
    assert second is not None
    near.end_request(first, first)
    assert await second == b"y"
    near.abort()
    await lost(near, far)


async def test_a_time_out_of_its_own() -> None:
    near, far = await connected(server=Silent)
    waiter = near.begin_request(b"x", 0.01)
    assert waiter is not None
    with pytest.raises(RequestTimeout):
        await waiter
    assert not near.is_reusable
    near.abort()
    await lost(near, far)


async def test_one_at_a_time() -> None:
    near, far = await connected(server=Silent)
    assert near.begin_request(b"x", None) is not None
    with pytest.raises(RuntimeError):
        near.begin_request(b"y", None)
    near.abort()
    await lost(near, far)


async def test_a_request_of_a_subclass_is_not_passed_over() -> None:
    class Prefixed(Connection):
        async def request(self, message: Any, timeout: float | None = None) -> Any:
            return await super().request(b"> " + message, timeout)

    assert Prefixed(Line).begin_request(b"x", None) is None


async def test_where_consumers_share_a_pipeline_it_makes_none() -> None:
    assert Connection(Line, pipeline=4).begin_request(b"x", None) is None


async def test_what_is_added_to_a_class_or_to_a_connection_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a decorator of a class does it, or whoever follows one connection."""

    class Traced(Connection):
        pass

    async def request(self: Connection, message: Any, timeout: float | None = None) -> Any:
        raise NotImplementedError

    Traced.request = request  # type: ignore[method-assign]
    assert Traced(Line).begins_requests is None
    assert Traced(Line).begin_request(b"x", None) is None
    one = Connection(Line)
    assert one.begins_requests is not None
    one.request = request.__get__(one)  # type: ignore[method-assign]
    assert one.begins_requests is None
    monkeypatch.setattr(Connection, "request", request)
    assert Connection(Line).begins_requests is None
    assert Connection(Line).begin_request(b"x", None) is None


async def test_an_upgraded_connection_begins_nothing_in_the_other_protocol() -> None:
    near = Connection(codec=LineCodec, pipeline=2)
    far = Connection(EchoLine, producer=Answers())
    memory_pair(near, far)
    await turns()
    assert near.begins_requests is not None
    near.upgrade(Line)
    assert near.begins_requests is None
    assert near.begin_request(b"x", None) is None
    assert await near.request(b"x") == b"x"
    near.abort()
    await lost(near, far)


async def test_connections_have_no_dict_in_the_course_of_a_request() -> None:
    """Python finds attributes in it less quickly: each request costs up to a half more."""

    class Kind(Connection):
        """A class that nobody else has made objects of."""

    async with (
        served(EchoLine) as server,
        Client(protocol_factory=partial(Kind, Line)) as client,
    ):
        client.pool = Pool(partial(client.create_connection, server.address), 40)
        leases = [await client.pool.connect() for _ in range(40)]
        for lease in leases:
            assert await lease.request(b"x", 5.0) == b"x"
            assert lease.begins_requests is not None
            lease.close()
        assert await client.request(b"x", timeout=5.0) == b"x"
        connections = [held for held in gc.get_objects() if type(held) is Kind]
        assert len(connections) == 40
        for connection in connections:
            dicts = [held for held in gc.get_referents(connection) if type(held) is dict]
            assert not [held for held in dicts if "session" in held]


async def test_a_request_of_a_subclass_costs_no_consumer_where_there_is_a_codec() -> None:
    """What it adds is all that it costs more."""

    class Own(Connection):
        async def request(self, message: Any, timeout: float | None = None) -> Any:
            return await super().request(b"> " + message, timeout)

        def current_consumer(self) -> Any:
            raise AssertionError("nobody wants a consumer")

    near = Own(codec=LineCodec, pipeline=2)
    far = Connection(EchoLine, producer=Answers())
    memory_pair(near, far)
    await turns()
    assert await near.request(b"x", 5.0) == b"> x"
    assert near.begins_requests is None
    near.abort()
    await lost(near, far)


def test_a_parser_that_was_set_before_stays() -> None:
    class Parsing(Connection):
        def __init__(self) -> None:
            self.parser = DelimitedDecoder(b"\n", max_size=9)
            super().__init__(Line)

    assert isinstance(Parsing().parser, DelimitedDecoder)
