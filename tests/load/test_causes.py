"""What the failures of a run are counted by, and the example that is shown of each."""

import asyncio
import functools
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from load_kit import plan

from pulsar_client import ConnectionClosed, PoolUnavailable, ProtocolError, load
from pulsar_client.load.callers import Callers
from pulsar_client.load.causes import cause_of, described, example_of

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")


class _Internal(ProtocolError):
    """As if it were one of the package's own."""


_Internal.__module__ = "pulsar_client.somewhere"


class _OfTheUser(LookupError):
    """Private, but those who wrote it know it."""


def unavailable(cause: Exception) -> PoolUnavailable:
    error = PoolUnavailable("planted")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("exc", "cause"),
    [
        (LookupError("x"), "LookupError"),
        (_OfTheUser("x"), "_OfTheUser"),
        (_Internal("x"), "ProtocolError"),
        (ConnectionClosed("x"), "connection closed"),
        (ssl.SSLCertVerificationError(1, "x"), "certificate refused"),
        (unavailable(ssl.SSLCertVerificationError(1, "x")), "can't connect: certificate refused"),
        (unavailable(ConnectionRefusedError(111, "x")), "can't connect: ConnectionRefusedError"),
        (unavailable(_Internal()), "can't connect: ProtocolError"),
    ],
)
def test_causes_in_plain_words(exc: Exception, cause: str) -> None:
    assert cause_of(exc) == cause


def test_an_error_without_a_text_has_a_name() -> None:
    assert described(AssertionError()) == "AssertionError"
    assert described(_Internal("told")) == "ProtocolError: told"


def test_of_a_dial_that_failed_the_cause_is_told() -> None:
    refused = ConnectionRefusedError("can't connect to 127.0.0.1:1")
    said = "ConnectionRefusedError: can't connect to 127.0.0.1:1"
    assert described(unavailable(refused)) == said
    assert described(PoolUnavailable("planted")) == "PoolUnavailable: planted"


def line_of(function: Callable[..., Any], offset: int) -> str:
    return f"test_causes.py:{function.__code__.co_firstlineno + offset}: "


async def inner(value: int) -> None:
    if value:
        raise AssertionError  # as a bare assert does, where pytest does not rewrite it


async def asserts(ctx: load.Context) -> None:
    await inner(ctx.number + 1)


def retried(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(function)
    async def wrapper(ctx: load.Context) -> None:
        await function(ctx)

    return wrapper


async def fails_elsewhere(ctx: load.Context) -> None:
    await asyncio.wait_for(asyncio.sleep(60), 0.001)


async def hangs(ctx: load.Context) -> None:
    ctx.sending()
    await asyncio.sleep(60)


class AsAMethod:
    async def fails(self, ctx: load.Context) -> None:
        raise LookupError("planted")


@pytest.mark.parametrize(
    ("scenario", "cause", "sample"),
    [
        (asserts, "AssertionError", line_of(inner, 2) + "AssertionError"),
        (retried(asserts), "AssertionError", line_of(inner, 2) + "AssertionError"),
        (fails_elsewhere, "TimeoutError", line_of(fails_elsewhere, 1) + "TimeoutError"),
        (hangs, "timeout: no answer", line_of(hangs, 2) + "no end within 0.5 s"),
        (
            AsAMethod().fails,
            "LookupError",
            line_of(AsAMethod.fails, 1) + "LookupError: planted",
        ),
    ],
)
async def test_the_example_of_a_cause_names_the_line_of_the_scenario(
    scenario: Callable[..., Any], cause: str, sample: str
) -> None:
    kinds = [load.Scenario(scenario, "it")]
    result = await load.run(
        plan(None, scenarios=kinds, rate=100, duration=0.1, timeout=0.5 if "no a" in cause else 5)
    )
    assert result.causes == {cause: 10}  # with the line in it they would not be one
    assert result.samples == {cause: sample}


def test_a_protocols_own_request_has_no_line() -> None:
    built_in: Callable[..., Any] = Callers.serve
    assert example_of(LookupError("x"), built_in) == "LookupError: x"
    assert example_of(LookupError("x"), functools.partial(asserts)) == "LookupError: x"
