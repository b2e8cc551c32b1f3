"""Is every slot of a pool accounted for?  A check for any moment, and one for a pool at rest.

A pool is any object with ``stats()``, whose result has the numbers ``pool_size``, ``size``,
``available``, ``in_use``, ``dialling``, ``closing`` and ``waiting``.  Nothing else of it is known
here.
"""

from typing import Any, Protocol

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing.leftovers import describe_tasks, other_tasks, until

__all__ = ["conservation", "settled"]

_SLOTS = ("available", "in_use", "dialling", "closing")
_AT_REST = ("in_use", "dialling", "waiting", "closing")


class _Pool(Protocol):
    def stats(self) -> Any: ...


def conservation(pool: _Pool) -> None:
    """Check that each slot of a pool is in one state, at any moment between two callbacks.

    ``available + in_use + dialling + closing == size <= pool_size``, and no number is below 0.
    A pool that was made smaller has more until what was open has ended.  Use it as an invariant of
    a state machine of Hypothesis or of `storm`, or as the check of `explore_cancellation`.

    Args:
        pool: the pool.

    Raises:
        AssertionError: it does not hold; the message has the numbers.
    """
    stats, numbers = _balance(pool)
    if stats.size > stats.pool_size:
        raise AssertionError(f"{pool!r}: {numbers} is more than the pool_size {stats.pool_size}")


async def settled(pool: _Pool, *, timeout: float = 5.0) -> None:
    """Wait until a pool is at rest: nobody leases, dials, waits or closes any more.

    Call it when all who used the pool have ended, however they did.  In the end, and but for
    the limit on the way, `conservation` must hold.

    Args:
        pool: the pool.
        timeout: seconds, on the loop's clock, that dials and closes under way may take.

    Raises:
        AssertionError: ``in_use``, ``dialling``, ``waiting`` or ``closing`` did not come down to
            0, the message has the numbers and the tasks that are left; or `conservation` failed.
        ConfigError: ``timeout`` is negative.

    Cancelling it changes nothing.
    """
    if not timeout >= 0:
        raise ConfigError(f"timeout must be 0 or more seconds, not {timeout!r}")

    def at_rest() -> bool:
        stats, _ = _balance(pool)
        return not any(getattr(stats, name) for name in _AT_REST)

    if not await until(at_rest, timeout):
        stats = pool.stats()
        numbers = ", ".join(f"{name} {getattr(stats, name)}" for name in _AT_REST)
        tasks = "".join(f"\n  {task}" for task in describe_tasks(other_tasks()))
        raise AssertionError(
            f"{pool!r} is not at rest after {timeout:g} s: {numbers}, all must be 0;"
            f" other tasks of the loop:{tasks or ' none'}"
        )
    conservation(pool)


def _balance(pool: _Pool) -> tuple[Any, str]:
    """Check that the numbers fit together; return them, and the sum for people to read."""
    stats = pool.stats()
    numbers = {name: getattr(stats, name) for name in _SLOTS}
    text = " + ".join(f"{name} {number}" for name, number in numbers.items())
    if sum(numbers.values()) != stats.size:
        raise AssertionError(f"{pool!r}: {text} is not the size {stats.size}")
    numbers["waiting"] = stats.waiting
    negative = [f"{name} is {number}" for name, number in numbers.items() if number < 0]
    if negative:
        raise AssertionError(f"{pool!r}: {', '.join(negative)}")
    return stats, text
