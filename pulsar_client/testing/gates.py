"""Gates: the four ways in which an awaited step of a fake can end.

A fake (a dial, a health check, a reset) that passes through a `Gate` can be told from outside
to succeed, to fail, to take long or to never end; `gate_matrix` walks all combinations of several
such steps.  This module knows nothing of what is behind a gate.
"""

import asyncio
import enum
import itertools
from collections.abc import Iterable, Iterator

from pulsar_client.exceptions import ConfigError

__all__ = ["Gate", "gate_matrix"]


class Gate(enum.Enum):
    """How the step behind the gate ends."""

    OK = "ok"
    """At once, without giving the loop a turn."""
    ERROR = "error"
    """With an exception, at once."""
    SLOW = "slow"
    """Well, after a delay."""
    NEVER = "never"
    """Not at all: only a cancellation ends the wait."""

    async def pass_through(
        self,
        *,
        delay: float = 1.0,
        error: BaseException | type[BaseException] = ConnectionError,
    ) -> None:
        """Go through the gate.

        Args:
            delay: seconds that `SLOW` takes, on the clock of the running loop; the others
                ignore it.
            error: what `ERROR` raises, an exception or a class of them; the others ignore it.

        Raises:
            BaseException: ``error``, if this is `ERROR`.
            ConfigError: ``delay`` is negative.

        Cancelling the caller ends the wait of `SLOW` and `NEVER` at once.
        """
        if delay < 0:
            raise ConfigError(f"delay must be 0 or more seconds, not {delay!r}")
        if self is Gate.ERROR:
            raise error
        if self is Gate.SLOW:
            await asyncio.sleep(delay)
        elif self is Gate.NEVER:
            # Nobody holds the future, so nobody can complete it.
            await asyncio.get_running_loop().create_future()


def gate_matrix(n: int, gates: Iterable[Gate] = Gate) -> Iterator[tuple[Gate, ...]]:
    """Return all combinations of ``n`` gates: with all four of them ``4 ** n`` tuples.

    Args:
        n: number of steps, 0 or more; 0 gives one empty tuple.
        gates: the gates that each step may have, by default all four.

    Returns:
        An iterator of tuples of length ``n``; the last place changes fastest.

    Raises:
        ConfigError: ``n`` is negative.
    """
    if n < 0:
        raise ConfigError(f"n must be 0 or more, not {n!r}")
    return itertools.product(tuple(gates), repeat=n)
