"""The gates: each ends as its name says, and the matrix has every combination once."""

import asyncio

import pytest

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing import Deadlock, Gate, VirtualClockLoop, gate_matrix


def test_ok_passes_without_a_turn_of_the_loop() -> None:
    step = Gate.OK.pass_through()
    with pytest.raises(StopIteration):
        step.send(None)


async def test_error_raises_an_instance_or_a_class() -> None:
    error = OSError("refused")
    with pytest.raises(OSError, match="refused") as caught:
        await Gate.ERROR.pass_through(error=error)
    assert caught.value is error
    with pytest.raises(KeyError):
        await Gate.ERROR.pass_through(error=KeyError)
    with pytest.raises(ConnectionError):
        await Gate.ERROR.pass_through()


def test_slow_takes_its_delay() -> None:
    async def main() -> float:
        await Gate.SLOW.pass_through(delay=2.5)
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        assert runner.run(main()) == pytest.approx(2.5)


def test_never_does_not_end() -> None:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner, pytest.raises(Deadlock):
        runner.run(Gate.NEVER.pass_through())


@pytest.mark.parametrize("gate", [Gate.SLOW, Gate.NEVER])
async def test_a_wait_can_be_cancelled(gate: Gate) -> None:
    task = asyncio.ensure_future(gate.pass_through(delay=3600.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_matrix_is_complete() -> None:
    assert list(gate_matrix(0)) == [()]
    assert list(gate_matrix(1)) == [(gate,) for gate in Gate]
    assert len(set(gate_matrix(3))) == 4**3
    assert list(gate_matrix(2, [Gate.OK, Gate.NEVER])) == [
        (Gate.OK, Gate.OK),
        (Gate.OK, Gate.NEVER),
        (Gate.NEVER, Gate.OK),
        (Gate.NEVER, Gate.NEVER),
    ]


def test_bad_values_are_named() -> None:
    with pytest.raises(ConfigError, match="-1"):
        gate_matrix(-1)
    with pytest.raises(ConfigError, match=r"-0\.5"):
        Gate.SLOW.pass_through(delay=-0.5).send(None)
