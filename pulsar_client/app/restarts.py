"""How long to wait before a dead worker is replaced.

The first early death is an accident: the replacement starts at once.  The second is a pattern:
each further one doubles the delay.  A worker that lived for a while ends the pattern.  This
module knows no process and no clock.
"""

from collections.abc import Callable
from random import random

__all__ = ["RestartDelay"]

FIRST = 0.25
MOST = 30.0
LONG_LIFE = 10.0
_JITTER = 0.2


class RestartDelay:
    """The delays of one position (P6, P9).

    Args:
        draw: gives numbers from 0 to 1.
    """

    def __init__(self, draw: Callable[[], float] = random) -> None:
        self._draw = draw
        self._early_deaths = 0

    def after(self, life: float) -> float:
        """Give the seconds to wait, after a worker that lived for so long has died."""
        if life >= LONG_LIFE:
            self._early_deaths = 0
            return 0.0
        self._early_deaths += 1
        if self._early_deaths == 1:
            return 0.0
        doubled = FIRST * 2.0 ** min(self._early_deaths - 2, 20)
        # Upwards: jitter shall not start more of them than the doubling allows.
        delay: float = min(MOST, doubled) * (1 + _JITTER * self._draw())
        return delay
