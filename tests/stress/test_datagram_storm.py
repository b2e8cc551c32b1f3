"""Very many requests through a proxy that drops, doubles, delays and reorders their datagrams.

Each is answered by its own reply or ends with one clear error, and nothing is left over.  With
``PULSAR_CLIENT_LONG=1`` ten times as many.
"""

import asyncio
import os
import random
from collections import Counter

import pytest
import tenacity
from datagram_kit import KEY, EchoDatagram, Keyed, Plain, endpoint, peer, served, until

from pulsar_client import DatagramProtocol, ProtocolConsumer, RequestTimeout
from pulsar_client.testing import UdpFaultProxy

LONG = os.environ.get("PULSAR_CLIENT_LONG") == "1"
REQUESTS = 100_000 if LONG else 10_000
TASKS = 64


class Harmless(Keyed):
    """Every other request may be asked twice."""

    @property
    def idempotent(self) -> bool:
        return bool(self.request[-1] % 2)


class Restless(DatagramProtocol):
    retry = tenacity.Retrying(
        wait=tenacity.wait_fixed(0.03) + tenacity.wait_random(0, 0.01),
        stop=tenacity.stop_after_attempt(4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("consumer", [Harmless, Plain])
async def test_each_request_gets_its_own_reply_or_one_clear_error_u1_u2_u3_i36(
    consumer: type[ProtocolConsumer],
) -> None:
    """U1, U2, U3, I36: in a storm, with cancellations at random moments."""
    # Without keys one request at a time is in flight, and a doubled reply can't be told from
    # the next: of these the network only loses and delays, and there are fewer.
    keyed = consumer is Harmless
    total = REQUESTS if keyed else REQUESTS // 50
    tasks = TASKS if keyed else 4
    ends: Counter[str] = Counter()
    dice = random.Random(11)
    numbers = iter(range(total))

    async def work(client: DatagramProtocol) -> None:
        for number in numbers:
            message = number.to_bytes(6, "big")
            request = asyncio.ensure_future(client.request(message, timeout=0.5))
            if dice.random() < 0.03:
                asyncio.get_running_loop().call_later(dice.random() * 0.02, request.cancel)
            try:
                reply = await request
            except RequestTimeout:
                ends["timed out"] += 1
            except asyncio.CancelledError:
                ends["cancelled"] += 1
            else:
                assert reply == message, "another request's reply"
                ends["answered"] += 1

    async with served(EchoDatagram) as server:
        faults = {"drop": 0.02, "delay": 0.01, "seed": 4}
        if keyed:
            faults |= {"duplicate": 0.05, "reorder": 0.05}
        async with (
            UdpFaultProxy(server.address, **faults) as proxy,  # type: ignore[arg-type]
            endpoint(proxy.address, consumer, protocol=Restless) as client,
        ):
            async with asyncio.TaskGroup() as group:
                for _ in range(tasks):
                    group.create_task(work(client))
            assert sum(ends.values()) == total
            assert min(ends["timed out"], ends["cancelled"]) > 0
            # Behind one that is lost those that wait for their turn are late as well.
            assert ends["answered"] > (0.8 if keyed else 0.6) * total
            await until(lambda: proxy.on_the_way == 0)
            assert client.is_reusable
            assert client.transport.get_write_buffer_size() == 0
            counts = client.datagrams()
            assert counts["send_dropped"] == counts["send_failed"] == counts["malformed"] == 0
            if keyed:
                assert counts["retransmitted"] > 0
                assert counts["duplicates"] > 0
                assert counts["late"] > 0
                # Every datagram that came was a reply, or was dropped and counted as what it was;
                # as foreign where it came so late that its id was forgotten.
                dropped = counts["late"] + counts["duplicates"] + counts["foreign"]
                used = counts["received"] - dropped
                # (One may come in the very turn in which its caller is cancelled.)
                assert ends["answered"] <= used <= ends["answered"] + ends["cancelled"]
        info = server.info()["datagrams"]
        assert info["busy"] == info["expired"] == 0


@pytest.mark.slow
async def test_no_reply_is_taken_from_a_storm_of_lies_u2() -> None:
    """U2: a thousand guesses at the ids of requests in flight, from the wrong address."""
    with peer() as server, peer() as liar:
        async with endpoint(server.address, Keyed, local_addr=("127.0.0.1", 0)) as client:
            waiting = [asyncio.create_task(client.request(b"%d" % n)) for n in range(50)]
            asked = [await server.receive() for _ in waiting]
            for data, source in asked * 20:
                liar.send(data[:KEY] + b"lie", source)
                server.send(bytes(byte ^ 0xFF for byte in data[:KEY]) + b"lie", source)
            for data, source in asked:
                server.send(data, source)
            assert await asyncio.gather(*waiting) == [b"%d" % n for n in range(50)]
