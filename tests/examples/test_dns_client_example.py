"""The DNS client: against dnsmasq, and against a server that lies."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datagram_kit import Peer, dead_address, peer, until
from real_servers import RealServer

pytest.importorskip("dns", reason="dnspython is not installed (the extra `examples`)")

import dns.flags
import dns.message
import dns.rrset
import tenacity

from examples.dns_client import Resolver, ResolverError
from examples.dns_client.__main__ import ask
from examples.dns_client.query import Question, UdpQuery
from pulsar_client import (
    Connection,
    DatagramProtocol,
    ProtocolConsumer,
    ProtocolError,
    RequestTimeout,
    TcpServer,
)
from pulsar_client.testing import UdpFaultProxy

ROOT = Path(__file__).resolve().parents[2]
BIG = ["x" * 200 + str(number) for number in range(10)]


class DnsmasqProcess(RealServer):
    """A ``dnsmasq`` that knows a few names and asks nobody."""

    program = "dnsmasq"

    def command(self) -> Sequence[str]:
        words = [self.path, "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]
        words += ["--no-resolv", "--no-hosts", "--no-poll", "--bind-interfaces", "--local-ttl=60"]
        words += ["--listen-address=127.0.0.1", f"--port={self.port}", "--cache-size=1000"]
        if os.geteuid() == 0:
            words += ["--user=root"]
        words += ["--local=/test/", "--host-record=host.test,192.0.2.1,2001:db8::1"]
        words += ["--cname=alias.test,host.test", "--txt-record=text.test,one,two"]
        words += [f"--txt-record=big.test,{','.join(BIG)}"]
        words += [f"--host-record=h{number}.test,192.0.2.{number}" for number in range(2, 102)]
        return [*words, *self.options]

    def answers(self, sock: socket.socket) -> bool:
        return True  # it takes datagrams before it takes connections


@pytest.fixture(scope="module")
def dnsmasq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsmasqProcess]:
    with DnsmasqProcess(tmp_path_factory.mktemp("dnsmasq")) as server:
        yield server


class Impatient(DatagramProtocol):
    retry = tenacity.Retrying(
        wait=tenacity.wait_fixed(0.03) + tenacity.wait_random(0, 0.01),
        stop=tenacity.stop_after_attempt(100),
    )


# A real server


async def test_records_of_a_real_server(dnsmasq: DnsmasqProcess) -> None:
    async with Resolver(dnsmasq.address, timeout=20) as resolver:
        assert await resolver.resolve("host.test") == ["192.0.2.1"]
        assert await resolver.resolve("host.test.", "AAAA") == ["2001:db8::1"]
        assert await resolver.resolve("text.test", "TXT") == ["onetwo"]
        assert await resolver.resolve("alias.test") == ["192.0.2.1"]
        assert await resolver.resolve("text.test", "A") == []
        with pytest.raises(ResolverError, match=r"nowhere\.test A: NXDOMAIN") as caught:
            await resolver.resolve("nowhere.test")
        assert caught.value.rcode == "NXDOMAIN"
        assert resolver.sessions == 1
        assert resolver.over_tcp == 0


async def test_many_queries_in_flight_each_gets_its_own_answer_u1(
    dnsmasq: DnsmasqProcess,
) -> None:
    """U1: over one socket, matched by id."""
    async with Resolver(dnsmasq.address, timeout=20) as resolver:
        numbers = [random.Random(3).randrange(2, 102) for _ in range(300)]
        answers = await asyncio.gather(*(resolver.resolve(f"h{n}.test") for n in numbers))
        assert answers == [[f"192.0.2.{n}"] for n in numbers]
        assert resolver.sessions == 1


async def test_what_does_not_fit_is_asked_for_over_tcp_u5(dnsmasq: DnsmasqProcess) -> None:
    """U5: a truncated answer is never taken for the whole."""
    async with Resolver(dnsmasq.address, timeout=20) as resolver:
        assert await resolver.resolve("big.test", "TXT") == ["".join(BIG)]
        assert resolver.over_tcp == 1


async def test_queries_come_through_a_network_that_loses_a_third_u3(
    dnsmasq: DnsmasqProcess,
) -> None:
    """U3: they are idempotent and sent again."""
    async with (
        UdpFaultProxy(dnsmasq.address, drop=0.3, duplicate=0.1, delay=0.01, seed=2) as proxy,
        Resolver(proxy.address, timeout=30) as resolver,
    ):
        factory: Any = partial(Impatient, consumer_factory=UdpQuery)
        resolver.protocol_factory = factory
        answers = await asyncio.gather(*(resolver.resolve(f"h{n}.test") for n in range(2, 102)))
        assert answers == [[f"192.0.2.{n}"] for n in range(2, 102)]


def test_the_command(dnsmasq: DnsmasqProcess) -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "examples.dns_client", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    server = f"--server=127.0.0.1:{dnsmasq.port}"
    done = run(server, "host.test", "h2.test")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "host.test A 192.0.2.1\nh2.test A 192.0.2.2\n"
    done = run(server, "nowhere.test", "--type", "txt")
    assert done.returncode == 1
    assert "NXDOMAIN" in done.stderr
    assert run("--server", "unix:/x", "a").returncode == 2
    # No records are no answer, as the exit code says.
    done = run(server, "h2.test", "host.test", "--type", "AAAA")
    assert (done.returncode, done.stdout) == (1, "host.test AAAA 2001:db8::1\n")
    assert done.stderr == "h2.test: no AAAA records\n"
    for wrong in (["--timeout", "-1"], ["--timeout", "nan"], ["--type", "FOO"]):
        done = run(server, "host.test", *wrong)
        assert done.returncode == 2, wrong
        assert wrong[1] in done.stderr
        assert "Traceback" not in done.stderr
    assert run(server, "host.test", "--type", "TYPE99999").returncode == 2


async def test_the_command_leaves_time_for_each_of_many_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all of thousands in flight, most would be too late before the server sees them."""
    asking, most = 0, 0

    async def resolve(self: Resolver, name: str, rdtype: str = "A") -> list[str]:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(0)
        asking -= 1
        return ["192.0.2.1"]

    monkeypatch.setattr(Resolver, "resolve", resolve)
    assert await ask(("127.0.0.1", 1), [f"h{number}.test" for number in range(2000)], "A", 1.0)
    assert most <= 200
    assert capsys.readouterr().out.count("192.0.2.1") == 2000


