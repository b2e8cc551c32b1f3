"""A peer that can vanish: two network namespaces joined by a cable, of which one side goes dead.

Not a test module.  The calling thread works in the near namespace while the network exists; the
rest of the process, and the machine's own network, see nothing of it.
"""

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_NAMESPACE = "/proc/thread-self/ns/net"

#: Of the documentation's addresses (RFC 5737); nothing outside of the namespaces can use them.
NEAR, FAR = "192.0.2.1", "192.0.2.2"


class Unavailable(Exception):
    """This machine does not let us have network namespaces; says why."""


class Network:
    """Two hosts, near and far; see :func:`two_hosts`."""

    def __init__(self, near: int, far: int) -> None:
        self._near = near
        self._far = far

    def listen(self) -> socket.socket:
        """Listen on the far host."""
        with _inside(self._far, back=self._near):
            sock = socket.socket()
        sock.bind((FAR, 0))
        sock.listen(16)
        sock.setblocking(False)
        return sock

    def vanish(self) -> None:
        """Let nothing leave the far host any more: no acknowledgement, no reset."""
        with _inside(self._far, back=self._near):
            _ip("route", "add", "blackhole", f"{NEAR}/32")


@contextlib.contextmanager
def two_hosts() -> Iterator[Network]:
    """Put this thread on the near one of two hosts.

    Raises:
        Unavailable: the system or our rights don't allow it.
    """
    if sys.platform != "linux":
        raise Unavailable("network namespaces are of Linux")
    if shutil.which("ip") is None:
        raise Unavailable("the command ip (iproute2) is not installed")
    with contextlib.ExitStack() as stack:
        home = _open_namespace(stack)
        try:
            _call("unshare", _CLONE_NEWNET)
        except OSError as error:
            raise Unavailable(f"no right to make network namespaces: {error}") from error
        stack.callback(_call, "setns", home, _CLONE_NEWNET)
        far = _open_namespace(stack)
        _call("unshare", _CLONE_NEWNET)
        near = _open_namespace(stack)
        try:
            _ip("link", "add", "near", "type", "veth", "peer", "name", "far")
            _ip("link", "set", "far", "netns", f"/proc/{os.getpid()}/fd/{far}")
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"no virtual cables: {error.stderr.decode().strip()}") from error
        _ip("address", "add", f"{NEAR}/24", "dev", "near")
        _ip("link", "set", "near", "up")
        with _inside(far, back=near):
            _ip("address", "add", f"{FAR}/24", "dev", "far")
            _ip("link", "set", "far", "up")
        yield Network(near, far)


def _open_namespace(stack: contextlib.ExitStack) -> int:
    descriptor = os.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


@contextlib.contextmanager
def _inside(namespace: int, *, back: int) -> Iterator[None]:
    _call("setns", namespace, _CLONE_NEWNET)
    try:
        yield
    finally:
        _call("setns", back, _CLONE_NEWNET)


def _call(function: str, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, timeout=10)
