"""An event loop whose clock jumps: tests of time-outs that take no time.

`VirtualClockLoop` is a selector event loop of asyncio.  Whenever nothing is ready to run, its
clock jumps to the next timer instead of waiting for it, and where no timer is left it raises
`Deadlock` instead of hanging.

It does no I/O on purpose: bytes on their way through the kernel look exactly like an idle loop,
the clock would jump over them and every time-out would fire before its answer arrived.  Use
`memory_pair` in place of sockets.  This module knows nothing of transports.
"""

import asyncio
import selectors
import threading
import time
import types
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

from pulsar_client.exceptions import ConfigError, PulsarClientError

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["Deadlock", "VirtualClockLoop"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

WEEK = 7 * 24 * 3600.0

# asyncio runs the timers that are due at ``time() + resolution``.  Where the resolution is less
# than what a float can tell apart, a timer that is exactly due would never run.
LATEST = 2.0**53 * time.get_clock_info("monotonic").resolution


class Deadlock(PulsarClientError, RuntimeError):
    """Nothing in the loop can run any more; the message names the tasks that still wait.

    It is raised by ``run()``, ``run_until_complete()`` or ``run_forever()``, not inside a task.
    """


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock, for tests without sockets.

    ::

        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            runner.run(asyncio.sleep(3600))  # returns at once

    ``time()`` starts at 0.  Callbacks take no virtual time, however long they run.  A job given
    to ``run_in_executor`` or ``asyncio.to_thread`` takes none either: the clock stands still while
    it runs, up to ``patience``.  Threads that the loop did not start are not known to it: before
    it speaks of a deadlock while other threads are alive, it waits ``patience`` for a call of
    ``call_soon_threadsafe``; before a jump to the next timer it does not.

    Args:
        horizon: virtual seconds after which the loop raises `Deadlock` although timers still
            run: a test that waits for ever beside a periodic task would not end otherwise.
        patience: real seconds to wait for other threads, as said above.

    Raises:
        ConfigError: ``horizon`` is not above 0 or too large for the clock (about 100 days),
            or ``patience`` is negative.

    Anything that needs a file descriptor (sockets, pipes, subprocesses) raises `RuntimeError`.
    """

    def __init__(self, *, horizon: float = WEEK, patience: float = 2.0) -> None:
        self._jumping = _JumpingSelector(self._pending_tasks, horizon, patience)
        super().__init__(self._jumping)
        try:
            _check(horizon, patience)
        except ConfigError:
            # Only now is there a loop that its destructor can deal with.
            self.close()
            raise
        # The loop has registered its wake-up pipe by now, nothing else may come.
        self._jumping.sealed = True

    def time(self) -> float:
        """Return the virtual time: seconds since the loop was made."""
        return self._jumping.now

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[Unpack[_Ts]], _T],
        *args: *_Ts,
    ) -> asyncio.Future[_T]:
        """Run ``func(*args)`` in a thread or process while the clock stands still.

        Args:
            executor: where to run, None for the loop's own threads.
            func: what to run.
            args: its arguments.

        Returns:
            A future of the result.  Cancelling it does not stop the thread, but the loop no
            longer waits for it.
        """
        future = super().run_in_executor(executor, func, *args)
        self._jumping.jobs += 1
        future.add_done_callback(self._job_done)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait until the loop's own threads have ended.

        Args:
            timeout: ignored, because it would be virtual and thus be over at once.
        """
        self._jumping.jobs += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._jumping.jobs -= 1

    def _job_done(self, _future: asyncio.Future[Any]) -> None:
        self._jumping.jobs -= 1

    def _pending_tasks(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks(self)


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would wait, the clock jumps.

    ``select`` is the one place in which an event loop waits, and a selector can be given to it
    from outside: no private attribute of the loop is needed.
    """

    def __init__(
        self,
        pending: Callable[[], Iterable[asyncio.Task[Any]]],
        horizon: float,
        patience: float,
    ) -> None:
        super().__init__()
        self.now = 0.0
        self.jobs = 0  # in executors: asked for by the loop's thread, result not yet there
        self.sealed = False
        self._pending = pending
        self._span = self._horizon = horizon
        self._patience = patience

    def register(
        self, fileobj: "FileDescriptorLike", events: int, data: Any = None
    ) -> selectors.SelectorKey:
        if self.sealed:
            raise RuntimeError(
                "VirtualClockLoop does no I/O: its clock would run away from the bytes in flight;"
                " use memory_pair, or a loop with a real clock"
            )
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # None: neither a callback nor a timer is left.  0: callbacks are ready.
        # Threads are counted before the look at the pipe: what one that has ended wrote is there.
        others = timeout is None and threading.active_count() > 1
        events = super().select(0)
        if events or timeout == 0:
            return events
        if self.jobs and timeout is None:
            return super().select(None)
        if self.jobs or others:
            events = super().select(self._patience)
            if events:
                return events
        if timeout is None:
            raise Deadlock(f"deadlock at {self.now:g} s: nothing can run any more; {self._who()}")
        self._jump(timeout)
        return events

    def _jump(self, seconds: float) -> None:
        target = self.now + seconds
        if target > self._horizon:
            at = self._horizon
            # What is cancelled now gets as much time again for its clean-up.
            self._horizon = min(self.now + self._span, LATEST)
            raise Deadlock(f"deadlock: only timers run until the horizon {at:g} s; {self._who()}")
        self.now = target

    def _who(self) -> str:
        tasks = sorted(self._pending(), key=lambda task: task.get_name())
        if not tasks:
            return "no task is pending"
        lines = [f"\n  {task.get_name()}: {_where(task)}" for task in tasks]
        return f"{len(lines)} pending tasks:" + "".join(lines)


def _check(horizon: float, patience: float) -> None:
    if not 0 < horizon <= LATEST:
        raise ConfigError(f"horizon must be above 0 and at most {LATEST:.0f}, not {horizon!r}")
    if not patience >= 0:
        raise ConfigError(f"patience must be 0 or more seconds, not {patience!r}")


def _where(task: asyncio.Task[Any]) -> str:
    """Tell the coroutine of a task, and the line of the innermost one that it waits in."""
    coro: Any = task.get_coro()
    name = getattr(coro, "__qualname__", repr(coro))
    frame: types.FrameType | None = None
    while isinstance(coro, types.CoroutineType):
        frame = coro.cr_frame or frame
        coro = coro.cr_await
    if frame is None:
        return str(name)
    code = frame.f_code
    return f"{name} waits in {code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