# A lying server

Answer = Callable[[Any], bytes]


def reply(query: Any, address: str = "192.0.2.1", **changes: Any) -> bytes:
    """The answer to a query, with attributes of the message changed."""
    message = dns.message.make_response(query)
    question = message.question[0]
    message.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", address))
    for name, value in changes.items():
        setattr(message, name, value)
    wire: bytes = message.to_wire()
    return wire


@contextlib.asynccontextmanager
async def lying(**kw: Any) -> AsyncIterator[tuple[Peer, Resolver]]:
    with peer() as server:
        async with Resolver(server.address, **kw) as resolver:
            yield server, resolver


async def asked(server: Peer) -> tuple[Any, Any]:
    data, source = await server.receive()
    return dns.message.from_wire(data), source


async def counts(resolver: Resolver) -> dict[str, int]:
    return (await resolver._endpoint()).datagrams()


async def test_lies_are_ignored_and_the_truth_is_taken_u2() -> None:
    """U2: a wrong id, a wrong source, a wrong question and garbage are no errors."""
    async with lying(timeout=30) as (server, resolver):
        with peer() as other:
            waiting = asyncio.create_task(resolver.resolve("Truth.Example"))
            query, source = await asked(server)
            lie = "203.0.113.66"
            server.send(reply(query, lie, id=query.id ^ 1), source)
            other.send(reply(query, lie), source)
            elsewhere = dns.message.make_query("other.example", "A", id=query.id)
            server.send(reply(elsewhere, lie), source)
            swapped = dns.message.make_query(
                str(query.question[0].name).swapcase(), "A", id=query.id
            )
            server.send(reply(swapped, lie), source)
            server.send(query.to_wire(), source)  # no answer at all
            server.send(b"\x00", source)
            server.send(query.to_wire()[:2] + b"garbage", source)
            await asyncio.sleep(0.02)
            assert not waiting.done()
            server.send(reply(query), source)
            assert await waiting == ["192.0.2.1"]
            # The wrong id and the lone byte; the wrong source does not even arrive.
            assert (await counts(resolver))["foreign"] == 2


