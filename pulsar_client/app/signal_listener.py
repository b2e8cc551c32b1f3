"""Signals that are heard whatever the main thread is doing."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from types import FrameType

__all__ = ["SignalListener"]


class SignalListener:
    """Tells of signals in a thread of its own.

    Python calls its handlers in the main thread, between two instructions: never, while that
    thread is stuck in C code, and late, if the signal comes just before it starts to wait there.
    The wake-up descriptor (`signal.set_wakeup_fd`) is written by the handler in C.

    There is one such descriptor a process.  asyncio's loops take it for the handlers that are
    added to them; it is then taken back, and what it brings passed on to them.

    Args:
        numbers: the signals; those that get another handler later are no longer told of.
        heard: called in the thread, with the number of one.
    """

    def __init__(self, numbers: Iterable[int], heard: Callable[[int], object]) -> None:
        self._heard = heard
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._loops_own = self._take_descriptor()
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def close(self, *, restore: bool = True) -> None:
        """Stop listening.

        Args:
            restore: what the signals did before; False lets them do nothing from now on.
        """
        for number, handler in self._before.items():
            signal.signal(number, handler if restore else signal.SIG_IGN)
        taken = self._take_descriptor()
        signal.set_wakeup_fd(self._loops_own if taken == self._writer.fileno() else taken)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _take_descriptor(self) -> int:
        """Take the wake-up descriptor; give the one before, or -1."""
        return signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Act in the main thread only if the signal went elsewhere: the thread heard it else."""
        taken = self._take_descriptor()
        if taken != self._writer.fileno():
            self._loops_own = taken
            self._writer.send(bytes([number]))

    def _listen(self) -> None:
        while received := self._reader.recv(64):
            for number in received:
                if number in self._before and signal.getsignal(number) == self._on_signal:
                    self._heard(number)
            if self._loops_own != -1:
                with contextlib.suppress(OSError):
                    os.write(self._loops_own, received)
