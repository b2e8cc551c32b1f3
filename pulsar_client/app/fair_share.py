"""Who accepts the next connection, when several workers could.

The kernel wakes all of them, and the quickest takes it; left alone, the same few are always the
quickest.  So a worker that has more than the one with the least waits for a moment first, and
finds the connection gone if the other one could take it.
"""

import time

from pulsar_client.app.scoreboard import (
    BEAT,
    CONNECTIONS,
    RANK,
    Row,
    Scoreboard,
)

__all__ = ["FairShare"]

#: Seconds that a worker steps back; a few times in a row if it has much more than others.
PAUSE = 0.0005
_PAUSES_EACH = 2  # for each connection that it is ahead: the other may be slow to wake up
_MOST_PAUSES = 12
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

    def begin(self) -> None:
        """Take a place among the others: not behind them, or all would leave everything to it."""
        self._row[RANK] = max((row[RANK] for row in self._board.accepting()), default=0)

    def __call__(self) -> float:
        """Give the seconds to wait before the next accept; 0 to accept now."""
        now = time.monotonic()
        if now > self._last + _SAME_ONE:
            self._pauses = 0  # it waited for another connection, which somebody has taken
        self._last = now
        excess = self._excess()
        if excess <= self._pauses:
            self._pauses = 0
            return 0.0
        self._pauses += 1
        return PAUSE

    def _excess(self) -> int:
        """How many pauses it has to make: more, the more it is ahead of the one with the least.

        Open connections count first.  Where they are short there are never any, and it is the
        number of accepted ones that shows who is ahead.
        """
        own = self._row
        connections, rank = own[CONNECTIONS], own[RANK]
        now = time.monotonic_ns()
        least, least_rank = connections, rank
        for row in self._board.accepting():
            if row.index == own.index or now - row[BEAT] > _FRESH:
                continue
            if row[CONNECTIONS] < least:
                least = row[CONNECTIONS]
            if row[RANK] < least_rank:
                least_rank = row[RANK]
        if connections > least:
            return min(_MOST_PAUSES, _PAUSES_EACH * (connections - least))
        return min(_MOST_PAUSES, _PAUSES_EACH * (rank - least_rank))
