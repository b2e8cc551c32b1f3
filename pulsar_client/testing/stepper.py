"""Drives an awaitable step by step and strikes at one exact moment of it.

`Stepper` stands between a task and what it awaits: it counts how often that is suspended, and can
call a function (one that cancels the task, say) while it is.  It uses nothing but ``send`` and
``throw`` and works on every loop.  It does not know what a strike does, nor whether it was right.
"""

import asyncio
import gc
import traceback
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any

__all__ = ["Stepper"]


class Stepper:
    """Await it (or ``run()`` it in a task) and it awaits what ``scenario`` returns.

    Args:
        scenario: called without arguments when the first step is due, so that a task that is
            cancelled before it starts leaves no coroutine behind.
        at: the number of the suspension to strike at, from 1; 0 for none.
        turn: when to strike there: 0 as it is suspended, before anything else can run; n after so
            many turns of the loop, if it is still suspended then; None in the turn of its wake-up,
            when what it waits for is there and it has not seen it yet.
        act: what a strike does; called at most once.

    Attributes:
        suspensions: how often it was suspended so far.
        struck: whether the moment came.
        stack: where the awaitable was suspended when it was struck, outermost call first.
        instead: an exception to raise in it in place of the next cancellation, which is taken
            back.
        raised: the exception it ended with.  It keeps the frames alive, and with them what only
            they still hold, until it is set to None.
    """

    def __init__(
        self,
        scenario: Callable[[], Awaitable[Any]],
        *,
        at: int = 0,
        turn: int | None = 0,
        act: Callable[[], object] | None = None,
    ) -> None:
        self.suspensions = 0
        self.struck = False
        self.stack: tuple[str, ...] = ()
        self.instead: BaseException | None = None
        self.raised: BaseException | None = None
        self._scenario = scenario
        self._at = at
        self._turn = turn
        self._act = act
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._suspended = False
        self._handle: asyncio.Handle | None = None

    async def run(self) -> Any:
        """Await it, as a coroutine that a task can be made of."""
        return await self

    def __await__(self) -> Generator[Any, None, Any]:
        awaitable = self._scenario()
        coroutine = awaitable if asyncio.iscoroutine(awaitable) else _wait_for(awaitable)
        self._coroutine = coroutine
        exc: BaseException | None = None
        while True:
            try:
                waited = coroutine.send(None) if exc is None else coroutine.throw(exc)
            except StopIteration as stop:
                return stop.value
            except BaseException as failure:
                self.raised = failure
                raise
            exc = None
            self.suspensions += 1
            self._suspended = True
            try:
                if self.suspensions == self._at:
                    self._arm(waited)
                # To the task: a future, or None for one turn of the loop.
                yield waited
            except BaseException as thrown:  # noqa: BLE001 - it goes to the awaitable
                exc = self._exchange(thrown)
            finally:
                self._suspended = False
                if self.suspensions == self._at:
                    self._disarm(waited)

    def where(self) -> tuple[str, ...]:
        """Return where the awaitable is suspended now, outermost call first."""
        frames = ((frame, frame.f_lineno) for frame in _frames(self._coroutine))
        return tuple(traceback.StackSummary.extract(frames).format())

    def strike(self) -> None:
        """Strike now, unless that happened before or the awaitable is not suspended."""
        if self.struck or not self._suspended:
            return
        self.struck = True
        self.stack = self.where()
        if self._act is not None:
            self._act()

    def _arm(self, waited: Any) -> None:
        if self._turn == 0:
            self.strike()
        elif self._turn is not None:
            self._tick(self._turn)
        elif waited is not None:
            # Before the task adds its own: called right before the task is stepped.
            waited.add_done_callback(self._woken)

    def _disarm(self, waited: Any) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._turn is None and waited is not None:
            waited.remove_done_callback(self._woken)

    def _tick(self, left: int) -> None:
        if left == 0:
            self.strike()
        else:
            self._handle = asyncio.get_running_loop().call_soon(self._tick, left - 1)

    def _woken(self, _future: object) -> None:
        self.strike()

    def _exchange(self, thrown: BaseException) -> BaseException:
        if self.instead is None or not isinstance(thrown, asyncio.CancelledError):
            return thrown
        thrown, self.instead = self.instead, None
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return thrown


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _frames(awaited: object) -> Iterator[types.FrameType]:
    """Yield the frames of a suspended coroutine, outermost first."""
    while awaited is not None:
        following = None
        for prefix, link in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
            frame = getattr(awaited, f"{prefix}_frame", None)
            if frame is not None:
                yield frame
                following = getattr(awaited, f"{prefix}_{link}", None)
                break
        else:
            # What coroutine.__await__() and the methods of asynchronous generators return is
            # opaque, but the collector knows what is in it.
            kinds = (types.CoroutineType, types.AsyncGeneratorType)
            inside = (one for one in gc.get_referents(awaited) if isinstance(one, kinds))
            following = next(inside, None)
        awaited = following
