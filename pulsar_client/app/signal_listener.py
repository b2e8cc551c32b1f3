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

    Args:
        numbers: the signals.
        heard: called in the thread, with the number of one.
    """

    def __init__(self, numbers: Iterable[int], heard: Callable[[int], object]) -> None:
        self._heard = heard
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {number: signal.signal(number, _nothing) for number in numbers}
        # The loop may have its own, for handlers that others add to it.
        self._loops_own = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def close(self, *, restore: bool = True) -> None:
        """Stop listening.

        Args:
            restore: what the signals did before; False lets them do nothing from now on.
        """
        signal.set_wakeup_fd(self._loops_own)
        if restore:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        while received := self._reader.recv(64):
            for number in received:
                if number in self._before:
                    self._heard(number)
            if self._loops_own != -1:
                with contextlib.suppress(OSError):
                    os.write(self._loops_own, received)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Keep the signal from ending the process: the thread acts on it."""
