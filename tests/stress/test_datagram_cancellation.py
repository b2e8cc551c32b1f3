"""Requests by datagrams, cancelled at every point there is."""

import asyncio
from typing import Any

import pytest
from datagram_kit import Keyed, Patient, Plain, endpoint, served, until

from examples.echo_udp import Echo, server
from pulsar_client import DatagramProtocol, ProtocolConsumer
from pulsar_client.testing import conservation, explore_cancellation, settled


@pytest.mark.parametrize("consumer", [Keyed, Patient, Plain])
async def test_a_request_cancelled_anywhere_leaves_nothing_i36(
    consumer: type[ProtocolConsumer],
) -> None:
    """I36: the endpoint is free at once, and the next request gets its own reply."""
    async with served() as running, endpoint(running.address, consumer) as client:
        number = 0

        async def ask() -> None:
            nonlocal number
            number += 1
            message = b"%d" % number
            assert await client.request(message) == message

        async def check(_point: int) -> None:
            assert client.is_reusable
            await ask()

        await explore_cancellation(ask, check=check)


async def test_events_and_coroutine_callbacks_make_no_difference_i36() -> None:
    """I36: a request that is cancelled before it is sent is not sent."""

    async def slowly(consumer: Any, exc: BaseException | None = None) -> None:
        await asyncio.sleep(0)

    async with served() as running, endpoint(running.address, Keyed) as client:
        client.producer.bind_event("pre_request", slowly)

        async def ask() -> None:
            assert await client.request(b"?") == b"?"

        async def check(_point: int) -> None:
            await until(lambda: client.is_reusable)
            await ask()

        await explore_cancellation(ask, check=check)


async def test_a_pool_of_endpoints_cancelled_anywhere_is_whole_i1_i36() -> None:
    """I1, I36: with the opening of the socket, the request and its release."""
    async with server() as running:
        made: list[Echo] = []

        async def ask() -> None:
            made.append(Echo(running.address, pool_size=1))
            assert await made[-1](b"?") == b"?"

        async def check(_point: int) -> None:
            echo = made.pop()
            conservation(echo.pool)
            await settled(echo.pool)
            assert await echo(b"again") == b"again"
            echo.close()
            await echo.wait_closed()
            assert not echo._protocols

        await explore_cancellation(ask, check=check)


async def test_the_close_of_an_endpoint_cancelled_anywhere_still_closes() -> None:
    async with served() as running:
        opened: list[DatagramProtocol] = []
        async with endpoint(running.address) as keeper:
            factory = keeper.producer

            async def close() -> None:
                client = await factory.create_datagram_endpoint(remote_addr=running.address)
                opened.append(client)
                await client.request(b"?")
                await client.close()

            async def check(_point: int) -> None:
                while opened:
                    client = opened.pop()
                    client.abort()
                    await client.close()
                assert set(factory._protocols) == {keeper}

            await explore_cancellation(close, check=check)
