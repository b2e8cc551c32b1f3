"""Limits of the write buffer, and the calls of the transport."""

from functools import partial
from typing import Any

import pytest
from protocol_kit import Line, Silent, connected, dialled, lost, served, turns

from pulsar_client import Connection, FlowControl, Protocol


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"low_limit": -1}, "low_limit is -1"),
        ({"high_limit": -1}, "high_limit is -1"),
        ({"low_limit": 1.5}, "low_limit is 1.5"),
        ({"high_limit": "big"}, "high_limit is 'big'"),
        ({"high_limit": True}, "high_limit is True"),
        ({"low_limit": 10, "high_limit": 9}, "low_limit is 10 and high_limit is 9"),
    ],
)
@pytest.mark.parametrize("kind", [FlowControl, Protocol, Connection])
def test_bad_limits_are_a_value_error_at_construction(
    kind: Any, limits: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        kind(**limits)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"low_limit": 1000, "high_limit": 3000}, (1000, 3000)),
        ({"high_limit": 4000}, (1000, 4000)),
        ({"low_limit": 1000}, (1000, 4000)),
        ({"low_limit": 0, "high_limit": 0}, (0, 0)),
        ({"low_limit": 5, "high_limit": 5}, (5, 5)),
    ],
)
async def test_limits_reach_the_transport_in_the_right_order(
    given: dict[str, Any], expected: tuple[int, int]
) -> None:
    """A7: on real transports of both loops."""

    connection = partial(Connection, **given)
    async with (
        served() as server,
        dialled(server.address, Line, connection=connection) as near,
    ):
        assert near.transport.get_write_buffer_limits() == expected


async def test_the_low_limit_ends_the_pause() -> None:
    near, far = await connected(Silent, Silent, client_kw={"low_limit": 5, "high_limit": 10})
    link = near.transport.outgoing
    link.pause()
    near.write(b"x" * 10)
    assert not near.writing_paused
    near.write(b"x")
    assert near.writing_paused
    link.split = 1
    link.resume()
    while near.transport.get_write_buffer_size() > 6:
        assert near.writing_paused
        await turns(1)
    await turns(1)
    assert near.transport.get_write_buffer_size() <= 5
    assert not near.writing_paused
    await lost(near, far)


def test_pausing_and_resuming_twice_is_an_error() -> None:
    flow = FlowControl()
    with pytest.raises(RuntimeError, match="without pause_writing"):
        flow.resume_writing()
    flow.pause_writing()
    assert flow.writing_paused
    with pytest.raises(RuntimeError, match="twice"):
        flow.pause_writing()
    flow.resume_writing()
    assert not flow.writing_paused
    with pytest.raises(RuntimeError, match="without pause_writing"):
        flow.resume_writing()


async def test_resuming_with_an_exception_reaches_the_waiter() -> None:
    near, far = await connected(Silent, Silent, client_kw={"high_limit": 10})
    near.transport.outgoing.pause()
    wait = near.write(b"x" * 11)
    assert wait is not None
    near.resume_writing(LookupError("oops"))
    with pytest.raises(LookupError, match="oops"):
        await wait
    near.abort()
    await lost(near, far)
