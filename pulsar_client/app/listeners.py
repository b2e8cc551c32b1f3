"""The listening sockets of an application: made once, by the arbiter, for all workers.

This module binds or inherits them, gives files of unix sockets their owner and mode, and names
them.  It never accepts.
"""

import array
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pulsar_client.addresses import Address, format_address, parse_address, unix_path
from pulsar_client.app.privileges import file_owner
from pulsar_client.app.settings import Settings
from pulsar_client.servers.listening_sockets import (
    bind_listening_sockets,
    remove_socket_file,
    socket_file_inode,
)

__all__ = ["Listener", "Listeners", "inherited_sockets"]

Bind = Callable[..., list[socket.socket]]

_FIRST_INHERITED = 3


@dataclass
class Listener:
    """The sockets of one address of ``bind``, or one inherited socket."""

    text: str
    sockets: list[socket.socket]
    address: Address | None = None
    inode: tuple[int, int] | None = None

    def close(self) -> None:
        """Close them; the file of a unix socket that was made here goes first."""
        if self.address is not None:
            with contextlib.suppress(OSError):
                remove_socket_file(self.address, self.inode)
        for sock in self.sockets:
            sock.close()


class Listeners:
    """All listening sockets of an application.

    Args:
        listeners: one for each address.
        scheme: how a plain stream socket is called: ``tcp``, ``tls`` or ``udp``.
    """

    def __init__(self, listeners: Sequence[Listener], scheme: str) -> None:
        self.listeners = list(listeners)
        self.scheme = scheme
        #: Sockets of a service manager, if there are any: a reload keeps them.
        self.inherited: list[socket.socket] = []

    @classmethod
    def open(
        cls,
        settings: Settings,
        *,
        scheme: str,
        kept: "Listeners | None" = None,
        inherited: Sequence[socket.socket] = (),
        bind: Bind = bind_listening_sockets,
    ) -> "Listeners":
        """Make the sockets of the settings; all or none.

        Args:
            settings: ``bind`` and the like.
            scheme: how the sockets are called.
            kept: sockets that are taken over where the address is the same.
            inherited: used instead of ``bind``, if there are any.
            bind: makes the sockets of one address.

        Raises:
            ConfigError: there is no such owner.
            OSError: an address can't be bound; the message names it.
        """
        if inherited:
            present = [] if kept is None else kept.listeners
            result = present or [Listener(str(s.fileno()), [s]) for s in inherited]
            found = cls(result, scheme)
            found.inherited = list(inherited)
            return found
        by_text = {} if kept is None else {found.text: found for found in kept.listeners}
        made: list[Listener] = []
        try:
            listeners = []
            for text in settings.bind:
                listener = by_text.pop(text, None)
                if listener is None:
                    listener = _bind(text, settings, bind)
                    made.append(listener)
                listeners.append(listener)
        except BaseException:
            for listener in made:
                listener.close()
            raise
        return cls(listeners, scheme)

    @property
    def groups(self) -> list[list[socket.socket]]:
        """The sockets, a list for each address."""
        return [list(listener.sockets) for listener in self.listeners]

    @property
    def addresses(self) -> list[Any]:
        """What the sockets are bound to; a unix socket as ``unix:PATH``."""
        return [
            format_address(name) if _is_unix(sock) else name
            for listener in self.listeners
            for sock in listener.sockets
            for name in [sock.getsockname()]
        ]

    @property
    def urls(self) -> list[str]:
        """The addresses for people: ``tcp://127.0.0.1:8060``."""
        texts = (format_address(address) for address in self.addresses)
        return [text if text.startswith("unix:") else f"{self.scheme}://{text}" for text in texts]

    def refuse_newcomers(self) -> None:
        """Let no new connection into the queues, and keep those that are in them.

        A connection that the system has made and nobody accepts is reset when the socket is
        closed.  Linux can drop the first packet of every later one: its client tries again in a
        second, and is refused.  A unix socket that has no name any more is not found.  Elsewhere
        this does nothing.
        """
        for listener in self.listeners:
            if listener.address is not None and unix_path(listener.address) is not None:
                with contextlib.suppress(OSError):
                    remove_socket_file(listener.address, listener.inode)
            for sock in listener.sockets:
                if sock.type == socket.SOCK_STREAM and not _is_unix(sock):
                    _drop_first_packets(sock)

    def close(self, *, but: "Listeners | None" = None) -> None:
        """Close all sockets, except those that others use as well."""
        spared = [] if but is None else but.listeners
        for listener in self.listeners:
            if not any(listener is other for other in spared):
                listener.close()


def _is_unix(sock: socket.socket) -> bool:
    return sock.family == getattr(socket, "AF_UNIX", None)


def _bind(text: str, settings: Settings, bind: Bind) -> Listener:
    address = parse_address(text)
    path = unix_path(address)
    with _file_mode(settings.unix_mode if path is not None else None):
        sockets = bind(address, backlog=settings.backlog)
    listener = Listener(text, sockets, address, socket_file_inode(address))
    if path is not None and settings.unix_owner is not None and not path.startswith("\0"):
        try:
            os.chown(path, *file_owner(settings.unix_owner))
        except BaseException:
            listener.close()
            raise
    return listener


@contextlib.contextmanager
def _file_mode(mode: int | None) -> Iterator[None]:
    # By the umask the file has its mode from the first moment: a chmod would come too late.
    if mode is None:
        yield
        return
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


# From Linux's headers; the socket module does not have it.
_SO_ATTACH_FILTER = 26


def _drop_first_packets(sock: socket.socket) -> None:
    """Drop packets that open a connection (SYN and no ACK), by a filter in the kernel."""
    if not sys.platform.startswith("linux"):
        return
    program = (
        (0x30, 0, 0, 13),  # load the byte with the flags of the TCP header
        (0x54, 0, 0, 0x12),  # keep SYN and ACK of it
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # then drop
        (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
    )
    code = array.array("B", b"".join(struct.pack("HBBI", *step) for step in program))
    option = struct.pack("HP", len(program), code.buffer_info()[0])
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def inherited_sockets(environ: Mapping[str, str], pid: int, kind: int) -> list[socket.socket]:
    """Give the sockets that a service manager has passed to this process (``LISTEN_FDS``).

    Args:
        environ: the environment.
        pid: of this process: the variables are inherited by children they are not meant for.
        kind: the type of socket wanted, such as ``socket.SOCK_STREAM``.

    Returns:
        The sockets; none if there are none for this process.

    Raises:
        OSError: one of them is not a socket, or of another type.
    """
    if environ.get("LISTEN_PID") != str(pid) or not environ.get("LISTEN_FDS", "").isdigit():
        return []
    found = []
    for descriptor in range(_FIRST_INHERITED, _FIRST_INHERITED + int(environ["LISTEN_FDS"])):
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        if sock.type != kind:
            raise OSError(f"LISTEN_FDS: descriptor {descriptor} is a {sock.type.name}")
        sock.setblocking(False)
        found.append(sock)
    return found
