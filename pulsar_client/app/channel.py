"""Short messages between the arbiter and one worker: a line of JSON each, over a socket pair.

Neither side ever waits for the other: a message that a stuck peer has no room for is dropped.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["Channel"]

_MOST = 2**16


class Channel:
    """One end.

    Args:
        sock: the end's socket; closed with the channel.
        on_message: called with each message.
        on_end: called once when the other side is gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[dict[str, Any]], object],
        on_end: Callable[[], object],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._received = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self.read)

    def send(self, **message: Any) -> bool:
        """Send a message; tell whether it is on its way."""
        line = json.dumps(message).encode() + b"\n"
        try:
            return self._sock.send(line) == len(line)
        except OSError:
            return False

    def read(self) -> None:
        """Take what has arrived; the loop calls it, and whoever sees the other side die."""
        while True:
            try:
                data = self._sock.recv(_MOST)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                if self._sock.fileno() >= 0:
                    self.close()
                    self._on_end()
                return
            *lines, rest = (self._received + data).split(b"\n")
            self._received = rest[-_MOST:]
            for line in lines:
                self._on_message(json.loads(line))

    def close(self) -> None:
        """Close this end; idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