async def test_a_late_answer_and_a_second_one_are_dropped_and_counted_u2_i36() -> None:
    """U2, I36: they never answer a later query, not even for the same name."""
    async with lying(timeout=0.5) as (server, resolver):
        with pytest.raises(RequestTimeout):
            await resolver.resolve("name.example")
        late, source = await asked(server)
        while True:  # what was sent again
            try:
                server.sock.recvfrom(2000)
            except BlockingIOError:
                break
        resolver.timeout = 30
        waiting = asyncio.create_task(resolver.resolve("name.example"))
        query, _ = await asked(server)
        assert query.id != late.id
        server.send(reply(late, "203.0.113.66"), source)
        server.send(reply(query), source)
        server.send(reply(query, "203.0.113.66"), source)
        assert await waiting == ["192.0.2.1"]
        endpoint = await resolver._endpoint()
        await until(lambda: endpoint.datagrams()["duplicates"] == 1)
        assert endpoint.datagrams()["late"] == 1


async def test_ids_and_case_are_random_u2() -> None:
    """U2: and no two queries in flight have the same id."""
    async with lying(timeout=30) as (server, resolver):
        name = "abcdefghijklmnopqrstuvwxyz.example"
        waiting = [asyncio.create_task(resolver.resolve(name)) for _ in range(50)]
        queries = [await asked(server) for _ in waiting]
        ids = [query.id for query, _ in queries]
        assert len(set(ids)) == 50
        steps = {after - before for before, after in itertools.pairwise(ids)}
        assert len(steps) > 20
        assert len({str(query.question[0].name) for query, _ in queries}) == 50
        for query, source in queries:
            server.send(reply(query), source)
        await asyncio.gather(*waiting)


async def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    class OverTcp(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            query = dns.message.from_wire(data[2:])
            answer = reply(query, "192.0.2.7")
            if "wrong" in str(query.question[0].name).lower():
                answer = bytes([answer[0] ^ 1]) + answer[1:]
            if "silent" not in str(query.question[0].name).lower():
                self.write(len(answer).to_bytes(2, "big") + answer)
            self.finished()

    async with TcpServer(partial(Connection, OverTcp), address=("127.0.0.1", 0)) as tcp:
        with peer(tcp.address) as server:
            async with Resolver(server.address, timeout=20) as resolver:

                async def truncated(name: str) -> list[str]:
                    waiting = asyncio.create_task(resolver.resolve(name))
                    query, source = await asked(server)
                    message = dns.message.make_response(query)
                    message.flags |= dns.flags.TC
                    server.send(message.to_wire(), source)
                    return await waiting

                assert await truncated("right.example") == ["192.0.2.7"]
                with pytest.raises(ProtocolError, match="something else"):
                    await truncated("wrong.example")
                resolver.timeout = 1.0  # for the question by datagram too
                with pytest.raises(RequestTimeout, match="over TCP in time"):
                    await truncated("silent.example")
                assert resolver.over_tcp == 3


async def test_a_server_that_is_not_there_is_told_at_once_and_may_come_back_i36() -> None:
    """I36: the refusal ends the query; the next one is asked on the same socket."""
    address = dead_address()
    async with Resolver(address, timeout=60) as resolver:
        with pytest.raises(ConnectionRefusedError):
            await resolver.resolve("name.example")
        with peer(address) as server:
            waiting = asyncio.create_task(resolver.resolve("name.example"))
            query, source = await asked(server)
            server.send(reply(query), source)
            assert await waiting == ["192.0.2.1"]
            assert resolver.sessions == 1


async def test_cancelled_queries_and_names_that_are_none() -> None:
    async with lying(timeout=30) as (server, resolver):
        waiting = asyncio.create_task(resolver.resolve("name.example"))
        query, source = await asked(server)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        server.send(reply(query), source)
        endpoint = await resolver._endpoint()
        await until(lambda: endpoint.datagrams()["late"] == 1)
        for name, rdtype in (("a..b", "A"), ("x" * 64 + ".example", "A"), ("a", "NOTHING")):
            with pytest.raises(dns.exception.DNSException):
                await resolver.resolve(name, rdtype)


def test_every_cut_and_every_flipped_byte_of_an_answer_is_harmless() -> None:
    question = Question("name.example", "A")
    wire = reply(dns.message.from_wire(question.to_wire(7)))
    assert question.read_answer(wire) is not None
    for end in range(len(wire)):
        question.read_answer(wire[:end])
    dice = random.Random(1)
    for _ in range(2000):
        broken = bytearray(wire)
        broken[dice.randrange(len(broken))] = dice.randrange(256)
        question.read_answer(bytes(broken))
    assert re.fullmatch(r"(?i)name\.example\. A", repr(question))
