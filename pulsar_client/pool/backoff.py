"""How long to leave a target alone that could not be reached, and how hard to try again (I26).

Exponential with full jitter, as in M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture
Blog, 2015).  Plain synchronous code: it is told the time.
"""

from typing import cast

from tenacity import RetryCallState, wait_random_exponential

__all__ = ["Backoff"]

#: Seconds: the pause after a second failure is at most this long, each further one twice as long,
_FIRST = 0.1
#: up to this: a target that is back is noticed within this time (I22).
_LONGEST = 2.0

_pause = wait_random_exponential(multiplier=_FIRST, max=_LONGEST)


class Backoff:
    """What is known of a target: up, or down and left alone until some time.

    Args:
        at_once: dials that may be under way together while the target is up.
    """

    __slots__ = ("_at_once", "_epoch", "_failures", "down", "resume_at")

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._failures = 0
        #: True from a failed dial to the next that succeeds.
        self.down = False
        # Dials that were begun together fail together: that is one failure.
        self._epoch = 0
        #: When the next dial may be started, on the loop's clock.
        self.resume_at = 0.0

    @property
    def epoch(self) -> int:
        """What a dial that begins now has to hand in if it fails."""
        return self._epoch

    def limit(self, now: float) -> int:
        """How many dials may be under way: none for a while, then one probe, else all."""
        if not self._failures:
            return self._at_once
        return 0 if now < self.resume_at else 1

    def failed(self, epoch: int, now: float) -> None:
        """A dial that was begun in that epoch has failed."""
        if epoch != self._epoch:
            return
        self._epoch += 1
        self._failures += 1
        self.down = True
        # One failure may be chance, or a restart that is over: the next caller may try at once.
        self.resume_at = now
        if self._failures > 1:
            self.resume_at += _pause(cast(RetryCallState, _Attempt(self._failures - 1)))

    def succeeded(self) -> None:
        """A dial has succeeded: the target is up."""
        self._failures = 0
        self.down = False
        self.resume_at = 0.0


class _Attempt:
    """What tenacity's wait strategies look at."""

    def __init__(self, number: int) -> None:
        self.attempt_number = number
