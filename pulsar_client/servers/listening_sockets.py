"""Sockets that listen: bound before any server or worker exists, shared or handed to one.

This module must not know of loops, servers, protocols or settings.  It does not accept.
"""

import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from functools import partial

from pulsar_client.addresses import (
    Address,
    check_address,
    format_address,
    is_unix_socket_alive,
    unix_path,
)

__all__ = [
    "bind_end_points",
    "bind_listening_sockets",
    "end_points",
    "remove_socket_file",
    "socket_file_inode",
]

# How often another port is tried when the one the system chose for the first family is taken in
# another.
_PORT_ATTEMPTS = 20

# The machine has no such family, or none of its interfaces has the address.
_NOT_AVAILABLE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)

_EndPoint = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]
_BindOne = Callable[[socket.AddressFamily, tuple[str | int, ...]], socket.socket]


def bind_listening_sockets(address: Address, *, backlog: int = 100) -> list[socket.socket]:
    """Open the listening sockets of an address.

    They listen when they are returned: only that makes a second server fail to bind the same
    address, and lets it see that a unix socket is not stale.  Connections queue up until somebody
    accepts.

    Args:
        address: ``(host, port)``: one socket for each address of the host; ``("", port)``: one
            for IPv4 and one for IPv6 on every interface.  With port 0 all of them have the
            same port.  ``"unix:/path"``: the file of a socket that nobody answers on is replaced,
            any other file is left alone.
        backlog: connections that may queue up, at least 1; the system may have a lower limit.

    Returns:
        Non-blocking sockets, at least one, that child processes of another program don't
        inherit.  A host name is resolved here, which may block.

    Raises:
        TypeError, ValueError: an argument is not allowed.
        OSError: an address can't be bound; it has the errno of the cause and names the address.
            Every socket opened here is closed then.  An address that this machine does not have
            (IPv6, mostly) is left out as long as another one can be bound.
    """
    check_address(address)
    if type(backlog) is not int or backlog < 1:
        raise ValueError(f"backlog must be an int of at least 1, not {backlog!r}")
    path = unix_path(address)
    try:
        if path is not None:
            return [_bind_unix(path, backlog)]
        assert not isinstance(address, str)
        found = end_points(address[0], address[1], socket.SOCK_STREAM)
        return bind_end_points(found, partial(_bind_one, backlog=backlog))
    except socket.gaierror as error:
        raise socket.gaierror(
            error.errno, f"can't resolve {format_address(address)}: {error.strerror}"
        ) from error
    except OSError as error:
        text = f"can't listen on {format_address(address)}: {error.strerror or error}"
        # The constructor of OSError picks the subclass that fits the number.
        raise (OSError(error.errno, text) if error.errno else OSError(text)) from error


def socket_file_inode(address: Address) -> tuple[int, int] | None:
    """Identify the socket file of a unix address, for `remove_socket_file`.

    Returns:
        Device and inode, or None if there is no socket file: the address is not a unix one, has
        an abstract name, or the file is gone.
    """
    path = unix_path(address)
    if path is None or path.startswith("\0"):
        return None
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def remove_socket_file(address: Address, inode: tuple[int, int] | None) -> bool:
    """Remove the socket file of a unix address if it is still the one that was made.

    Call it *before* the socket is closed: an open socket keeps the inode from being given to the
    file of another server.

    Args:
        address: the address that was bound.
        inode: what `socket_file_inode` gave right after that; None removes nothing.

    Returns:
        Whether the file was removed.

    Raises:
        OSError: the file is the one that was made, but this process may not remove it.
    """
    path = unix_path(address)
    if path is None or inode is None or socket_file_inode(address) != inode:
        return False
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def end_points(host: str, port: int, kind: socket.SocketKind) -> list[_EndPoint]:
    """List what has to be bound for sockets of a kind; blocks if `host` is a name."""
    if not host:
        everywhere: list[_EndPoint] = [(socket.AF_INET, ("0.0.0.0", port))]
        if socket.has_ipv6:
            everywhere.append((socket.AF_INET6, ("::", port, 0, 0)))
        return everywhere
    try:
        infos = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, f"not a host name ({error})") from error
    found: dict[_EndPoint, None] = {}
    for family, _, _, _, name in infos:
        if family in (socket.AF_INET, socket.AF_INET6):
            found[family, name] = None  # type: ignore[index]
    return list(found)


def bind_end_points(points: Sequence[_EndPoint], bind_one: _BindOne) -> list[socket.socket]:
    """Bind every end point, port 0 being the port of the first one bound; all or none.

    Raises:
        OSError: as `bind_one` does; nothing is left open.
    """
    port_is_free = points[0][1][1] == 0
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        try:
            return _bind_all(points, bind_one)
        except OSError as error:
            # The first family has a port of the system's choice, which another one has in use.
            if (
                not port_is_free
                or error.errno != errno.EADDRINUSE
                or len(points) == 1
                or attempt == _PORT_ATTEMPTS
            ):
                raise
    raise AssertionError("unreachable")


def _bind_all(points: Sequence[_EndPoint], bind_one: _BindOne) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, (host, port, *rest) in points:
            if port == 0 and bound:
                port = bound[0].getsockname()[1]
            try:
                bound.append(bind_one(family, (host, port, *rest)))
            except OSError as error:
                if error.errno not in _NOT_AVAILABLE:
                    raise
                missing = error
        if missing is not None and not bound:
            raise missing
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def _bind_one(
    family: socket.AddressFamily, name: tuple[str | int, ...], backlog: int
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            # Without it a port can't be bound for minutes after a restart.  Elsewhere it would
            # let two servers have the same port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own on the same port.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(name)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(path: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not path.startswith("\0"):
            _remove_stale_file(path)
        sock.bind(path)
        try:
            sock.listen(backlog)
            sock.setblocking(False)
        except BaseException:
            remove_socket_file("unix:" + path, socket_file_inode("unix:" + path))
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale_file(path: str) -> None:
    """Remove a socket file that nobody answers on; any other file makes the bind fail."""
    address = "unix:" + path
    inode = socket_file_inode(address)
    if inode is None:
        return
    if is_unix_socket_alive(path):
        raise OSError(errno.EADDRINUSE, "another process answers on it")
    # Another server may have replaced the file meanwhile: look again at the last moment.
    remove_socket_file(address, inode)
