"""Producers: who makes protocols and consumers, and counts them."""

import logging
from functools import partial
from typing import Any

import pytest
from protocol_kit import EchoLine, Line, connected, lost

from pulsar_client import Connection, Producer, Protocol, ProtocolConsumer


def test_it_makes_protocols_and_counts_sessions() -> None:
    logger = logging.getLogger("mine")
    producer = Producer(None, partial(Connection, Line), "me", 5, logger)
    assert (producer.sessions, producer.requests_processed) == (0, 0)
    assert producer.name == "me"
    assert producer.max_requests == 5
    protocol = producer.create_protocol(timeout=3)
    assert isinstance(protocol, Connection)
    assert protocol.session == 1
    assert protocol.producer is producer
    assert protocol.logger is logger
    assert protocol.timeout == 3
    assert producer.create_protocol().session == 2
    assert producer.sessions == 2


def test_the_keywords_of_the_factory() -> None:
    calls: list[dict[str, Any]] = []

    def factory(**kw: Any) -> Protocol:
        calls.append(kw)
        return Protocol()

    producer = Producer(protocol_factory=factory)
    producer.create_protocol(more=1)
    (call,) = calls
    assert call == {
        "session": 1,
        "producer": producer,
        "loop": None,
        "logger": producer.logger,
        "more": 1,
    }


def test_the_class_attribute_is_the_default_factory() -> None:
    class Mine(Producer):
        protocol_factory = Protocol

    class WithFunction(Producer):
        def protocol_factory(**kw: Any) -> Any:
            return Protocol(session=kw["session"] + 10)

    assert isinstance(Mine().create_protocol(), Protocol)
    assert WithFunction().create_protocol().session == 11
    assert Mine().name == "mine"
    with pytest.raises(TypeError, match="no protocol_factory"):
        Producer().create_protocol()


@pytest.mark.parametrize("value", [-1, 1.5, "many", True])
def test_bad_max_requests_are_named(value: Any) -> None:
    with pytest.raises(ValueError, match="max_requests is"):
        Producer(max_requests=value)


@pytest.mark.parametrize("value", [None, 0])
def test_no_max_requests(value: Any) -> None:
    assert Producer(max_requests=value).max_requests is None


def test_a_factory_must_be_callable() -> None:
    with pytest.raises(TypeError, match="'nonsense'"):
        Producer(protocol_factory="nonsense")  # type: ignore[arg-type]


def test_a_consumer_factory_is_called_without_arguments() -> None:
    calls: list[tuple[Any, ...]] = []

    def factory(*args: Any) -> ProtocolConsumer:
        calls.append(args)
        return Line()

    assert isinstance(Producer().build_consumer(factory), Line)
    assert calls == [()]
    with pytest.raises(TypeError, match="no consumer_factory"):
        Producer().build_consumer(None)
    with pytest.raises(TypeError, match="5"):
        Producer().build_consumer(lambda: 5)  # type: ignore[arg-type,return-value]


async def test_requests_and_connections_are_counted() -> None:
    producer = Producer(name="me")
    near, far = await connected(Line, EchoLine, client_kw={"producer": producer})
    for _ in range(3):
        await near.request(b"x")
    assert producer.requests_processed == 3
    assert producer.info()["producer"] == {
        "name": "me",
        "sessions": 0,
        "connections": 1,
        "requests_processed": 3,
    }
    await lost(near, far)
    assert producer.info()["producer"]["connections"] == 0


def test_the_events_of_a_producer() -> None:
    assert set(Producer().events) == {
        "connection_made",
        "pre_request",
        "post_request",
        "connection_lost",
    }


def test_a_consumer_is_no_protocol_factory() -> None:
    with pytest.raises(TypeError, match=r"makes consumers, .* partial\(Connection, Line\)"):
        Producer(protocol_factory=Line)
