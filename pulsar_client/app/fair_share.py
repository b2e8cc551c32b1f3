"""Who accepts the next connection, when several workers could.

The kernel wakes all of them, and the quickest takes it; left alone, the same few are always the
quickest.  So a worker that has more than the one with the least waits for a moment first, and
finds the connection gone if the other one could take it.
"""

import time

from pulsar_client.app.scoreboard import (
    BEAT,
    CONNECTIONS,
    LOOKED,
    RANK,
    Row,
    Scoreboard,
)

__all__ = ["FairShare"]

#: Seconds that a worker steps back; a few times in a row if it has much more than others.
PAUSE = 0.0005
_PAUSES_EACH = 2  # for each connection that it is ahead: the other may be slow to wake up
_MOST_PAUSES = 12  # and one more, up to as many again, for each worker that has less
# Seconds from one pause to the next while it is the same connection that waits; loops round up.
_SAME_ONE = 0.003
# A worker whose loop has not turned for so long is not waited for.
_FRESH = 2_500_000_000  # ns


class FairShare:
    """Decides for one worker; called before each accept (an ``accept_gate`` of `TcpServer`).

    Args:
        board: where all workers tell how many connections they have.
        row: this worker's own row.
    """

    def __init__(self, board: Scoreboard, row: Row) -> None:
        self._board = board
        self._row = row
        self._pauses = 0
        self._last = 0.0
        self._taken = 0
        # Those that were waited for in vain, by index, with what has to change first.
        self._silent: dict[int, tuple[int, int]] = {}

    def begin(self) -> None:
        """Take a place among the others: not behind them, or all would leave everything to it."""
        self._row[RANK] = max((row[RANK] for row in self._board.accepting()), default=0)

    def __call__(self) -> float:
        """Give the seconds to wait before the next accept; 0 to accept now."""
        self._row[LOOKED] += 1
        excess, taken = self._look()
        now = time.monotonic()
        if taken != self._taken and now > self._last + _SAME_ONE:
            self._pauses = 0  # it waited for another connection, which somebody has taken
        self._last = now
        self._taken = taken
        if excess <= self._pauses:
            if self._pauses:
                self._note_silent()
            self._pauses = 0
            return 0.0
        self._pauses += 1
        return PAUSE

    def _note_silent(self) -> None:
        """Those it has waited for are not waited for again before they show that they live."""
        mine = _standing(self._row)
        self._silent = {
            row.index: _life(row) for row in self._board.accepting() if _standing(row) < mine
        }

    def _look(self) -> tuple[int, int]:
        """Give how many pauses it has to make, and how many connections all have taken.

        Pauses are more, the more it is ahead of the one with the least.  Open connections count
        first.  Among those that have the least of them, the number of accepted ones shows who is
        ahead: where connections are short, that is all there is to see.
        """
        mine = least = _standing(self._row)
        before, taken = 0, mine[1]
        now = time.monotonic_ns()
        for row in self._board.accepting():
            if row.index == self._row.index:
                continue
            other = _standing(row)
            taken += other[1]
            if (
                other < mine
                and now - row[BEAT] <= _FRESH
                and self._silent.get(row.index) != _life(row)
            ):
                before += 1
                least = min(least, other)
        ahead = mine[0] - least[0] or mine[1] - least[1]
        # The one with the least may be unable to accept: the others still come in their order.
        return min(_PAUSES_EACH * ahead, _MOST_PAUSES + min(_MOST_PAUSES, before)), taken


def _standing(row: Row) -> tuple[int, int]:
    """Who has less is the next to accept."""
    return row[CONNECTIONS], row[RANK]


def _life(row: Row) -> tuple[int, int]:
    """What changes while a worker lives."""
    return row[LOOKED], row[BEAT]
