"""Whether the client itself was good enough for its numbers to mean anything (L5)."""

import asyncio
import errno
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pulsar_client.load.histogram import Buckets, buckets, quantiles
from pulsar_client.load.plan import Limits
from pulsar_client.load.quantities import format_duration

__all__ = ["Health", "Probe", "verdict"]

_LOOK_EVERY = 0.02


@dataclass(slots=True)
class Health:
    """How one process was.

    Attributes:
        worker: which process.
        lag_p99: how late the event loop was at 99 of 100 looks, in seconds.
        lag_max: the worst of them.
        cpu: share of one core that it used.
        descriptors: file descriptors that were open at the end.
        descriptors_allowed: how many it may open.
    """

    worker: int = 0
    lag_p99: float = 0.0
    lag_max: float = 0.0
    cpu: float = 0.0
    descriptors: int = 0
    descriptors_allowed: int = 0

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return asdict(self)


class Probe:
    """Looks every 20 ms whether the loop comes in time.

    Args:
        worker: which process this is.
        clock: gives the moment.
    """

    def __init__(self, worker: int, clock: Callable[[], float]) -> None:
        self._worker = worker
        self._clock = clock
        self._lags: list[float] = []
        self._counted: Buckets = Counter()
        self._handle: asyncio.TimerHandle | None = None
        self._began = self._cpu_began = 0.0
        self._due = 0.0

    def start(self) -> None:
        """Begin to look, and to count CPU time."""
        self._began, self._cpu_began = self._clock(), time.process_time()
        self._arm()

    def finish(self) -> Health:
        """End, and tell what was seen."""
        cpu = time.process_time() - self._cpu_began
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
            if (late := self._clock() - self._due) > 0:
                self._lags.append(late)  # a loop that was blocked until now
        self._count()
        p99, worst = quantiles(self._counted, (0.99, 1.0))
        used, allowed = _descriptors()
        elapsed = max(self._clock() - self._began, 1e-9)
        return Health(self._worker, p99, worst, cpu / elapsed, used, allowed)

    def _arm(self) -> None:
        self._due = self._clock() + _LOOK_EVERY
        self._handle = asyncio.get_running_loop().call_later(_LOOK_EVERY, self._look)

    def _look(self) -> None:
        # A loop that is blocked for long is late for all the looks that it missed.
        late = max(0.0, self._clock() - self._due)
        while late >= 0:
            self._lags.append(late)
            late -= _LOOK_EVERY
        if len(self._lags) > 1000:
            self._count()
        self._arm()

    def _count(self) -> None:
        self._counted.update(buckets(self._lags))
        self._lags.clear()


def verdict(
    limits: Limits, healths: list[Health], lateness: float, *, open_loop: bool
) -> tuple[list[str], list[str]]:
    """Judge a run.

    Args:
        limits: what is allowed.
        healths: of every process.
        lateness: how late the 99th of 100 requests was dispatched, in seconds.
        open_loop: whether there was a schedule.

    Returns:
        Why it is invalid, and what one should know besides; both may be empty.
    """
    invalid, warnings = [], []
    if open_loop and lateness > limits.lateness:
        invalid.append(
            f"requests were dispatched {format_duration(lateness)} late at p99, "
            f"at most {format_duration(limits.lateness)} are allowed"
        )
    for health in healths:
        who = f"worker {health.worker}: " if len(healths) > 1 else ""
        if health.lag_p99 > limits.loop_lag:
            invalid.append(
                f"{who}the event loop was {format_duration(health.lag_p99)} late at p99, "
                f"at most {format_duration(limits.loop_lag)} are allowed"
            )
        if health.cpu > limits.cpu:
            text = f"{who}the client used {health.cpu:.0%} of a core"
            if open_loop:
                invalid.append(f"{text}, at most {limits.cpu:.0%} are allowed")
            else:
                warnings.append(f"{text}: the rate may be its limit and not the target's")
        if health.descriptors > 0.9 * health.descriptors_allowed > 0:
            invalid.append(
                f"{who}{health.descriptors} of {health.descriptors_allowed} file descriptors "
                "were open: raise ulimit -n"
            )
    return invalid, warnings


def _descriptors() -> tuple[int, int]:
    """How many descriptors are open, and how many may be; zeros where that can't be told."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        return len(os.listdir("/dev/fd")), allowed
    except OSError as exc:  # to look takes one as well
        return (allowed, allowed) if exc.errno == errno.EMFILE else (0, 0)
