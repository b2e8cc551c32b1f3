"""Sheds load when a queue has become slow: controlled delay.

After K. Nichols and V. Jacobson, "Controlling Queue Delay" (ACM Queue, 2012; RFC 8289), as pools
use it: a queue that is merely long for a moment is left alone; one in which nobody got through
quickly for a whole interval is a standing queue, and from then on those who have waited too long
are turned away instead of served late.  That goes on until a whole interval has passed in which
nobody had to be: an end at the first quick wait would let the queue grow again, and under steady
overload half of the work would be done for those who wait no longer.  Plain synchronous code: it
is told the time.
"""

from math import inf

__all__ = ["CoDel"]


class CoDel:
    """Decides about each waiter, at the moment it would be served.

    Args:
        target: seconds of waiting that are acceptable.
        interval: seconds in which at least one waiter must have waited less than ``target``.
    """

    __slots__ = ("_interval", "_interval_end", "_shed", "_shortest", "_slow", "_target")

    def __init__(self, target: float, interval: float) -> None:
        self._target = target
        self._interval = interval
        self._interval_end = -inf
        # The shortest wait of this interval.
        self._shortest = inf
        self._slow = False
        # Somebody was turned away in this interval.
        self._shed = False

    def sheds(self, waited: float, now: float) -> bool:
        """True if one who has waited so long is to be turned away rather than served.

        The caller asks only while others wait behind it: the last is always served.
        """
        if now >= self._interval_end:
            # An interval in which nobody was served proves nothing, unless this one waited for
            # all of it.
            if self._shortest == inf:
                self._slow = waited > self._target + self._interval
            else:
                self._slow = self._shed or self._shortest > self._target
            self._shed = False
            self._interval_end = now + self._interval
            self._shortest = waited
        elif waited < self._shortest:
            self._shortest = waited
        if self._slow and waited > self._target:
            self._shed = True
            return True
        return False
