"""What workers tell without being asked: a row of numbers for each, in memory that all share.

A worker writes its own row, the arbiter and the other workers read it.  A number is eight bytes
at a multiple of eight and is written at once, so there are no locks.  Nothing here waits.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator

__all__ = ["Row", "Scoreboard"]

# The numbers of a row.
STATE = 0
BEAT = 1  # time.monotonic_ns() of the last turn of its loop that was seen
CONNECTIONS = 2
ACCEPTED = 3
REQUESTS = 4
ERRORS = 5
LAG = 6  # microseconds by which the last beat was late
RANK = 7  # accepted connections, counted from where the others were when it began
REFUSED = 8
LOOKED = 9  # how often it was woken up by connections that wait
_NUMBERS = 16

# States of a row.
FREE = 0
STARTING = 1
ACCEPTING = 2
NOT_ACCEPTING = 3

_ROWS = 2048
_SIZE = _ROWS * _NUMBERS * 8


class Row:
    """One worker's numbers: ``row[CONNECTIONS]``."""

    __slots__ = ("_cells", "_offset", "index")

    def __init__(self, cells: memoryview, index: int) -> None:
        self.index = index
        self._cells = cells
        self._offset = index * _NUMBERS

    def __getitem__(self, number: int) -> int:
        value: int = self._cells[self._offset + number]
        return value

    def __setitem__(self, number: int, value: int) -> None:
        self._cells[self._offset + number] = value

    def clear(self) -> None:
        """Set all of them to zero: the row is free."""
        for number in range(_NUMBERS):
            self[number] = 0


class Scoreboard:
    """Rows in a file without a name, mapped by the arbiter and by every worker.

    Args:
        descriptor: of the file that the arbiter made; None to make one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            # In memory where there is such a thing, else on disk with its name removed.
            if hasattr(os, "memfd_create"):
                descriptor = os.memfd_create("pulsar-scoreboard")
            else:
                with tempfile.TemporaryFile() as file:
                    descriptor = os.dup(file.fileno())
            os.ftruncate(descriptor, _SIZE)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, _SIZE)
        self._cells = memoryview(self._map).cast("q")

    def row(self, index: int) -> Row:
        """Give a row."""
        return Row(self._cells, index)

    def take(self) -> Row:
        """Give the first free row, as one that starts; only the arbiter does that.

        Raises:
            RuntimeError: all are taken.
        """
        for index in range(_ROWS):
            row = Row(self._cells, index)
            if row[STATE] == FREE:
                row.clear()
                row[STATE] = STARTING
                return row
        raise RuntimeError(f"more than {_ROWS} workers")

    def accepting(self) -> Iterator[Row]:
        """Yield the rows of the workers that accept connections."""
        # Rows are taken from the front: behind a gap of a size that retired workers may leave
        # there is none.
        gap = 0
        for index in range(_ROWS):
            state = self._cells[index * _NUMBERS]
            if state == ACCEPTING:
                yield Row(self._cells, index)
            gap = gap + 1 if state == FREE else 0
            if gap == 64:
                return

    def close(self) -> None:
        """Let go of the memory."""
        self._cells.release()
        self._map.close()
        os.close(self.descriptor)
