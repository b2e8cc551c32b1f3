"""What a service manager, systemd mostly, is told: ready, reloading, stopping, still alive.

The protocol is a datagram to the socket that ``NOTIFY_SOCKET`` names; without that nothing is
said.  Sockets that it passes are in ``listeners``.
"""

import os
import socket
import time
from collections.abc import Mapping

__all__ = ["ServiceManager"]


class ServiceManager:
    """The one that started this process, if it wants to know.

    Args:
        environ: the environment; the variables are taken out of it, so that children do not
            speak for this process.
    """

    def __init__(self, environ: "os._Environ[str] | dict[str, str]") -> None:
        path = environ.pop("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog = _watchdog(environ)
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environ.pop(name, None)

    def tell(self, *lines: str) -> bool:
        """Send it lines such as ``READY=1``; give whether that was possible."""
        if not self._path:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self._path)
        except OSError:
            return False  # it is not our business to fail because nobody listens
        return True

    def ready(self, status: str) -> None:
        """Say that all workers accept connections."""
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self.tell("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """Say that all is well."""
        if self.watchdog is not None:
            self.tell("WATCHDOG=1")


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """Seconds within which it wants to hear that all is well, or None."""
    text = environ.get("WATCHDOG_USEC", "")
    pid = environ.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isdigit() or int(text) == 0 or pid != str(os.getpid()):
        return None
    return int(text) / 1e6
