"""`conformance` over every kind of connection, and over kinds with a bug planted in each."""

import asyncio
import ssl
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from examples.echo import Echo
from examples.echo.manage import server
from examples.echo.protocol import EchoProtocol
from pulsar_client import Connection, Pool
from pulsar_client.exceptions import ConfigError
from pulsar_client.testing import (
    Conformance,
    ConformanceFailure,
    VirtualClockLoop,
    conformance,
)


async def over_sockets(
    kind: str, client_ssl: ssl.SSLContext, server_ssl: ssl.SSLContext, path: Path
) -> Conformance:
    address: Any = f"unix:{path}/echo" if kind == "unix" else ("127.0.0.1", 0)
    kw: dict[str, Any] = {}
    if kind == "TLS":
        kw = {"ssl": client_ssl, "server_hostname": "localhost"}
    async with AsyncExitStack() as stack:
        running = server(address)
        await running.start_serving(sslcontext=server_ssl if kind == "TLS" else None)
        stack.push_async_callback(running.close)
        client = await stack.enter_async_context(Echo(running.address, **kw))
        share = 1
        if kind == "pipelined":
            client.protocol_factory = partial(Connection, EchoProtocol, pipeline=16)
        elif kind == "shared":
            share = 3
            client.protocol_factory = partial(Connection, EchoProtocol, pipeline=16)
        return await conformance(
            lambda size: Pool(client.connect, size, share=share),
            exchange=lambda lease, request_id: lease.request(request_id),
            belongs=lambda request_id, reply: reply == request_id,
            kill=lambda connection: connection.transport.abort(),
            share=share,
        )


@pytest.mark.parametrize("kind", ["plain", "TLS", "unix", "pipelined", "shared"])
async def test_connections_over_sockets(
    kind: str, client_ssl: ssl.SSLContext, server_ssl: ssl.SSLContext, tmp_path: Path
) -> None:
    """I1 to I3, I5 to I7, I11, I14, I16 to I18, I20, I29: the same for each kind."""
    report = await over_sockets(kind, client_ssl, server_ssl, tmp_path)
    assert len(report.requirements) == 9
    assert report.points >= 8
    assert "A dead idle connection is not leased" in str(report)


class Bare:
    """The least that can be pooled; its replies are behind one another."""

    def __init__(self) -> None:
        self.closed = False
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()

    @classmethod
    async def dial(cls) -> "Bare":
        await asyncio.sleep(0)
        return cls()

    def close(self) -> Any:
        self.closed = True

    async def ask(self, request_id: bytes) -> bytes:
        asyncio.get_running_loop().call_later(0.01, self._replies.put_nowait, request_id)
        return await self._replies.get()


class ClosesLater(Bare):
    """Its close() is to be awaited."""

    def close(self) -> Any:
        self.closed = True
        return asyncio.sleep(0.05)


class JudgesItself(Bare):
    """It knows whether a reply is due."""

    due = 0

    @property
    def is_reusable(self) -> bool:
        return not self.closed and not self.due

    async def ask(self, request_id: bytes) -> bytes:
        self.due += 1
        reply = await super().ask(request_id)
        self.due -= 1
        return reply


def run(kind: type[Bare], **kw: Any) -> Conformance:
    async def examine() -> Conformance:
        return await conformance(
            lambda size: Pool(kind.dial, size),
            exchange=lambda lease, request_id: lease.ask(request_id),
            **kw,
        )

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(examine())


@pytest.mark.parametrize("kind", [Bare, ClosesLater, JudgesItself])
def test_bare_objects(kind: type[Bare]) -> None:
    assert run(kind).points >= 8


class Trusting(JudgesItself):
    """Goes back although a reply is due."""

    @property
    def is_reusable(self) -> bool:
        return not self.closed


class Suspicious(JudgesItself):
    """Never goes back."""

    @property
    def is_reusable(self) -> bool:
        return False


class Immortal(Bare):
    """Does not know that it was closed."""

    closed = property(lambda self: False, lambda self, value: None)


class Untidy(Bare):
    """Leaves a task behind."""

    def close(self) -> Any:
        self.closed = True
        self.left = asyncio.get_running_loop().create_task(asyncio.sleep(1000.0))


class Deaf(Bare):
    """Swallows the cancellation of an exchange, and asks again."""

    async def ask(self, request_id: bytes) -> bytes:
        try:
            return await super().ask(request_id)
        except asyncio.CancelledError:
            return await super().ask(request_id)


@pytest.mark.parametrize(
    ("kind", "requirement", "problem"),
    [
        (Trusting, "An exchange that is cancelled anywhere", "asked b'.*', got b'"),
        (Suspicious, "A connection that was used well is used again", "closed by unusable"),
        (Immortal, "A dead idle connection is not leased", "was killed, and leased again"),
        (Untidy, "A connection that was used well is used again", "left behind"),
        (Deaf, "An exchange that is cancelled anywhere", "cancel"),
    ],
)
def test_planted_bugs(kind: type[Bare], requirement: str, problem: str) -> None:
    """Each is found, and called by its name."""
    with pytest.raises(ConformanceFailure, match=problem) as info:
        run(kind)
    assert info.value.requirement.startswith(requirement)


def test_a_client_that_does_not_work_at_all_gets_its_own_error() -> None:
    class Broken(Bare):
        async def ask(self, request_id: bytes) -> bytes:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Broken)


@pytest.mark.parametrize(("name", "value"), [("share", 0), ("timeout", 0), ("timeout", -1)])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as info:
        run(Bare, **{name: value})
    assert repr(value) in str(info.value)
